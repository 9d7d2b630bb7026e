//! The endpoints of a ServiceEntry's port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tidegate_core::backend::{
    Backend, BackendRef, DnsAnswers, DnsEndpoint, DnsEndpoints, Endpoint, OriginalDestination, Transport,
};
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::{DnsName, Identity};
use tidegate_crds::ServiceEntrySpec;
use tidegate_crds::service_entry::{EntryLocation, EntryPort, Resolution, WorkloadEntry};

use crate::compile::destination::Resolver;
use crate::index::{Index, pod_addresses};
use crate::object::ObjectName;
use crate::object::pod::{is_serving, workload};
use crate::service::has_labels;

impl Resolver<'_> {
    /// The endpoints of an entry's port; `None` if the entry lacks that port.
    pub(in crate::compile) fn behind_entry(
        &self,
        name: &BackendRef,
        object: &ObjectName,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Option<Backend> {
        let (_, entry) = self.index.service_entries().entry(object)?;
        let spec = &entry.spec;
        let port = spec.port(name.port)?;
        let protocol = port.protocol().ok()?.of_port().spoken();
        let hosts = spec.hosts.iter().filter_map(|host| DnsPattern::parse(host).ok()).collect();
        let backend = Backend { hosts, ..Backend::new(name.clone(), protocol, Vec::new()) };
        let answers = match spec.resolution().ok()? {
            Resolution::None => {
                let original = OriginalDestination { port: port.target_port.and(endpoint_port(None, port)) };
                return Some(Backend { original_destination: Some(original), ..backend });
            }
            Resolution::Static => None,
            Resolution::Dns | Resolution::DynamicDns => Some(DnsAnswers::All),
            Resolution::DnsRoundRobin => Some(DnsAnswers::First),
        };
        let mut found = FoundEndpoints::default();
        for listed in &spec.endpoints {
            let (Some(ip), Some(number)) = (listed.ip(), endpoint_port(Some(listed), port)) else { continue };
            let address = SocketAddr::new(ip, number);
            let transport = self.listed_transport(object, spec, listed, address, pods);
            found.add(address, transport, listed.weight());
        }
        self.add_selected(object, spec, port, &mut found, pods);
        let mut dns = answers.and_then(|answers| {
            let names = if spec.resolves_hosts() { self.own_names(object, spec, port) } else { Vec::new() };
            let listed = spec.endpoints.iter().filter_map(|listed| {
                let (name, number) = (listed.name()?, endpoint_port(Some(listed), port)?);
                let transport = self.declared_transport(object, spec, listed.account());
                Some(DnsEndpoint { name: Some(name), port: number, transport, weight: listed.weight() })
            });
            let names: Vec<_> = names.into_iter().chain(listed).collect();
            (!names.is_empty()).then_some(DnsEndpoints { names, answers })
        });
        let FoundEndpoints { transports, mut weights, workloads } = found;
        forget_equal_weights(&mut weights, dns.as_mut());
        let endpoints = transports.into_iter().map(|(address, transport)| Endpoint::new(address, transport));
        Some(Backend { endpoints: endpoints.collect(), weights, workloads, dns, ..backend })
    }

    /// Adds the Pods that the entry selects.
    fn add_selected(
        &self,
        entry: &ObjectName,
        spec: &ServiceEntrySpec,
        port: &EntryPort,
        found: &mut FoundEndpoints,
        pods: &mut BTreeSet<ObjectName>,
    ) {
        let Some(number) = endpoint_port(None, port) else { return };
        for (name, pod) in selected_pods(self.index, entry, spec) {
            pods.insert(name.clone());
            let identity = if is_internal(spec) { self.workload(name, pod, number) } else { None };
            let transport = identity.map_or(Transport::Plain, Transport::Mesh);
            for ip in pod_addresses(pod) {
                let address = SocketAddr::new(ip, number);
                found.add(address, transport.clone(), 1);
                found.workloads.entry(address).or_insert_with(|| workload(pod).into());
            }
        }
    }

    /// How to connect to an endpoint with an address: mutual TLS with the service account that it names, or else with the
    /// workload that has its address.
    fn listed_transport(
        &self,
        entry: &ObjectName,
        spec: &ServiceEntrySpec,
        listed: &WorkloadEntry,
        address: SocketAddr,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Transport {
        if is_internal(spec) && listed.account().is_none() {
            for (name, pod) in self.index.pods_at(address.ip()) {
                pods.insert(name.clone());
                if let Some(identity) = self.workload(name, pod, address.port()) {
                    return Transport::Mesh(identity);
                }
            }
        }
        self.declared_transport(entry, spec, listed.account())
    }

    /// Mutual TLS with a service account of the entry's namespace, or one of the entry's `subjectAltNames`; plaintext if neither
    /// is declared.
    fn declared_transport(
        &self,
        entry: &ObjectName,
        spec: &ServiceEntrySpec,
        account: Option<&str>,
    ) -> Transport {
        if !is_internal(spec) {
            return Transport::Plain;
        }
        let of_account = |account| Identity::new(self.trust_domain.clone(), &entry.namespace, account).ok();
        let identities = account.and_then(of_account).into_iter().chain(spec.server_identities());
        let identities: BTreeSet<Identity> = identities.collect();
        match identities.len() {
            0 => Transport::Plain,
            1 => identities.into_iter().next().map_or(Transport::Plain, Transport::Mesh),
            _ => Transport::MeshOneOf(identities.into_iter().collect()),
        }
    }

    /// What is looked up without endpoints: the entry's host, or of several the one that a connection is for.
    fn own_names(&self, entry: &ObjectName, spec: &ServiceEntrySpec, port: &EntryPort) -> Vec<DnsEndpoint> {
        let name = match &*spec.hosts {
            [only] => DnsName::parse(only).ok(),
            _ => None,
        };
        let transport = self.declared_transport(entry, spec, None);
        let endpoint = |port| DnsEndpoint { name, port, transport, weight: 1 };
        endpoint_port(None, port).map(endpoint).into_iter().collect()
    }
}

/// Endpoints with addresses. Of several with one address, the first counts.
#[derive(Default)]
struct FoundEndpoints {
    transports: BTreeMap<SocketAddr, Transport>,
    weights: BTreeMap<SocketAddr, u32>,
    /// What Pods belong to.
    workloads: BTreeMap<SocketAddr, Arc<str>>,
}

impl FoundEndpoints {
    fn add(&mut self, address: SocketAddr, transport: Transport, weight: u32) {
        self.transports.entry(address).or_insert(transport);
        self.weights.entry(address).or_insert(weight);
    }
}

/// Weights that are all the same say nothing: endpoints are chosen by how fast they respond.
fn forget_equal_weights(weights: &mut BTreeMap<SocketAddr, u32>, dns: Option<&mut DnsEndpoints>) {
    let mut names = dns.map(|dns| &mut dns.names);
    let of_names = names.iter().flat_map(|names| names.iter().map(|name| name.weight));
    let different: BTreeSet<u32> = weights.values().copied().chain(of_names).collect();
    if different.len() < 2 {
        weights.clear();
        names.iter_mut().flat_map(|names| names.iter_mut()).for_each(|name| name.weight = 1);
    }
    weights.retain(|_, weight| *weight != 1);
}

fn is_internal(spec: &ServiceEntrySpec) -> bool {
    spec.location() == Ok(EntryLocation::Internal)
}

/// The Pods that an entry selects and that take new connections.
pub(crate) fn selected_pods<'i>(
    index: &'i Index,
    entry: &ObjectName,
    spec: &ServiceEntrySpec,
) -> impl Iterator<Item = (&'i ObjectName, &'i Arc<Pod>)> {
    let labels = spec.selected_pods();
    let pods =
        labels.into_iter().flat_map(|labels| index.pods_in(&entry.namespace).map(move |pod| (labels, pod)));
    pods.filter(|(labels, (_, pod))| is_serving(pod) && has_labels(pod, labels)).map(|(_, pod)| pod)
}

/// The port that connections to one of the entry's ports go to.
fn endpoint_port(endpoint: Option<&WorkloadEntry>, port: &EntryPort) -> Option<u16> {
    WorkloadEntry::port(endpoint.unwrap_or(&WorkloadEntry::default()), port)
}
