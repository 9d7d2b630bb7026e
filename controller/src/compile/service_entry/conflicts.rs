//! ServiceEntries that list what another object has, or what another entry lists as well.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tidegate_crds::service_entry::{EntryPort, ServiceEntry};

use super::entries_at::{EntriesAt, EntryMatch};
use crate::index::Index;
use crate::object::ObjectName;

/// Maximum places (a range and a port) of an entry that are compared with those of others.
const MOST_COMPARED: usize = 1024;
/// Maximum warnings about places.
const MOST_WARNINGS: usize = 8;

/// Another entry that is used at a place of this one.
struct Rival<'i> {
    name: &'i ObjectName,
    /// Whether it is used by all clients that see the entry.
    serves_all: bool,
}

/// Why an entry has no effect somewhere; `None` if it has. Where it has one for some clients only, a warning says so.
pub(super) fn of_entry(
    index: &Index,
    name: &ObjectName,
    entry: &ServiceEntry,
    warnings: &mut Vec<String>,
) -> Option<String> {
    let spec = &entry.spec;
    for (i, text) in spec.addresses.iter().enumerate() {
        let range = spec.ranges().nth(i).filter(|range| range.prefix_len() == range.max_prefix_len());
        let service = range.and_then(|range| index.service_at(range.addr()));
        if let Some((service, _)) = service {
            return Some(format!("spec.addresses[{i}]: {text} is the cluster IP of Service {service}"));
        }
    }
    let ranges: BTreeSet<Option<IpNet>> =
        if spec.addresses.is_empty() { [None].into() } else { spec.ranges().map(Some).collect() };
    let places = ranges.iter().flat_map(|range| spec.ports.iter().map(move |port| (*range, port)));
    let places = places.flat_map(|(range, port)| {
        let is_by_host = spec.host_source(port, range).is_some();
        let hosts = spec.hosts.iter().filter(move |_| is_by_host).map(|host| Some(host.as_str()));
        let address = (!is_by_host).then_some(None);
        hosts.chain(address).map(move |host| EntryMatch { name, entry, port, range, host })
    });
    let mut reason = None;
    for place in places.take(MOST_COMPARED) {
        match rival(index, &place) {
            Some(Rival { name, serves_all: true }) => {
                let text = || format!("{} is ServiceEntry {name}'s, which takes precedence", shown(&place));
                reason.get_or_insert_with(text);
            }
            Some(Rival { name, serves_all: false }) if warnings.len() < MOST_WARNINGS => {
                warnings.push(format!(
                    "{} is also ServiceEntry {name}'s, which takes precedence for clients of other namespaces",
                    shown(&place)
                ));
            }
            Some(_) | None => {}
        }
    }
    reason
}

/// The entry that clients get instead of this one in its whole range, at its port and for its host.
fn rival<'i>(index: &'i Index, place: &EntryMatch<'i>) -> Option<Rival<'i>> {
    let rivals = rivals(index, place)?;
    if rivals.len() < 2 {
        return None;
    }
    let first = |client: Option<&str>| {
        let seen = rivals.iter().filter(|found| found.is_seen_by(client));
        seen.min_by_key(|found| found.precedence(client))
    };
    let (own, exports) = (&*place.name.namespace, &place.entry.spec.export_to);
    let named = exports.iter().filter(|text| !matches!(text.as_str(), "*" | "~"));
    let named = named.map(|text| Some(if text == "." { own } else { text }));
    let all = place.is_seen_by(None).then_some([None, Some(own)]).into_iter().flatten();
    let winners: Vec<&'i ObjectName> = named.chain(all).filter_map(first).map(|first| first.name).collect();
    let name = winners.iter().copied().find(|winner| *winner != place.name)?;
    Some(Rival { name, serves_all: winners.iter().all(|winner| *winner != place.name) })
}

/// The entries in force in exactly this range, at this port and for this host; those for which the address decides, whatever the
/// host.
fn rivals<'i>(index: &'i Index, place: &EntryMatch<'i>) -> Option<Vec<EntryMatch<'i>>> {
    let number = EntryPort::number(place.port)?;
    let EntriesAt { by_address, in_ranges, .. } =
        EntriesAt::new(index, &SocketAddr::new(first_address(place.range), number).into());
    let mut rivals = by_address;
    rivals.retain(|found| found.range == place.range);
    let Some(host) = place.host else { return Some(rivals) };
    let hosts = index.service_entries().by_host(number).filter(|_| place.range.is_none());
    let anywhere = hosts.into_iter().flat_map(|hosts| hosts.with_pattern(host));
    let anywhere = anywhere.filter_map(|name| EntryMatch::new(index, name, None, number));
    let lists_it = |found: &EntryMatch<'_>| {
        let mut hosts = found.entry.spec.hosts.iter();
        found.range == place.range && hosts.any(|text| text.eq_ignore_ascii_case(host))
    };
    let same = in_ranges.into_iter().filter(lists_it).chain(anywhere);
    let same = same.filter(|found| found.source() == place.source());
    rivals.extend(same.map(|found| EntryMatch { host: Some(host), ..found }));
    Some(rivals)
}

/// The first address of a range; 0.0.0.0 without one.
fn first_address(range: Option<IpNet>) -> IpAddr {
    range.map_or_else(|| [0_u8; 4].into(), |range| range.addr())
}

/// An entry's place as statuses name it.
fn shown(place: &EntryMatch<'_>) -> String {
    let number = place.port.number;
    let host = place.host.map(|host| format!("{host} at ")).unwrap_or_default();
    match place.range {
        None => format!("{host}port {number} of every address"),
        Some(range) if range.prefix_len() == range.max_prefix_len() => {
            format!("{host}port {number} of {}", range.addr())
        }
        Some(range) => format!("{host}port {number} of {range}"),
    }
}
