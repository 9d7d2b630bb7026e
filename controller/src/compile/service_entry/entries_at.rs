//! The ServiceEntries at an address, of which clients get one.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use tidegate_core::Destination;
use tidegate_core::backend::BackendRef;
use tidegate_core::destination::{DestinationKey, HostSource, RequestedHost};
use tidegate_core::dns_name::DnsPattern;
use tidegate_crds::service_entry::{EntryLocation, EntryPort, EntryProtocol, ServiceEntry};

use super::{age, claimed_service, support};
use crate::index::{Index, PortHosts};
use crate::object::{Kind, ObjectName};

/// The entries that decide about an address, or about a host at it, for one client or another.
pub(crate) struct EntriesAt<'i> {
    index: &'i Index,
    port: u16,
    /// Those for which the address decides alone.
    pub(super) by_address: Vec<EntryMatch<'i>>,
    /// Those that list a range, at which hosts tell connections apart.
    pub(super) in_ranges: Vec<EntryMatch<'i>>,
    /// Those without addresses, at which hosts do.
    anywhere: Option<&'i PortHosts>,
    /// Of these two, the ones for the host that is looked up; `None`: the address itself is looked up.
    of_host: Option<Vec<EntryMatch<'i>>>,
}

/// An entry at an address.
#[derive(Clone, Copy)]
pub(super) struct EntryMatch<'i> {
    pub(super) name: &'i ObjectName,
    pub(super) entry: &'i ServiceEntry,
    pub(super) port: &'i EntryPort,
    /// The range that contains the address; `None`: the entry lists no addresses.
    pub(super) range: Option<IpNet>,
    /// The entry's host by which connections are told apart; `None`: the address decides.
    pub(super) host: Option<&'i str>,
}

impl<'i> EntriesAt<'i> {
    /// The entries in force that have the port.
    pub(crate) fn new(index: &'i Index, key: &DestinationKey) -> Self {
        let DestinationKey { address, host } = key;
        let (entries, port) = (index.service_entries(), address.port());
        let listed = entries.ranges_at(address.ip());
        let listed = listed.flat_map(|(range, names)| names.iter().map(move |name| (name, Some(range))));
        let everywhere = entries.anywhere(port).map(|name| (name, None));
        let found =
            listed.chain(everywhere).filter_map(|(name, range)| EntryMatch::new(index, name, range, port));
        let (in_ranges, by_address): (Vec<_>, Vec<_>) = found.partition(|found| found.source().is_some());
        let anywhere = entries.by_host(port);
        let of_host = host.as_ref().map(|host| {
            let in_ranges = in_ranges.iter().filter_map(|found| found.for_host(host));
            let named = anywhere.into_iter().flat_map(|hosts| hosts.matching(host.name.as_str()));
            let named = named.filter_map(|(pattern, name)| {
                let found = EntryMatch::new(index, name, None, port)?;
                (found.source() == Some(host.source)).then_some(EntryMatch { host: Some(pattern), ..found })
            });
            in_ranges.chain(named).collect()
        });
        Self { index, port, by_address, in_ranges, anywhere, of_host }
    }

    /// What the address, or the host at it, is to the clients of a namespace; `None`: of one that no entry names. Unknown without
    /// an entry that they see.
    pub(in crate::compile) fn destination(&self, client: Option<&str>) -> Destination {
        let seen = self.by_address.iter().filter(|found| found.is_seen_by(client));
        let first = seen.min_by_key(|found| found.precedence(client));
        let otherwise = first.map_or(Destination::Unknown, |found| found.destination(self.port));
        if !self.is_by_host(client, first) {
            return otherwise;
        }
        let Some(of_host) = &self.of_host else { return Destination::ByHost(Box::new(otherwise)) };
        let comes_first = |found: &&EntryMatch<'_>| {
            found.is_seen_by(client) && first.is_none_or(|first| found.place(client) < first.place(client))
        };
        let best = of_host.iter().filter(comes_first).min_by_key(|found| found.host_precedence(client));
        best.map_or(otherwise, |found| found.destination(self.port))
    }

    /// Whether hosts tell the connections of a client apart: if an entry at which they do comes before the `first` at which the
    /// address decides. That is never so at an address which an entry lists by itself.
    fn is_by_host(&self, client: Option<&str>, first: Option<&EntryMatch<'_>>) -> bool {
        if first.is_some_and(EntryMatch::is_one_address) {
            return false;
        }
        let comes_first = |place| first.is_none_or(|first| place < first.place(client));
        let mut in_ranges = self.in_ranges.iter().filter(|found| found.is_seen_by(client));
        let mut anywhere = self.anywhere.into_iter().flat_map(|hosts| {
            hosts
                .namespaces()
                .filter(move |own| hosts.is_seen(own, client))
                .map(|own| (own, place(own, None, client)))
        });
        in_ranges.any(|found| comes_first(found.place(client)))
            || anywhere.any(|(own, place)| comes_first(place) && self.index.outside_mesh(own).is_none())
    }

    /// The namespaces whose clients may get something else than those of all others.
    pub(crate) fn clients(&self) -> BTreeSet<Arc<str>> {
        let mut clients = BTreeSet::new();
        // Invented namespaces have no clients.
        let existing = |namespace: &&str| self.index.pods_in(namespace).next().is_some();
        let of_host = self.of_host.iter().flatten();
        for EntryMatch { name, entry, .. } in self.by_address.iter().chain(&self.in_ranges).chain(of_host) {
            clients.insert(name.namespace.clone());
            let named = entry.spec.export_to.iter().filter(|text| !matches!(text.as_str(), "*" | "." | "~"));
            clients.extend(named.map(String::as_str).filter(existing).map(Arc::from));
        }
        if let (Some(hosts), None) = (self.anywhere, &self.of_host) {
            clients.extend(hosts.namespaces().cloned());
            clients.extend(hosts.clients().filter(existing).map(Arc::from));
        }
        clients
    }
}

impl<'i> EntryMatch<'i> {
    /// An entry that has a port in a range, if it is in force.
    pub(super) fn new(index: &'i Index, name: &ObjectName, range: Option<IpNet>, port: u16) -> Option<Self> {
        let (name, entry) = index.service_entries().entry(name)?;
        let port = entry.spec.port(port)?;
        let is_tcp = port.protocol() != Ok(EntryProtocol::Udp);
        let is_in_force =
            || index.outside_mesh(&name.namespace).is_none() && claimed_service(index, entry).is_none();
        (is_tcp && is_in_force()).then_some(Self { name, entry, port, range, host: None })
    }

    /// What names the hosts by which connections are told apart.
    pub(super) fn source(&self) -> Option<HostSource> {
        self.entry.spec.host_source(self.port, self.range)
    }

    /// The same with the most specific of the entry's hosts that matches one.
    fn for_host(&self, host: &RequestedHost) -> Option<Self> {
        let matches =
            |text: &&String| DnsPattern::parse(text).is_ok_and(|host_| host_.matches(host.name.as_str()));
        let hosts = self.entry.spec.hosts.iter().filter(matches);
        let best =
            hosts.min_by_key(|host| specificity(host)).filter(|_| self.source() == Some(host.source))?;
        Some(Self { host: Some(best), ..*self })
    }

    /// What clients reach that get this entry.
    fn destination(&self, port: u16) -> Destination {
        match support::of_entry(self.entry) {
            None => {
                let protocol = self.port.protocol().map_or(EntryProtocol::Tcp, |protocol| protocol);
                let backend = BackendRef { object: self.name.to_ref(Kind::ServiceEntry), port };
                Destination::backend(protocol.of_port().carried(), backend)
            }
            // Plaintext to what belongs to the mesh would be a downgrade.
            Some(reason) if self.entry.spec.location() == Ok(EntryLocation::Internal) => {
                Destination::Blocked(format!("ServiceEntry {}: {reason}", self.name).into())
            }
            Some(_) => Destination::Unknown,
        }
    }

    /// Whether clients of a namespace see the entry.
    pub(super) fn is_seen_by(&self, client: Option<&str>) -> bool {
        let own = &*self.name.namespace;
        // No namespace has an empty name.
        self.entry.spec.is_exported_to(client.unwrap_or_default(), own)
    }

    /// Whether the entry lists the address by itself.
    fn is_one_address(&self) -> bool {
        self.range.is_some_and(|range| range.prefix_len() == range.max_prefix_len())
    }

    /// Entries in the client's namespace come first, then those with the longest prefix.
    fn place(&self, client: Option<&str>) -> (bool, Reverse<Option<u8>>) {
        place(&self.name.namespace, self.range, client)
    }

    /// The least comes first, of entries at one address and, if hosts tell connections apart, for one host.
    pub(super) fn precedence(&self, client: Option<&str>) -> impl Ord + use<'i> {
        (place(&self.name.namespace, self.range, client), self.host.is_some(), age(self.entry), self.name)
    }

    /// The least comes first, of entries with a host that matches.
    fn host_precedence(&self, client: Option<&str>) -> impl Ord + use<'i> {
        (self.host.map(specificity), self.precedence(client))
    }
}

/// See [`EntryMatch::place`].
fn place(own: &str, range: Option<IpNet>, client: Option<&str>) -> (bool, Reverse<Option<u8>>) {
    (client != Some(own), Reverse(range.map(|range| range.prefix_len())))
}

/// The least is the most specific: a name, then the longest suffix.
fn specificity(host: &str) -> (bool, Reverse<usize>) {
    (host.starts_with('*'), Reverse(host.len()))
}
