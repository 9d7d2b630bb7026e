//! The endpoints of a ServiceEntry's port.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tidegate_core::Identity;
use tidegate_core::backend::{Backend, BackendRef, Endpoint, OriginalDestination, Transport};
use tidegate_crds::service_entry::{EntryLocation, EntryPort, Resolution, WorkloadEntry};

use crate::compile::destination::Resolver;
use crate::object::ObjectName;

impl Resolver<'_> {
    /// The endpoints of an entry's port; `None` if the entry lacks that port.
    pub(in crate::compile) fn behind_entry(
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

/// The port that connections to one of the entry's ports go to.
fn endpoint_port(endpoint: Option<&WorkloadEntry>, port: &EntryPort) -> Option<u16> {
    WorkloadEntry::port(endpoint.unwrap_or(&WorkloadEntry::default()), port)
}
