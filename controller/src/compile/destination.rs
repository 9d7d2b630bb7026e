//! What stands behind an address that workloads dial.
//!
//! An address is a Service's cluster IP, with the Service's port, or a Pod's own. Everything else (a node port, an
//! external name, an address outside the cluster, a port that is not TCP) is outside the mesh. What no Service has at its
//! cluster IP or as a headless one's endpoint is a ServiceEntry's, or unknown: then the MeshConfig says whether connections
//! go there.
//!
//! The answer decides between mutual TLS and plaintext, so it never rests on an address alone: Pods of a Service are
//! found by reference, and an address that two objects have is the Service's. "Outside the mesh" is only answered for
//! an address that was looked up; while the controller has not read every object, it sends no destination at all.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, Service};
use tidegate_core::backend::{BackendRef, Transport};
use tidegate_core::destination::{DestinationKey, DestinationTarget};
use tidegate_core::{Destination, TrustDomain};

use super::route_features::Features;
use super::routes_key::RoutesKey;
use super::service_entry::EntriesAt;
use crate::index::Index;
use crate::object::{Kind, ObjectName};
use crate::service::{port_protocol, tcp_ports};

/// Resolves addresses, and the names of backends, by the objects of one moment.
#[derive(Clone, Copy)]
pub(crate) struct Resolver<'i> {
    pub(crate) index: &'i Index,
    pub(crate) trust_domain: &'i TrustDomain,
    /// Whether a Pod has a sidecar.
    pub(crate) is_workload: fn(&Pod) -> bool,
    /// What sidecars carry out of routes.
    pub(crate) features: Features,
}

/// A destination or a backend, and the Pods on which it rests.
#[derive(Debug)]
pub(crate) struct Resolved<T> {
    pub(crate) value: T,
    pub(crate) pods: BTreeSet<ObjectName>,
}

impl Resolver<'_> {
    /// What stands behind an address, or a host at it, with these entries, for the clients of a namespace; `None`: of one that no ServiceEntry names. It is the
    /// same for all of them, unless no Service and no workload has the address.
    pub(crate) fn destination(
        &self,
        address: SocketAddr,
        entries: &EntriesAt<'_>,
        client: Option<&str>,
    ) -> Resolved<Destination> {
        let mut pods = BTreeSet::new();
        let value = match self.index.service_at(address.ip()) {
            Some((name, service)) => self.service(name, service, address, &mut pods),
            None => self.pod(address, &mut pods),
        };
        let value = match value {
            Destination::Unknown => entries.destination(client),
            Destination::InCluster => match entries.destination(client) {
                Destination::Unknown => Destination::InCluster,
                Destination::ByHost(otherwise) if *otherwise == Destination::Unknown => {
                    Destination::ByHost(Box::new(Destination::InCluster))
                }
                listed => listed,
            },
            known => known,
        };
        Resolved { value, pods }
    }

    /// What stands behind an address for clients that no ServiceEntry names.
    #[cfg(test)]
    pub(crate) fn for_all_clients(&self, address: &str) -> Resolved<Destination> {
        let address: SocketAddr = address.parse().unwrap();
        self.destination(address, &self.entries(&address.into()), None)
    }

    /// The ServiceEntries at an address, or for a host at it.
    pub(crate) fn entries(&self, key: &DestinationKey) -> EntriesAt<'_> {
        EntriesAt::new(self.index, key)
    }

    /// The Service or the Pod that has this address.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<&ObjectName> {
        let service = self.index.service_at(ip).map(|(name, _)| name);
        service.or_else(|| self.index.pods_at(ip).map(|(name, _)| name).next())
    }

    /// Routes if the port has any for any client. Otherwise a backend if the Service says who stands behind the address,
    /// and one of the endpoints of its family is in the mesh, or there are none.
    fn service(
        &self,
        name: &ObjectName,
        service: &Service,
        address: SocketAddr,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Destination {
        let Some(port) = tcp_ports(service).find(|port| port.port == i32::from(address.port())) else {
            return Destination::Passthrough;
        };
        let protocol = port_protocol(port).carried();
        if self.has_routes(name, address.port()) {
            let key = RoutesKey { service: name.clone(), port: address.port() };
            return key.name().map_or_else(
                || Destination::Blocked("its Service has no valid name".into()),
                |name| Destination::Routed { protocol, target: DestinationTarget::Routes(name) },
            );
        }
        let slices = self.slices(name, address.is_ipv4());
        let endpoints = self.service_endpoints(service, &slices, port, pods);
        let selects = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let is_ours_to_say = !slices.is_empty() || selects.is_some_and(|selector| !selector.is_empty());
        let is_meshed = endpoints.values().any(|found| matches!(found.transport, Transport::Mesh(_)));
        if !is_meshed && (!endpoints.is_empty() || !is_ours_to_say) {
            return Destination::Passthrough;
        }
        let backend = BackendRef { object: name.to_ref(Kind::Service), port: address.port() };
        Destination::backend(protocol, backend)
    }

    /// The Pod that has this address: of several, one that lives. One without a sidecar is known if a headless Service
    /// leads to it.
    fn pod(&self, address: SocketAddr, pods: &mut BTreeSet<ObjectName>) -> Destination {
        let mut is_known = false;
        for (name, pod) in self.index.pods_at(address.ip()) {
            pods.insert(name.clone());
            // Some of its ports bypass its sidecar.
            is_known |= (self.is_workload)(pod);
            if self.workload(name, pod, address.port()).is_some() {
                let backend = BackendRef { object: name.to_ref(Kind::Pod), port: address.port() };
                let protocol = self.pod_port_protocol(name, pod, address.port());
                return Destination::backend(protocol.carried(), backend);
            }
        }
        if is_known || self.index.is_headless_endpoint(address.ip(), &*pods) {
            Destination::Passthrough
        } else if !pods.is_empty() || self.index.is_endpoint(address.ip()) {
            Destination::InCluster
        } else {
            Destination::Unknown
        }
    }
}

#[cfg(test)]
mod tests;
