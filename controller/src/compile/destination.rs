//! What stands behind an address that workloads dial.
//!
//! An address is a Service's cluster IP, with the Service's port, or a Pod's own. Everything else (a node port, an
//! external name, an address outside the cluster, a port that is not TCP) is outside the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};
use tidegate_core::contract::{flags, names, ports};
use tidegate_core::destination::{Destination, Endpoint, MeshService};
use tidegate_core::{Identity, TrustDomain};
use tidegate_crds::injection;

use crate::index::{Index, pod_of};
use crate::object::ObjectName;
use crate::object::pod::service_account;
use crate::service::tcp_ports;

/// Resolves addresses by the objects of one moment.
#[derive(Clone, Copy)]
pub(crate) struct Resolver<'i> {
    pub(crate) index: &'i Index,
    pub(crate) trust_domain: &'i TrustDomain,
    /// Whether a Pod has a sidecar.
    pub(crate) is_workload: fn(&Pod) -> bool,
}

/// A destination, and the Pods on which it rests.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) destination: Destination,
    pub(crate) pods: BTreeSet<ObjectName>,
}

impl Resolver<'_> {
    /// What stands behind an address.
    pub(crate) fn resolve(&self, address: SocketAddr) -> Resolved {
        let mut pods = BTreeSet::new();
        let destination = match self.index.service_at(address.ip()) {
            Some((name, service)) => self.service(name, service, address, &mut pods),
            None => self.pod(address, &mut pods),
        };
        Resolved { destination, pods }
    }

    /// The Service or the Pod that has this address.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<&ObjectName> {
        let service = self.index.service_at(ip).map(|(name, _)| name);
        service.or_else(|| self.index.pods_at(ip).map(|(name, _)| name).next())
    }

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
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let slices: Vec<_> =
            self.index.slices_of(name).filter(|slice| slice.address_type == family).collect();
        let mut endpoints = self.endpoints(&slices, port, is_ready, pods);
        if endpoints.is_empty() {
            // As kube-proxy does: rather one that is on its way out than none.
            endpoints = self.endpoints(&slices, port, is_serving_its_last, pods);
        }
        let selects = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let is_ours_to_say = !slices.is_empty() || selects.is_some_and(|selector| !selector.is_empty());
        match endpoints.iter().any(|endpoint| endpoint.identity.is_some()) {
            false if !endpoints.is_empty() || !is_ours_to_say => Destination::Passthrough,
            _ => Destination::Service(MeshService { name: name.to_shared(), endpoints }),
        }
    }

    /// The endpoints of a Service's port that are `wanted`, sorted by address, without those whose Pod is not known to
    /// be there with that address.
    fn endpoints(
        &self,
        slices: &[&std::sync::Arc<EndpointSlice>],
        port: &ServicePort,
        wanted: fn(&SliceEndpoint) -> bool,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Vec<Endpoint> {
        let mut found: BTreeMap<SocketAddr, Option<Identity>> = BTreeMap::new();
        for slice in slices {
            let Some(number) = target_port(slice, port) else { continue };
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| wanted(endpoint)) {
                // The addresses of an endpoint are the same place; the first one is to be used.
                let ip = endpoint.addresses.first().and_then(|ip| ip.parse::<IpAddr>().ok());
                let Some(ip) = ip else { continue };
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                let name = pod_of(namespace, endpoint);
                pods.extend(name.clone());
                // Unknown whether the pod has a sidecar; skip it rather than risk plaintext.
                if !self.index.is_current(namespace, endpoint) {
                    continue;
                }
                let identity = name.and_then(|name| self.identity(&name, endpoint, number));
                let known = found.entry(SocketAddr::new(ip, number)).or_default();
                *known = known.take().or(identity);
            }
        }
        found.into_iter().map(|(address, identity)| Endpoint { address, identity }).collect()
    }

    /// Who an endpoint is, if its Pod has a sidecar that takes the connections to the port. The reference to the Pod
    /// decides, never the address: addresses are reused by other Pods.
    fn identity(&self, name: &ObjectName, endpoint: &SliceEndpoint, port: u16) -> Option<Identity> {
        let pod = self.index.pod(name)?;
        let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_ref());
        let is_another = uid.is_some() && pod.metadata.uid.is_some() && uid != pod.metadata.uid.as_ref();
        if is_another { None } else { self.workload(name, pod, port) }
    }

    /// The Pod that has this address: of several, one that lives.
    fn pod(&self, address: SocketAddr, pods: &mut BTreeSet<ObjectName>) -> Destination {
        for (name, pod) in self.index.pods_at(address.ip()) {
            pods.insert(name.clone());
            if let Some(identity) = self.workload(name, pod, address.port()) {
                let endpoints = vec![Endpoint { address, identity: Some(identity) }];
                return Destination::Service(MeshService { name: name.to_shared(), endpoints });
            }
        }
        Destination::Passthrough
    }

    fn workload(&self, name: &ObjectName, pod: &Pod, port: u16) -> Option<Identity> {
        if !(self.is_workload)(pod) || bypasses_sidecar(pod, port) {
            return None;
        }
        Identity::new(self.trust_domain.clone(), &name.namespace, service_account(pod)).ok()
    }
}

/// The number behind a Service's port in a slice; ports are matched by name.
fn target_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let mut ports = slice.ports.iter().flatten();
    let listed = ports.find(|listed| {
        listed.protocol.as_deref().unwrap_or("TCP") == "TCP" && name(&listed.name) == name(&port.name)
    })?;
    u16::try_from(listed.port?).ok().filter(|number| *number > 0)
}

fn is_ready(endpoint: &SliceEndpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn is_serving_its_last(endpoint: &SliceEndpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_some_and(|is| is.terminating == Some(true) && is.serving.unwrap_or(true))
}

/// Whether connections to a port of a Pod go to the app without passing its sidecar, as the Pod was started.
fn bypasses_sidecar(pod: &Pod, port: u16) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut intercepts =
        containers.filter(|container| container.name == names::INTERCEPT || container.name == names::SIDECAR);
    let is_injected = injection::has_sidecar(pod);
    (is_injected && ports::NOT_REDIRECTED.contains(&port))
        || intercepts.any(|container| excluded_ports(container.args.as_deref().unwrap_or_default(), port))
}

fn excluded_ports(arguments: &[String], port: u16) -> bool {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(rest) =
            argument.strip_prefix("--").and_then(|flag| flag.strip_prefix(flags::EXCLUDE_INBOUND_PORTS))
        else {
            continue;
        };
        let list = match rest.strip_prefix('=') {
            Some(list) => Some(list),
            None if rest.is_empty() => arguments.next().map(String::as_str),
            None => None,
        };
        if list.into_iter().flat_map(|list| list.split(',')).any(|text| text.trim().parse() == Ok(port)) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
