//! ServiceEntries: what the clients of a namespace reach at an address, and the status of each entry.
//!
//! An address that a Service or a workload of the mesh has is never an entry's. Of several entries at an address, clients get
//! the one of their own namespace, else the one with the longest prefix, else the oldest, else the first by namespace and
//! name. The order in which objects arrive makes no difference.

mod conflicts;
mod support;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tidegate_core::backend::{Backend, BackendRef, Endpoint, OriginalDestination, Transport};
use tidegate_core::{Destination, Identity};
use tidegate_crds::service_entry::{
    EntryLocation, EntryPort, EntryProtocol, Resolution, ServiceEntry, WorkloadEntry,
};
use tidegate_crds::{Finding, validate};

use super::destination::Resolver;
use super::status::{ACCEPTED, Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::{Index, service_named};
use crate::object::{Kind, ObjectName};

use support::unsupported;

/// The entries that decide about an address, for one client or another.
pub(crate) struct EntriesAt<'i> {
    address: SocketAddr,
    found: Vec<EntryMatch<'i>>,
}

/// An entry at an address.
#[derive(Clone, Copy)]
struct EntryMatch<'i> {
    name: &'i ObjectName,
    entry: &'i ServiceEntry,
    port: &'i EntryPort,
    /// The range that contains the address; `None`: the entry lists no addresses.
    range: Option<IpNet>,
}

impl<'i> EntriesAt<'i> {
    /// The entries in force that have the port.
    pub(crate) fn new(index: &'i Index, address: SocketAddr) -> Self {
        let entries = index.service_entries();
        let in_ranges = entries
            .ranges_at(address.ip())
            .flat_map(|(range, names)| names.iter().map(move |name| (name, Some(range))));
        let anywhere = entries.anywhere(address.port()).map(|name| (name, None));
        let found = in_ranges.chain(anywhere).filter_map(|(name, range)| {
            let (name, entry) = entries.entry(name)?;
            let port = entry.spec.port(address.port())?;
            let is_tcp = port.protocol() != Ok(EntryProtocol::Udp);
            let is_in_force =
                || index.outside_mesh(&name.namespace).is_none() && claimed_service(index, entry).is_none();
            (is_tcp && is_in_force()).then_some(EntryMatch { name, entry, port, range })
        });
        Self { address, found: found.collect() }
    }

    /// What the address is to the clients of a namespace; `None`: of one that no entry names. Unknown without an entry that
    /// they see.
    pub(super) fn destination(&self, client: Option<&str>) -> Destination {
        let Some(found) = self.first(client) else { return Destination::Unknown };
        match unsupported(found) {
            None => {
                let protocol = found.port.protocol().map_or(EntryProtocol::Tcp, |protocol| protocol);
                let object = found.name.to_ref(Kind::ServiceEntry);
                let backend = BackendRef { object, port: self.address.port() };
                Destination::backend(protocol.of_port().carried(), backend)
            }
            // Plaintext to what belongs to the mesh would be a downgrade.
            Some(reason) if found.entry.spec.location() == Ok(EntryLocation::Internal) => {
                Destination::Blocked(format!("ServiceEntry {}: {reason}", found.name).into())
            }
            Some(_) => Destination::Unknown,
        }
    }

    /// The entry that clients of a namespace get.
    fn first(&self, client: Option<&str>) -> Option<&EntryMatch<'i>> {
        let seen = self.found.iter().filter(|found| found.is_seen_by(client));
        seen.min_by_key(|found| found.precedence(client))
    }

    /// The namespaces whose clients may get another entry than those of all others.
    pub(crate) fn clients(&self, index: &Index) -> BTreeSet<Arc<str>> {
        let mut clients = BTreeSet::new();
        for EntryMatch { name, entry, .. } in &self.found {
            clients.insert(name.namespace.clone());
            let named = entry.spec.export_to.iter().filter(|text| !matches!(text.as_str(), "*" | "." | "~"));
            // Invented namespaces have no clients.
            let existing = named.filter(|namespace| index.pods_in(namespace).next().is_some());
            clients.extend(existing.map(|namespace| Arc::from(namespace.as_str())));
        }
        clients
    }
}

impl Resolver<'_> {
    /// The endpoints of an entry's port; `None` if the entry lacks that port.
    pub(super) fn behind_entry(
        &self,
        name: &BackendRef,
        object: &ObjectName,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Option<Backend> {
        let (_, entry) = self.index.service_entries().entry(object)?;
        let port = entry.spec.port(name.port)?;
        let protocol = port.protocol().ok()?.of_port().spoken();
        if entry.spec.resolution() == Ok(Resolution::None) {
            let original = OriginalDestination { port: port.target_port.and(endpoint_port(None, port)) };
            let backend = Backend::new(name.clone(), protocol, Vec::new());
            return Some(Backend { original_destination: Some(original), ..backend });
        }
        let is_internal = entry.spec.location() == Ok(EntryLocation::Internal);
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let mut known = BTreeSet::new();
        for listed in &entry.spec.endpoints {
            let (Some(ip), Some(number)) = (listed.ip(), endpoint_port(Some(listed), port)) else { continue };
            let address = SocketAddr::new(ip, number);
            let transport = if is_internal {
                self.internal_transport(object, listed, address, pods)
            } else {
                Transport::Plain
            };
            if known.insert(address) {
                endpoints.push(Endpoint::new(address, transport));
            }
        }
        Some(Backend::new(name.clone(), protocol, endpoints))
    }

    /// Mutual TLS with the service account that the endpoint names, or with the workload that has its address.
    fn internal_transport(
        &self,
        entry: &ObjectName,
        listed: &WorkloadEntry,
        address: SocketAddr,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Transport {
        if let Some(account) = listed.service_account.as_deref() {
            let identity = Identity::new(self.trust_domain.clone(), &entry.namespace, account);
            return identity.map_or(Transport::Plain, Transport::Mesh);
        }
        for (name, pod) in self.index.pods_at(address.ip()) {
            pods.insert(name.clone());
            if let Some(identity) = self.workload(name, pod, address.port()) {
                return Transport::Mesh(identity);
            }
        }
        Transport::Plain
    }
}

impl<'i> EntryMatch<'i> {
    /// Whether clients of a namespace see the entry.
    fn is_seen_by(&self, client: Option<&str>) -> bool {
        let own = &*self.name.namespace;
        // No namespace has an empty name.
        self.entry.spec.is_exported_to(client.unwrap_or_default(), own)
    }

    /// The least comes first.
    fn precedence(&self, client: Option<&str>) -> impl Ord + use<'i> {
        let is_own = client == Some(&*self.name.namespace);
        let prefix = self.range.map(|range| range.prefix_len());
        (!is_own, Reverse(prefix), age(self.entry), self.name)
    }
}

impl Compiled for ServiceEntry {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let entries = scope.service_entries().filter(|(name, _)| Self::is_wanted(scope, name));
        entries
            .map(|(name, entry)| Judged {
                name: name.clone(),
                status: judge(scope.index, name, entry),
                uid: entry.metadata.uid.clone(),
                is_incomplete: false,
            })
            .collect()
    }

    fn is_affected(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.concerns_entry(name)
    }

    fn is_wanted(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.concerns_entry(name) && !scope.is_of_another_mesh(&name.namespace)
    }
}

/// The Service whose name one of the hosts is, and the place of that host: names of the mesh are not an entry's.
fn claimed_service(index: &Index, entry: &ServiceEntry) -> Option<(usize, ObjectName)> {
    let hosts = entry.spec.hosts.iter().enumerate();
    let mut named = hosts.filter_map(|(i, host)| Some((i, service_named(host)?)));
    named.find(|(_, service)| index.service(service).is_some())
}

/// Whether an entry is in force, and as far as it is not, why.
fn judge(index: &Index, name: &ObjectName, entry: &ServiceEntry) -> ObjectStatus {
    let findings = validate::service_entry(&name.namespace, &entry.spec);
    let mut warnings: Vec<String> =
        findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string).collect();
    let error = index
        .outside_mesh(&name.namespace)
        .map(|reason| ("OutsideMesh", reason))
        .or_else(|| Some(("Invalid", findings.iter().find(|finding| finding.is_error())?.to_string())))
        .or_else(|| {
            let (i, service) = claimed_service(index, entry)?;
            let host = entry.spec.hosts.get(i).map(String::as_str).unwrap_or_default();
            Some(("Conflicted", format!("spec.hosts[{i}]: {host} is the name of Service {service}")))
        })
        .or_else(|| support::of_entry(entry).map(|reason| ("NotSupported", reason)))
        .or_else(|| {
            conflicts::of_entry(index, name, entry, &mut warnings).map(|reason| ("Conflicted", reason))
        });
    warnings.extend(support::unused(entry));
    let (condition, error) = error.unzip();
    ObjectStatus::new(error, warnings, &entry.metadata).with_condition(condition.unwrap_or(ACCEPTED))
}

/// When an entry was made; objects of a folder have no age.
fn age(entry: &ServiceEntry) -> Option<&Time> {
    entry.metadata.creation_timestamp.as_ref()
}

/// The port that connections to one of the entry's ports go to.
fn endpoint_port(endpoint: Option<&WorkloadEntry>, port: &EntryPort) -> Option<u16> {
    WorkloadEntry::port(endpoint.unwrap_or(&WorkloadEntry::default()), port)
}

#[cfg(test)]
mod tests;
