//! ServiceEntries that list what another object has, or what another entry lists as well.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tidegate_crds::service_entry::{EntryPort, ServiceEntry};

use super::{EntriesAt, EntryMatch};
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
    let mut reason = None;
    for (range, port) in places.take(MOST_COMPARED) {
        let place = EntryMatch { name, entry, port, range };
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

/// The entry that clients get instead of this one in its whole range, at its port.
fn rival<'i>(index: &'i Index, place: &EntryMatch<'_>) -> Option<Rival<'i>> {
    let address = SocketAddr::new(first_address(place.range), EntryPort::number(place.port)?);
    let mut rivals = EntriesAt::new(index, address);
    rivals.found.retain(|found| found.range == place.range);
    if rivals.found.len() < 2 {
        return None;
    }
    let (own, exports) = (&*place.name.namespace, &place.entry.spec.export_to);
    let named = exports.iter().filter(|text| !matches!(text.as_str(), "*" | "~"));
    let named = named.map(|text| Some(if text == "." { own } else { text }));
    let all = place.is_seen_by(None).then_some([None, Some(own)]).into_iter().flatten();
    let winners: Vec<&'i ObjectName> =
        named.chain(all).filter_map(|client| rivals.first(client)).map(|first| first.name).collect();
    let name = winners.iter().copied().find(|winner| *winner != place.name)?;
    Some(Rival { name, serves_all: winners.iter().all(|winner| *winner != place.name) })
}

fn first_address(range: Option<IpNet>) -> IpAddr {
    range.map_or_else(|| [0_u8; 4].into(), |range| range.addr())
}

fn shown(place: &EntryMatch<'_>) -> String {
    let number = place.port.number;
    match place.range {
        None => format!("port {number} of every address"),
        Some(range) if range.prefix_len() == range.max_prefix_len() => {
            format!("port {number} of {}", range.addr())
        }
        Some(range) => format!("port {number} of {range}"),
    }
}
