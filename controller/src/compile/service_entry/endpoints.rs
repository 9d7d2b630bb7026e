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
use crate::object::pod::{has_labels, is_serving, workload};

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
        let is_internal = spec.location() == Ok(EntryLocation::Internal);
        let mut found = BTreeMap::new();
        for listed in &spec.endpoints {
            let (Some(ip), Some(number)) = (listed.ip(), endpoint_port(Some(listed), port)) else { continue };
            let address = SocketAddr::new(ip, number);
            let transport = if is_internal {
                self.internal_transport(object, listed, address, pods)
            } else {
                Transport::Plain
            };
            found.entry(address).or_insert(transport);
        }
        let workloads = self.selected_endpoints(object, spec, port, &mut found, pods);
        let dns = answers.and_then(|answers| {
            let names = if spec.resolves_hosts() { own_names(spec, port) } else { Vec::new() };
            let listed = spec.endpoints.iter().filter_map(|listed| {
                let (name, number) = (listed.name()?, endpoint_port(Some(listed), port)?);
                let account = listed.service_account.as_deref().filter(|_| is_internal);
                let transport =
                    account.map_or(Transport::Plain, |account| self.account_transport(object, account));
                Some(DnsEndpoint { name: Some(name), port: number, transport })
            });
            let names: Vec<_> = names.into_iter().chain(listed).collect();
            (!names.is_empty()).then_some(DnsEndpoints { names, answers })
        });
        let endpoints = found.into_iter().map(|(address, transport)| Endpoint::new(address, transport));
        Some(Backend { endpoints: endpoints.collect(), workloads, dns, ..backend })
    }

    /// Adds the Pods that the entry selects. Returns what they belong to.
    fn selected_endpoints(
        &self,
        entry: &ObjectName,
        spec: &ServiceEntrySpec,
        port: &EntryPort,
        found: &mut BTreeMap<SocketAddr, Transport>,
        pods: &mut BTreeSet<ObjectName>,
    ) -> BTreeMap<SocketAddr, Arc<str>> {
        let mut workloads = BTreeMap::new();
        let Some(number) = endpoint_port(None, port) else { return workloads };
        let is_internal = spec.location() == Ok(EntryLocation::Internal);
        for (name, pod) in selected_pods(self.index, entry, spec) {
            pods.insert(name.clone());
            let identity = if is_internal { self.workload(name, pod, number) } else { None };
            let transport = identity.map_or(Transport::Plain, Transport::Mesh);
            for ip in pod_addresses(pod) {
                let address = SocketAddr::new(ip, number);
                found.entry(address).or_insert_with(|| transport.clone());
                workloads.entry(address).or_insert_with(|| workload(pod).into());
            }
        }
        workloads
    }

    /// Mutual TLS with a service account of the entry's namespace.
    fn account_transport(&self, entry: &ObjectName, account: &str) -> Transport {
        let identity = Identity::new(self.trust_domain.clone(), &entry.namespace, account);
        identity.map_or(Transport::Plain, Transport::Mesh)
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
            return self.account_transport(entry, account);
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

/// What is looked up without endpoints: the entry's host, or of several the one that a connection is for.
fn own_names(spec: &ServiceEntrySpec, port: &EntryPort) -> Vec<DnsEndpoint> {
    let name = match &*spec.hosts {
        [only] => DnsName::parse(only).ok(),
        _ => None,
    };
    let endpoint = |port| DnsEndpoint { name, port, transport: Transport::Plain };
    endpoint_port(None, port).map(endpoint).into_iter().collect()
}

/// The port that connections to one of the entry's ports go to.
fn endpoint_port(endpoint: Option<&WorkloadEntry>, port: &EntryPort) -> Option<u16> {
    WorkloadEntry::port(endpoint.unwrap_or(&WorkloadEntry::default()), port)
}
