//! A Service and a Pod behind it: selectors, target ports and the app's protocol.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{ContainerPort, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tidegate_core::PortProtocol;
use tidegate_core::contract::names;
use tidegate_core::policy::AppProtocol;

/// The label of an EndpointSlice that names its Service.
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The TCP ports that a Pod's containers declare by name, without our own sidecar's. Of several with one name, the
/// first.
pub(crate) struct NamedPorts<'o>(HashMap<&'o str, u16>);

/// A TCP port of a Service, on the Pod's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TargetPort<'o> {
    /// The Service port's name.
    pub(crate) name: Option<&'o str>,
    /// The pod's port.
    pub(crate) number: u16,
    /// `appProtocol` as written.
    pub(crate) app_protocol: Option<&'o str>,
}

impl<'o> NamedPorts<'o> {
    pub(crate) fn of(pod: &'o Pod) -> Self {
        let mut ports = HashMap::new();
        for port in container_ports(pod) {
            let number = u16::try_from(port.container_port).ok();
            if let (Some(name), Some(number)) = (port.name.as_deref(), number) {
                ports.entry(name).or_insert(number);
            }
        }
        Self(ports)
    }

    /// Whether the Pod declares no named TCP port, so that no named `targetPort` can be resolved at it.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The ports of a Pod behind a Service that selects it, without named `targetPort`s that the Pod does not declare.
pub(crate) fn target_ports_of<'o>(
    service: &'o Service,
    named: &NamedPorts<'_>,
) -> impl Iterator<Item = TargetPort<'o>> {
    tcp_ports(service).filter_map(|port| {
        let number = match &port.target_port {
            Some(IntOrString::String(name)) => {
                named.0.get(name.as_str()).copied().filter(|port| *port > 0)?
            }
            _ => numbered_target(port)?,
        };
        Some(TargetPort { name: port.name.as_deref(), number, app_protocol: port.app_protocol.as_deref() })
    })
}

impl TargetPort<'_> {
    /// The app's protocol on this port.
    pub(crate) fn protocol(&self) -> AppProtocol {
        app_protocol(self.app_protocol, self.name)
    }
}

/// Whether a Service's selector selects a Pod of its namespace. Without a selector it selects none.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return false };
    service.metadata.namespace == pod.metadata.namespace && has_labels(pod, selector)
}

/// Whether a Pod has all of these labels.
pub(crate) fn has_labels(pod: &Pod, labels: &BTreeMap<String, String>) -> bool {
    let own = pod.metadata.labels.as_ref();
    labels.iter().all(|(name, value)| own.and_then(|own| own.get(name)) == Some(value))
}

/// A Service's ports that carry TCP.
pub(crate) fn tcp_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    ports.into_iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
}

/// The `targetPort` of a Service's port as a number; by default the port itself. `None` for a named one.
pub(crate) fn numbered_target(port: &ServicePort) -> Option<u16> {
    let number = match &port.target_port {
        Some(IntOrString::String(_)) => return None,
        Some(IntOrString::Int(number)) if *number != 0 => *number,
        _ => port.port,
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// What connections to a Service's port carry, and what its endpoints speak.
pub(crate) fn port_protocol(port: &ServicePort) -> PortProtocol {
    let numbers = u16::try_from(port.port).ok().into_iter().chain(numbered_target(port));
    PortProtocol::of(port.app_protocol.as_deref(), port.name.as_deref(), numbers)
}

/// Whether clients get the addresses of a Service's endpoints instead of one of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether a Service is only a name for one outside the cluster (`ExternalName`).
pub(crate) fn is_alias(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

/// Whether clients may dial an address of the Service's own, so that what they send can be routed.
pub(crate) fn has_cluster_ip(service: &Service) -> bool {
    !is_alias(service) && !is_headless(service)
}

/// The app's protocol once an ingress controller's TLS is terminated: from the Service port's `appProtocol`, else from the prefix of the port's name. Unknown values
/// are ignored.
pub(crate) fn app_protocol(app_protocol: Option<&str>, port_name: Option<&str>) -> AppProtocol {
    let by_word = |word: &str| match word.to_ascii_lowercase().as_str() {
        "tcp" => AppProtocol::Tcp,
        "tcp-server-first" => AppProtocol::TcpServerFirst,
        "grpc" | "h2c" | "http2" | "kubernetes.io/h2c" => AppProtocol::H2c,
        "http" | "https" | "ws" | "wss" | "kubernetes.io/ws" | "kubernetes.io/wss" => AppProtocol::Http,
        _ => AppProtocol::Undeclared,
    };
    if let Some(word) = app_protocol {
        return by_word(word);
    }
    let name = port_name.unwrap_or_default();
    // The longer one first: both start with "tcp".
    let prefixes = ["tcp-server-first", "tcp", "grpc", "h2c", "http2", "http"];
    let has_prefix = |prefix: &&str| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    prefixes.into_iter().find(has_prefix).map_or(AppProtocol::Undeclared, by_word)
}

/// The TCP ports that a Pod's containers declare, without our own sidecar's, with the app's protocol by their names.
pub(crate) fn declared_ports(pod: &Pod) -> impl Iterator<Item = (u16, AppProtocol)> {
    container_ports(pod).filter_map(|port| {
        let number = u16::try_from(port.container_port).ok().filter(|number| *number > 0)?;
        Some((number, app_protocol(None, port.name.as_deref())))
    })
}

/// The name of the container's port with this number, if it has one.
pub(crate) fn container_port_name(pod: &Pod, number: u16) -> Option<&str> {
    container_ports(pod).find(|port| port.container_port == i32::from(number))?.name.as_deref()
}

/// All declared TCP ports of the app's containers and of native sidecars (init containers with a restart policy), in
/// the order of the Pod's spec. The protocol defaults to TCP, as in the API.
fn container_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let spec = pod.spec.iter();
    let sidecars = spec.clone().flat_map(|spec| spec.init_containers.iter().flatten());
    let containers = spec.flat_map(|spec| &spec.containers).chain(sidecars);
    containers
        .filter(|container| container.name != names::SIDECAR)
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_app_speaks_comes_from_its_app_protocol_else_from_the_port_s_name() {
        for (given, name, expected) in [
            (None, None, AppProtocol::Undeclared),
            (None, Some("web"), AppProtocol::Undeclared),
            (None, Some("http"), AppProtocol::Http),
            (None, Some("http-admin"), AppProtocol::Http),
            (None, Some("tcp"), AppProtocol::Tcp),
            (None, Some("tcp-db"), AppProtocol::Tcp),
            (None, Some("tcpdump"), AppProtocol::Undeclared),
            (None, Some("tcp-server-first"), AppProtocol::TcpServerFirst),
            (None, Some("tcp-server-first-smtp"), AppProtocol::TcpServerFirst),
            (None, Some("grpc-api"), AppProtocol::H2c),
            (None, Some("http2-api"), AppProtocol::H2c),
            (None, Some("h2c"), AppProtocol::H2c),
            (Some("http"), Some("grpc-api"), AppProtocol::Http),
            (Some("https"), None, AppProtocol::Http),
            (Some("example.com/mine"), Some("http"), AppProtocol::Undeclared),
            (Some("gRPC"), None, AppProtocol::H2c),
            (Some("kubernetes.io/h2c"), None, AppProtocol::H2c),
            (Some("kubernetes.io/ws"), Some("tcp-x"), AppProtocol::Http),
            (Some("tcp"), Some("http-x"), AppProtocol::Tcp),
            (Some("tcp-server-first"), None, AppProtocol::TcpServerFirst),
        ] {
            assert_eq!(app_protocol(given, name), expected, "{given:?} {name:?}");
        }
    }
}
