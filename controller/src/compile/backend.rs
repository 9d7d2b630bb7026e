//! Backends: the endpoints of a Service's port, or of a Pod's own addresses; a ServiceEntry's are in `service_entry.rs`.
//!
//! Whether an endpoint is in the mesh is decided by the Pod that it refers to: with a sidecar that takes the
//! connections to its port, the transport is mutual TLS with that Pod's identity; otherwise it is plaintext. An
//! endpoint whose Pod cannot be found, or is no longer the one that has the address, is left out: plaintext to an
//! unknown peer would be a downgrade.
//!
//! Every Pod that was looked up is recorded in [`Resolved::pods`](super::destination::Resolved), also one that was
//! not found, so that its appearance compiles the backend again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};
use tidegate_core::backend::{Backend, BackendRef, Endpoint, Transport};
use tidegate_core::contract::{flags, names, ports};
use tidegate_core::{Identity, PortProtocol};
use tidegate_crds::injection;

use super::destination::{Resolved, Resolver};
use super::endpoint_choice::{affinity, is_local, is_ready, is_serving_its_last, topology};
use super::upstream_traffic_setting::connections::backend_limits;
use crate::index::{pod_addresses, pod_of, service_of};
use crate::object::pod::{self, service_account};
use crate::object::{Kind, ObjectName};
use crate::service::{container_port_name, is_headless, port_protocol, tcp_ports};

/// An endpoint of a Service's port.
pub(super) struct FoundEndpoint<'s> {
    pub(super) transport: Transport,
    /// As it is listed in an EndpointSlice.
    listed: &'s SliceEndpoint,
    /// What its Pod belongs to.
    workload: Option<Arc<str>>,
}

impl<'s> FoundEndpoint<'s> {
    /// The node that the endpoint runs on, if the slice names it.
    fn node(&self) -> Option<&'s str> {
        self.listed.node_name.as_deref()
    }
}

impl Resolver<'_> {
    /// The endpoints of both families behind a name, of which a connection takes those of the address that was dialled.
    /// `None` if the Service, port or workload does not exist.
    pub(crate) fn backend(&self, name: &BackendRef) -> Resolved<Option<Backend>> {
        let object = ObjectName::new(name.object.namespace.clone(), name.object.name.clone());
        let mut pods = BTreeSet::new();
        let value = match &*name.object.kind {
            kind if kind == Kind::Service.as_str() => self.behind_service(name, &object, &mut pods),
            kind if kind == Kind::Pod.as_str() => self.behind_pod(name, &object, &mut pods),
            kind if kind == Kind::ServiceEntry.as_str() => self.behind_entry(name, &object, &mut pods),
            _ => None,
        };
        Resolved { value, pods }
    }

    /// The endpoints of both families behind the Service's own port; `pods` collects what the result depends on.
    fn behind_service(
        &self,
        name: &BackendRef,
        object: &ObjectName,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Option<Backend> {
        let service = self.index.service(object)?;
        let port = tcp_ports(service).find(|listed| listed.port == i32::from(name.port))?;
        let slices = [true, false].map(|is_ipv4| self.slices(object, is_ipv4));
        let mut found = BTreeMap::new();
        for slices in &slices {
            found.extend(self.service_endpoints(service, slices, port, pods));
        }
        let topology = topology(service, found.iter().map(|(address, found)| (*address, found.listed)));
        let workloads = found.iter().filter_map(|(address, found)| Some((*address, found.workload.clone()?)));
        let workloads = workloads.collect();
        let endpoints = found.into_iter().map(|(address, found)| Endpoint::new(address, found.transport));
        let backend = Backend::new(name.clone(), port_protocol(port).spoken(), endpoints.collect());
        let limits = backend_limits(self.index, object);
        Some(Backend { topology, workloads, affinity: affinity(service), limits, ..backend })
    }

    /// A Pod's own addresses, for a destination that was dialled by Pod IP. `None` unless its sidecar takes
    /// connections to the port.
    fn behind_pod(
        &self,
        name: &BackendRef,
        object: &ObjectName,
        pods: &mut BTreeSet<ObjectName>,
    ) -> Option<Backend> {
        pods.insert(object.clone());
        let pod = self.index.pod(object)?;
        let identity = self.workload(object, pod, name.port)?;
        let addresses: BTreeSet<_> = pod_addresses(pod).map(|ip| SocketAddr::new(ip, name.port)).collect();
        let workload = Arc::<str>::from(pod::workload(pod));
        let workloads = addresses.iter().map(|address| (*address, workload.clone())).collect();
        let mesh = |address| Endpoint::new(address, Transport::Mesh(identity.clone()));
        let protocol = self.pod_port_protocol(object, pod, name.port).spoken();
        let backend = Backend::new(name.clone(), protocol, addresses.into_iter().map(mesh).collect());
        Some(Backend { workloads, ..backend })
    }

    /// The protocol of a Pod's port, for clients that dial the Pod's own address: as a headless Service declares it, in
    /// front of which clients get such addresses, else by the name of the container's port.
    pub(super) fn pod_port_protocol(&self, name: &ObjectName, pod: &Pod, port: u16) -> PortProtocol {
        let of_slice = |slice: &Arc<EndpointSlice>| {
            let service = service_of(slice)?;
            let service = self.index.service(&service).filter(|service| is_headless(service))?;
            let listed = slice.ports.iter().flatten().find(|listed| listed.port == Some(i32::from(port)))?;
            let declared = tcp_ports(service)
                .find(|declared| declared.name.as_deref() == listed.name.as_deref().filter(|n| !n.is_empty()))
                .and_then(|declared| declared.app_protocol.as_deref());
            let app_protocol = listed.app_protocol.as_deref().or(declared);
            Some(PortProtocol::of(app_protocol, listed.name.as_deref(), [port]))
        };
        let by_service = self.index.slices_of_pod(name).find_map(of_slice);
        by_service.unwrap_or_else(|| PortProtocol::of(None, container_port_name(pod, port), [port]))
    }

    /// A Service's EndpointSlices of one family.
    pub(super) fn slices(&self, service: &ObjectName, is_ipv4: bool) -> Vec<&Arc<EndpointSlice>> {
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        self.index.slices_of(service).filter(|slice| slice.address_type == family).collect()
    }

    /// The endpoints of a Service's port in the slices of one family: those that are ready; if none is, those that serve
    /// their last, as kube-proxy does. If clients use only the endpoints on their node, that is decided for each node.
    pub(super) fn service_endpoints<'s>(
        &self,
        service: &Service,
        slices: &[&'s Arc<EndpointSlice>],
        port: &ServicePort,
        pods: &mut BTreeSet<ObjectName>,
    ) -> BTreeMap<SocketAddr, FoundEndpoint<'s>> {
        let mut ready = self.endpoints(slices, port, is_ready, pods);
        let is_local = is_local(service);
        if ready.is_empty() || is_local {
            let nodes: BTreeSet<_> = ready.values().map(FoundEndpoint::node).collect();
            let last = self.endpoints(slices, port, is_serving_its_last, pods);
            ready.extend(last.into_iter().filter(|(_, found)| !is_local || !nodes.contains(&found.node())));
        }
        ready
    }

    /// The endpoints of a Service's port that are `wanted`, without those whose Pod is not known to be there with that
    /// address.
    fn endpoints<'s>(
        &self,
        slices: &[&'s Arc<EndpointSlice>],
        port: &ServicePort,
        wanted: fn(&SliceEndpoint) -> bool,
        pods: &mut BTreeSet<ObjectName>,
    ) -> BTreeMap<SocketAddr, FoundEndpoint<'s>> {
        let mut found: BTreeMap<SocketAddr, FoundEndpoint<'s>> = BTreeMap::new();
        for slice in slices {
            let Some(number) = target_port(slice, port) else { continue };
            for listed in slice.endpoints.iter().flatten().filter(|endpoint| wanted(endpoint)) {
                // The addresses of an endpoint are the same place; the first one is to be used.
                let ip = listed.addresses.first().and_then(|ip| ip.parse::<IpAddr>().ok());
                let Some(ip) = ip else { continue };
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                let name = pod_of(namespace, listed);
                pods.extend(name.clone());
                // Unknown whether the pod has a sidecar; skip it rather than risk plaintext.
                if !self.index.is_current(namespace, listed) {
                    continue;
                }
                let workload = || Some(pod::workload(self.index.pod(name.as_ref()?)?).into());
                let known = found.entry(SocketAddr::new(ip, number)).or_insert_with(|| FoundEndpoint {
                    transport: Transport::Plain,
                    listed,
                    workload: workload(),
                });
                let identity = name.and_then(|name| self.identity(&name, listed, number));
                if let (Transport::Plain, Some(identity)) = (&known.transport, identity) {
                    known.transport = Transport::Mesh(identity);
                }
            }
        }
        found
    }

    /// Who an endpoint is, if its Pod has a sidecar that takes the connections to the port. The reference to the Pod
    /// decides, never the address: addresses are reused by other Pods.
    fn identity(&self, name: &ObjectName, endpoint: &SliceEndpoint, port: u16) -> Option<Identity> {
        let pod = self.index.pod(name)?;
        let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_ref());
        let is_another = uid.is_some() && pod.metadata.uid.is_some() && uid != pod.metadata.uid.as_ref();
        if is_another { None } else { self.workload(name, pod, port) }
    }

    /// Who a Pod is, if it has a sidecar that takes the connections to the port.
    pub(crate) fn workload(&self, name: &ObjectName, pod: &Pod, port: u16) -> Option<Identity> {
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

/// Whether connections to a port of a Pod go to the app without passing its sidecar, as the Pod was started.
pub fn bypasses_sidecar(pod: &Pod, port: u16) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut intercepts =
        containers.filter(|container| container.name == names::INTERCEPT || container.name == names::SIDECAR);
    let is_injected = injection::has_sidecar(pod);
    (is_injected && ports::NOT_REDIRECTED.contains(&port))
        || intercepts.any(|container| excluded_ports(container.args.as_deref().unwrap_or_default(), port))
}

/// Whether the arguments of a container of ours list a port in `--exclude-inbound-ports`, in either spelling,
/// `--flag=1,2` or `--flag 1,2`.
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
