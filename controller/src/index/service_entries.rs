//! ServiceEntries, by name, by the addresses that they list and by what their hosts name.
//!
//! An entry with errors is kept for its status and found by nothing else. An address that is dialled is looked up once for each
//! length of prefix that any entry has. Entries without addresses are found by host where hosts tell connections apart
//! ([`hosts`]), so that thousands of them at one port cost a lookup as little as one.

mod hosts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_core::destination::HostSource;
use tidegate_crds::service_entry::{EntryPort, OLDER_SERVICE_ENTRIES, ServiceEntry, WorkloadEntry};
use tidegate_crds::{Finding, ServiceEntrySpec, validate};

pub(crate) use self::hosts::PortHosts;
use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Object, ObjectName};
use crate::service::has_labels;

/// The entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceEntries {
    by_name: BTreeMap<ObjectName, Arc<ServiceEntry>>,
    by_range: BTreeMap<IpNet, BTreeSet<ObjectName>>,
    /// How many ranges have this length of prefix, of IPv4 and of IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
    /// Entries without addresses, by the numbers of those ports at which no host tells connections apart.
    anywhere: BTreeMap<u16, BTreeSet<ObjectName>>,
    /// Entries without addresses, by the numbers of the other ports.
    hosts: BTreeMap<u16, PortHosts>,
    /// By the Services whose names their hosts are.
    by_service: ReferenceIndex,
    /// Entries whose endpoints are Pods, by namespace.
    selecting: BTreeMap<Arc<str>, BTreeSet<ObjectName>>,
}

impl ServiceEntries {
    /// Every entry.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<ServiceEntry>)> {
        self.by_name.iter()
    }

    /// An entry, with the shared copy of its name.
    pub(crate) fn entry(&self, name: &ObjectName) -> Option<(&ObjectName, &Arc<ServiceEntry>)> {
        self.by_name.get_key_value(name)
    }

    /// Entries of a namespace.
    pub(super) fn in_namespace(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<ServiceEntry>)> {
        in_namespace(&self.by_name, namespace)
    }

    /// The ranges that contain an address, each with the entries that list it; the longest prefix first.
    pub(crate) fn ranges_at(&self, ip: IpAddr) -> impl Iterator<Item = (IpNet, &BTreeSet<ObjectName>)> {
        let lengths = self.lengths.get(usize::from(ip.is_ipv6())).into_iter().flatten().rev();
        lengths.filter_map(move |(length, _)| {
            let range = IpNet::new(ip, *length).ok()?.trunc();
            Some((range, self.by_range.get(&range)?))
        })
    }

    /// Entries that list exactly this range.
    pub(crate) fn claiming(&self, range: IpNet) -> impl Iterator<Item = &ObjectName> {
        self.by_range.get(&range).into_iter().flatten()
    }

    /// Entries without addresses that have a port with this number, at which no host tells connections apart.
    pub(crate) fn anywhere(&self, port: u16) -> impl Iterator<Item = &ObjectName> {
        self.anywhere.get(&port).into_iter().flatten()
    }

    /// Entries without addresses that have a port with this number, at which hosts tell connections apart.
    pub(crate) fn by_host(&self, port: u16) -> Option<&PortHosts> {
        self.hosts.get(&port)
    }

    /// Entries with a host that is the name of a Service.
    pub(super) fn naming<'p>(
        &'p self,
        service: &ObjectName,
    ) -> impl Iterator<Item = &'p ObjectName> + use<'p> {
        self.by_service.to(service)
    }

    /// Entries whose endpoint this Pod is, or may be once it is ready.
    pub(super) fn selecting(&self, name: &ObjectName, pod: &Pod) -> impl Iterator<Item = &ObjectName> {
        let selects = |entry: &&ObjectName| {
            let labels = self.by_name.get(*entry).and_then(|entry| entry.spec.selected_pods());
            labels.is_some_and(|labels| has_labels(pod, labels))
        };
        self.selecting.get(&name.namespace).into_iter().flatten().filter(selects)
    }

    /// The other entries whose status may depend on this one: those that list the same range, or the same port without a
    /// range and, where hosts tell connections apart, one of its hosts.
    fn rivals(&self, entry: &ServiceEntry) -> BTreeSet<ObjectName> {
        let spec = &entry.spec;
        let ranges = spec.ranges().flat_map(|range| self.claiming(range));
        let mut rivals: BTreeSet<_> = ranges.cloned().collect();
        for (number, source) in ports_anywhere(spec) {
            rivals.extend(self.anywhere(number).cloned());
            let Some(hosts) = self.by_host(number) else { continue };
            match source {
                None => rivals.extend(hosts.names().cloned()),
                Some(_) => {
                    rivals.extend(spec.hosts.iter().flat_map(|host| hosts.with_pattern(host)).cloned());
                }
            }
        }
        rivals
    }
}

impl Indexed for ServiceEntry {
    type Part = ServiceEntries;

    fn get<'p>(part: &'p ServiceEntries, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut ServiceEntries, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        for service in services_of(&object.spec) {
            part.by_service.add(service, &name);
        }
        if is_valid(&name, &object.spec) {
            if object.spec.selected_pods().is_some() {
                part.selecting.entry(name.namespace.clone()).or_default().insert(name.clone());
            }
            for range in object.spec.ranges().collect::<BTreeSet<_>>() {
                let names = part.by_range.entry(range).or_default();
                if names.is_empty()
                    && let Some(lengths) = part.lengths.get_mut(usize::from(range.addr().is_ipv6()))
                {
                    *lengths.entry(range.prefix_len()).or_default() += 1;
                }
                names.insert(name.clone());
            }
            for (port, source) in ports_anywhere(&object.spec) {
                match source {
                    None => drop(part.anywhere.entry(port).or_default().insert(name.clone())),
                    Some(_) => part.hosts.entry(port).or_default().insert(&name, &object.spec),
                }
            }
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut ServiceEntries, name: &ObjectName) {
        let Some(object) = part.by_name.remove(name) else { return };
        for service in services_of(&object.spec) {
            part.by_service.remove(&service, name);
        }
        if let Some(names) = part.selecting.get_mut(&name.namespace) {
            names.remove(name);
            if names.is_empty() {
                part.selecting.remove(&name.namespace);
            }
        }
        for range in object.spec.ranges().collect::<BTreeSet<_>>() {
            let Some(names) = part.by_range.get_mut(&range) else { continue };
            if !names.remove(name) || !names.is_empty() {
                continue;
            }
            part.by_range.remove(&range);
            let lengths = part.lengths.get_mut(usize::from(range.addr().is_ipv6()));
            if let Some(lengths) = lengths
                && let Some(count) = lengths.get_mut(&range.prefix_len())
            {
                *count -= 1;
                lengths.retain(|_, count| *count > 0);
            }
        }
        for (port, source) in ports_anywhere(&object.spec) {
            if source.is_some() {
                if let Some(hosts) = part.hosts.get_mut(&port)
                    && hosts.remove(name, &object.spec)
                {
                    part.hosts.remove(&port);
                }
            } else if let Some(names) = part.anywhere.get_mut(&port) {
                names.remove(name);
                if names.is_empty() {
                    part.anywhere.remove(&port);
                }
            }
        }
    }

    fn effects(part: &ServiceEntries, name: &ObjectName) -> Vec<Effect> {
        // One that cannot be read has a status, too.
        let Some(entry) = part.by_name.get(name) else { return vec![Effect::Entries([name.clone()].into())] };
        let rivals = part.rivals(entry).into_iter().chain([name.clone()]).collect();
        vec![Effect::Entries(rivals), Effect::Ranges(ranges_of(&entry.spec))]
    }
}

impl Stored for ServiceEntry {
    /// Clusters on which only an older version of the definitions is installed lack it.
    const IS_OPTIONAL: bool = true;

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        let ServiceEntrySpec {
            hosts,
            addresses,
            ports,
            location,
            resolution,
            endpoints,
            workload_selector,
            export_to,
            subject_alt_names,
        } = &self.spec;
        let lists = [hosts, addresses, export_to, subject_alt_names].into_iter().flatten();
        let texts: usize = lists.map(|entry| item::<String>() + text(entry)).sum();
        let references =
            REFERENCE * (addresses.len() + hosts.len() + ports.len() + workload_selector.iter().len());
        let ports: usize = ports.iter().map(port_size).sum();
        let endpoints: usize = endpoints.iter().map(endpoint_size).sum();
        let words = optional(location) + optional(resolution);
        let labels = workload_selector.iter().flat_map(|selector| &selector.labels);
        let labels: usize = labels.map(|(name, value)| 128 + text(name) + text(value)).sum();
        size_of::<Self>()
            + STATUS
            + of_metadata(&self.metadata)
            + texts
            + references
            + ports
            + endpoints
            + labels
            + words
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(ServiceEntry::crd);
        let kind = CustomKind::<Self>::new(&DEFINITION, |namespace, object| {
            validate::service_entry(namespace, &object.spec)
        });
        Some(kind.older(&OLDER_SERVICE_ENTRIES, false))
    }
}

impl Custom for ServiceEntry {
    fn of(metadata: ObjectMeta, spec: ServiceEntrySpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// The ranges in which an entry decides; without addresses, everywhere.
pub(super) fn ranges_of(spec: &ServiceEntrySpec) -> Vec<IpNet> {
    if spec.addresses.is_empty() {
        let everywhere = [IpAddr::from([0_u8; 4]), IpAddr::from([0_u16; 8])];
        return everywhere.into_iter().filter_map(|ip| IpNet::new(ip, 0).ok()).collect();
    }
    spec.ranges().collect()
}

/// The Service whose name in the cluster's DNS a host is: `<name>.<namespace>.svc`, with or without a domain.
pub(crate) fn service_named(host: &str) -> Option<ObjectName> {
    let mut labels = host.split('.');
    let (name, namespace) = (labels.next()?, labels.next()?);
    let is_service = labels.next()?.eq_ignore_ascii_case("svc");
    is_service.then(|| ObjectName::new(namespace.to_ascii_lowercase(), name.to_ascii_lowercase()))
}

fn services_of(spec: &ServiceEntrySpec) -> BTreeSet<ObjectName> {
    spec.hosts.iter().filter_map(|host| service_named(host)).collect()
}

/// The ports of an entry without addresses, each with what names the host by which connections to it are told apart.
fn ports_anywhere(spec: &ServiceEntrySpec) -> impl Iterator<Item = (u16, Option<HostSource>)> {
    let ports = spec.ports.iter().filter(|_| spec.addresses.is_empty());
    ports.filter_map(|port| Some((EntryPort::number(port)?, spec.host_source(port, None))))
}

fn is_valid(name: &ObjectName, spec: &ServiceEntrySpec) -> bool {
    !validate::service_entry(&name.namespace, spec).iter().any(Finding::is_error)
}

fn port_size(port: &EntryPort) -> usize {
    item::<EntryPort>() + text(&port.name) + optional(&port.protocol)
}

fn endpoint_size(endpoint: &WorkloadEntry) -> usize {
    let WorkloadEntry { address, ports, network, locality, service_account, .. } = endpoint;
    let texts: usize = [address, network, locality, service_account].into_iter().map(optional).sum();
    // A map takes room for several entries at once.
    let map = if ports.is_empty() { 0 } else { 512 };
    let ports: usize = ports.keys().map(|name| item::<(String, u32)>() + text(name)).sum();
    item::<WorkloadEntry>() + texts + map + ports
}

#[cfg(test)]
mod tests;
