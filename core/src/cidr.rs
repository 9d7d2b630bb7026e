//! Sets of IP addresses.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// A set of CIDR ranges. An IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) is treated as IPv4. Clones share the ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrSet {
    /// Merged, sorted and without overlaps, so that equal sets compare equal and a lookup is a binary search.
    ranges: Arc<[IpNet]>,
}

/// A text is not a CIDR range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected CIDR notation 'a.b.c.d/x', got '{0}'")]
pub struct CidrError(pub String);

impl CidrSet {
    /// Parses ranges in CIDR notation. An address without a prefix length is refused: `10.0.0.1` may be meant as
    /// `10.0.0.1/32` or as `10.0.0.0/24`.
    pub fn parse<'a>(ranges: impl IntoIterator<Item = &'a str>) -> Result<Self, CidrError> {
        let parse = |text: &str| text.parse::<IpNet>().map_err(|_| CidrError(text.to_owned()));
        Ok(ranges.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?.into_iter().collect())
    }

    /// Whether the set contains this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let after = self.ranges.partition_point(|range| range.network() <= address);
        after.checked_sub(1).and_then(|i| self.ranges.get(i)).is_some_and(|range| range.contains(&address))
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, sorted and without overlaps.
    pub fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }
}

impl FromIterator<IpNet> for CidrSet {
    fn from_iter<T: IntoIterator<Item = IpNet>>(ranges: T) -> Self {
        let mut ranges = IpNet::aggregate(&ranges.into_iter().map(|range| range.trunc()).collect());
        ranges.sort_by_key(IpNet::network);
        Self { ranges: ranges.into() }
    }
}

impl FromIterator<IpAddr> for CidrSet {
    /// Each address becomes a range: /32 for IPv4, /128 for IPv6.
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        addresses.into_iter().map(|address| IpNet::from(address.to_canonical())).collect()
    }
}

impl fmt::Display for CidrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            write!(f, "{}{range}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl serde::Serialize for CidrSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.ranges.iter().map(ToString::to_string))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ipv6_address_is_a_range_of_one() {
        let set: CidrSet = ["fd00::1".parse::<IpAddr>().unwrap()].into_iter().collect();
        assert!(set.contains("fd00::1".parse().unwrap()));
        assert!(!set.contains("fd00::2".parse().unwrap()));
    }

    #[test]
    fn mapped_addresses_are_ipv4_addresses() {
        let set = CidrSet::parse(["10.0.0.0/8"]).unwrap();
        assert!(set.contains("::ffff:10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn a_lone_address_is_refused_with_its_text() {
        let error = CidrSet::parse(["10.0.0.0/8", "10.0.0.1"]).unwrap_err();
        assert_eq!(error.to_string(), "expected CIDR notation 'a.b.c.d/x', got '10.0.0.1'");
    }

    proptest! {
        #[test]
        fn the_set_contains_what_one_of_its_ranges_contains(
            ranges in prop::collection::vec((any::<IpAddr>(), 0u8..=128), 0..8),
            address: IpAddr,
        ) {
            let nets: Vec<IpNet> = ranges
                .into_iter()
                .filter_map(|(ip, len)| IpNet::new(ip, len.min(if ip.is_ipv4() { 32 } else { 128 })).ok())
                .filter(|net| !matches!(net.addr(), IpAddr::V6(a) if a.to_ipv4_mapped().is_some()))
                .collect();
            let naive = nets.iter().any(|net| net.contains(&address.to_canonical()));
            let set: CidrSet = nets.iter().copied().collect();
            prop_assert_eq!(set.contains(address), naive);
            for net in &nets {
                prop_assert!(set.contains(net.network()) && set.contains(net.broadcast()));
            }
        }
    }
}
