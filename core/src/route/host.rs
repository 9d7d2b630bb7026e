//! The hosts of a route.

use std::fmt;
use std::net::IpAddr;

use super::error::{Problem, RouteError};
use crate::dns_name::DnsPattern;

/// Which hosts a route applies to. The port of a request's authority is ignored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// Every host, and requests that name none.
    Any,
    /// A name, or `*.` and a suffix (Gateway API: `*` stands for one or more labels).
    Name(DnsPattern),
    /// An address in any notation. Gateway API does not have addresses; those of a ServiceEntry are hosts.
    Address(IpAddr),
}

impl HostMatch {
    /// Parses `*`, a name, `*.` and a name, or an address.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        DnsPattern::parse(text).map(Self::Name).map_err(|_| RouteError::new("hosts", text, Problem::Host))
    }
}

impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(pattern) => pattern.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl serde::Serialize for HostMatch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The host of `host[:port]` (RFC 9110 §7.2), without the brackets of an IPv6 address and without a trailing dot. Empty
/// if the bytes are not UTF-8.
pub fn host_of(authority: &[u8]) -> &str {
    let text = std::str::from_utf8(authority).unwrap_or_default();
    match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => {
            let host = text.split_once(':').map_or(text, |(host, _)| host);
            host.strip_suffix('.').unwrap_or(host)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_no_port_no_brackets_and_no_trailing_dot() {
        for (authority, host) in [
            ("a.example", "a.example"),
            ("a.example:80", "a.example"),
            ("a.example.:80", "a.example"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[fd00::1]:80", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("[fd00::1", ""),
            ("", ""),
        ] {
            assert_eq!(host_of(authority.as_bytes()), host, "{authority}");
        }
        assert_eq!(host_of(b"\xff"), "");
    }

    #[test]
    fn hosts_are_names_suffixes_and_addresses() {
        assert_eq!(HostMatch::parse("*"), Ok(HostMatch::Any));
        assert_eq!(HostMatch::parse("FD00:0::1"), HostMatch::parse("fd00::1"));
        assert_eq!(HostMatch::parse("*.A.example").unwrap().to_string(), "*.a.example");
        for text in ["", "a:80", "*a.example", "a.*", "*.*", "[::1]"] {
            let error = HostMatch::parse(text).unwrap_err();
            assert_eq!((error.value.as_str(), error.problem), (text, Problem::Host));
        }
    }
}
