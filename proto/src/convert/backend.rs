//! Backends and their endpoints.
//!
//! On the wire a backend is its name, one [`BackendProtocol`](tidegate_core::backend::BackendProtocol) and a flat
//! list of endpoints of both families. An endpoint is an address without brackets, a port, a transport and, if
//! connections go through a forward proxy, that proxy.
//!
//! Refused: an address that occurs twice, because a sidecar counts connections to endpoints, and ejects endpoints, by
//! address; an absent transport, which would otherwise mean plaintext; TLS without any accepted name, which would
//! accept every server of a root; an unknown traffic policy, which may leave endpoints out. An empty list of endpoints is
//! valid: the backend exists and connections to it are refused. An empty list of identities is refused. Endpoints and names beside an original destination are refused.

use std::net::{IpAddr, SocketAddr};

use tidegate_core::backend::{Backend, BackendRef, Endpoint, OriginalDestination, ProxiedAs, Transport};
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::tls_origination::{ServerName, ServerVerification, TlsOrigination, TrustRoots};
use tidegate_core::{DnsName, ObjectRef};

use super::backend_limits::{limits_from_wire, limits_to_wire};
use super::dns_endpoints::{dns_from_wire, dns_to_wire};
use super::duration::{duration_from_wire, duration_to_wire};
use super::protocol::{backend_protocol_from_wire, backend_protocol_to_wire};
use super::topology::{EndpointPlace, topology_from_wire, topology_to_wire};
use super::{
    ConversionError, bad, identities_from_wire, identities_to_wire, identity_from_wire, identity_to_wire,
    missing, object_from_wire, object_to_wire, port_number,
};
use crate::discovery as wire;

impl From<&Backend> for wire::Backend {
    fn from(backend: &Backend) -> Self {
        let mut message = Self {
            name: Some(backend_ref_to_wire(&backend.name)),
            protocol: backend_protocol_to_wire(backend.protocol).into(),
            endpoints: backend.endpoints.iter().map(endpoint_to_wire).collect(),
            internal_traffic_policy: wire::InternalTrafficPolicy::Cluster.into(),
            client_affinity: backend.affinity.map(duration_to_wire),
            original_destination: backend
                .original_destination
                .map(|original| wire::OriginalDestination { port: original.port.map(u32::from) }),
            dns: backend.dns.as_ref().map(dns_to_wire),
            hosts: backend.hosts.iter().map(ToString::to_string).collect(),
            limits: limits_to_wire(&backend.limits),
            proxied_as: proxied_as_to_wire(backend.proxied_as).into(),
        };
        topology_to_wire(&backend.topology, &backend.endpoints, &mut message);
        for (endpoint, message) in backend.endpoints.iter().zip(&mut message.endpoints) {
            message.workload =
                backend.workloads.get(&endpoint.address).map(ToString::to_string).unwrap_or_default();
            message.weight = backend.weights.get(&endpoint.address).copied().unwrap_or_default();
        }
        message
    }
}

impl TryFrom<wire::Backend> for Backend {
    type Error = ConversionError;

    fn try_from(mut backend: wire::Backend) -> Result<Self, ConversionError> {
        let name = backend_ref_from_wire("name", backend.name)?;
        let protocol = backend_protocol_from_wire("protocol", backend.protocol)?;
        let places = backend.endpoints.iter_mut().map(EndpointPlace::take).collect();
        let workloads: Vec<_> =
            backend.endpoints.iter_mut().map(|endpoint| std::mem::take(&mut endpoint.workload)).collect();
        let weights: Vec<u32> = backend.endpoints.iter().map(|endpoint| endpoint.weight).collect();
        let endpoint = |(i, endpoint)| endpoint_from_wire(&format!("endpoints[{i}]"), endpoint);
        let endpoints: Vec<Endpoint> =
            backend.endpoints.into_iter().enumerate().map(endpoint).collect::<Result<_, _>>()?;
        let mut addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        addresses.sort_unstable();
        if let Some(twice) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad("endpoints", format!("duplicate {}", twice[0])));
        }
        let topology = topology_from_wire(backend.internal_traffic_policy, &endpoints, places)?;
        let workloads = endpoints.iter().zip(workloads).filter(|(_, workload)| !workload.is_empty());
        let workloads = workloads.map(|(endpoint, workload)| (endpoint.address, workload.into())).collect();
        let weights = endpoints.iter().zip(weights).filter(|(_, weight)| *weight > 0);
        let weights = weights.map(|(endpoint, weight)| (endpoint.address, weight)).collect();
        let affinity = backend.client_affinity.map(|time| duration_from_wire("client_affinity", Some(time)));
        let original = |wire::OriginalDestination { port }| {
            let port = port.map(|port| port_number("original_destination.port", port)).transpose()?;
            Ok(OriginalDestination { port })
        };
        let original_destination = backend.original_destination.map(original).transpose()?;
        if original_destination.is_some() && !endpoints.is_empty() {
            return Err(bad("endpoints", "not empty beside original_destination"));
        }
        let affinity = affinity.transpose()?;
        let dns = backend.dns.map(dns_from_wire).transpose()?;
        if original_destination.is_some() && dns.is_some() {
            return Err(bad("dns", "set beside original_destination"));
        }
        let host = |(i, host): (usize, String)| {
            DnsPattern::parse(&host).map_err(|error| bad(&format!("hosts[{i}]"), error))
        };
        let hosts = backend.hosts.into_iter().enumerate().map(host).collect::<Result<_, _>>()?;
        let limits = limits_from_wire("limits", backend.limits)?;
        let proxied_as = proxied_as_from_wire(backend.proxied_as)?;
        Ok(Self {
            name,
            protocol,
            endpoints,
            topology,
            workloads,
            weights,
            dns,
            hosts,
            original_destination,
            proxied_as,
            affinity,
            limits,
        })
    }
}

fn proxied_as_to_wire(proxied_as: Option<ProxiedAs>) -> wire::ProxiedAs {
    match proxied_as {
        None => wire::ProxiedAs::None,
        Some(ProxiedAs::Host) => wire::ProxiedAs::Host,
        Some(ProxiedAs::Address) => wire::ProxiedAs::Address,
    }
}

/// An unknown value could mean that connections must not be direct.
fn proxied_as_from_wire(proxied_as: i32) -> Result<Option<ProxiedAs>, ConversionError> {
    match wire::ProxiedAs::try_from(proxied_as) {
        Ok(wire::ProxiedAs::None) => Ok(None),
        Ok(wire::ProxiedAs::Host) => Ok(Some(ProxiedAs::Host)),
        Ok(wire::ProxiedAs::Address) => Ok(Some(ProxiedAs::Address)),
        Err(_) => Err(bad("proxied_as", format!("unknown value {proxied_as}"))),
    }
}

/// References to backends are the same message in destinations, routes and mirrors.
pub(super) fn backend_ref_to_wire(backend: &BackendRef) -> wire::BackendRef {
    wire::BackendRef { object: Some(object_to_wire(&backend.object)), port: backend.port.into() }
}

/// The object may be of any kind: a sidecar only compares names. An error's path is below `path`.
pub(super) fn backend_ref_from_wire(
    path: &str,
    backend: Option<wire::BackendRef>,
) -> Result<BackendRef, ConversionError> {
    let backend = backend.ok_or_else(|| missing(path))?;
    let object = object_from_wire(&format!("{path}.object"), backend.object)?;
    Ok(BackendRef { object, port: port_number(&format!("{path}.port"), backend.port)? })
}

/// The IP address is text, so that one field serves both families; `SocketAddr`'s own text would need brackets.
fn endpoint_to_wire(endpoint: &Endpoint) -> wire::Endpoint {
    let transport = match &endpoint.transport {
        Transport::Plain => wire::endpoint::Transport::Plain(wire::PlainTransport {}),
        Transport::Mesh(identity) => wire::endpoint::Transport::Mesh(identity_to_wire(identity)),
        Transport::MeshOneOf(all) => wire::endpoint::Transport::MeshOneOf(identities_to_wire(all)),
        Transport::Tls(tls) => wire::endpoint::Transport::Tls(tls_to_wire(tls)),
    };
    wire::Endpoint {
        address: endpoint.address.ip().to_string(),
        port: endpoint.address.port().into(),
        transport: Some(transport),
        node: String::new(),
        hints: None,
        workload: String::new(),
        weight: 0,
    }
}

/// One endpoint of a list; `path` has its place, such as `endpoints[3]`.
fn endpoint_from_wire(path: &str, endpoint: wire::Endpoint) -> Result<Endpoint, ConversionError> {
    let ip: IpAddr = endpoint.address.parse().map_err(|_| {
        bad(&format!("{path}.address"), format!("{:?} is not an IP address", endpoint.address))
    })?;
    let port = port_number(&format!("{path}.port"), endpoint.port)?;
    let transport = match endpoint.transport.ok_or_else(|| missing(&format!("{path}.transport")))? {
        wire::endpoint::Transport::Plain(wire::PlainTransport {}) => Transport::Plain,
        wire::endpoint::Transport::Mesh(identity) => {
            Transport::Mesh(identity_from_wire(&format!("{path}.mesh"), &identity)?)
        }
        wire::endpoint::Transport::MeshOneOf(all) => {
            Transport::MeshOneOf(identities_from_wire(&format!("{path}.mesh_one_of"), &all)?)
        }
        wire::endpoint::Transport::Tls(tls) => {
            Transport::Tls(Box::new(tls_from_wire(&format!("{path}.tls"), tls)?))
        }
    };
    Ok(Endpoint::new(SocketAddr::new(ip, port), transport))
}

/// An absent SNI is an empty string, which no server name can be.
pub(super) fn tls_to_wire(tls: &TlsOrigination) -> wire::TlsOrigination {
    let roots = match &tls.verify.roots {
        TrustRoots::System => wire::trust_roots::Roots::System(wire::SystemRoots {}),
        TrustRoots::Bundles(objects) => {
            let objects = objects.iter().map(object_to_wire).collect();
            wire::trust_roots::Roots::Bundles(wire::RootBundles { objects })
        }
        TrustRoots::Pem(pem) => wire::trust_roots::Roots::Pem(pem.to_string()),
    };
    let name = |name: &ServerName| match name {
        ServerName::Dns(name) => wire::server_name::Name::Dns(name.to_string()),
        ServerName::Uri(uri) => wire::server_name::Name::Uri(uri.to_string()),
    };
    wire::TlsOrigination {
        sni: tls.sni.as_deref().unwrap_or_default().to_owned(),
        roots: Some(wire::TrustRoots { roots: Some(roots) }),
        names: tls.verify.names.iter().map(|n| wire::ServerName { name: Some(name(n)) }).collect(),
        client_certificate: tls.client_certificate.as_ref().map(object_to_wire),
    }
}

/// Root bundles and the client certificate are references to objects, not their content.
pub(super) fn tls_from_wire(
    path: &str,
    tls: wire::TlsOrigination,
) -> Result<TlsOrigination, ConversionError> {
    let field = |name: &str| format!("{path}.{name}");
    let roots = match tls.roots.and_then(|roots| roots.roots).ok_or_else(|| missing(&field("roots")))? {
        wire::trust_roots::Roots::System(wire::SystemRoots {}) => TrustRoots::System,
        wire::trust_roots::Roots::Bundles(bundles) => {
            TrustRoots::Bundles(objects_from_wire(&field("roots.bundles"), bundles.objects)?)
        }
        wire::trust_roots::Roots::Pem(pem) => TrustRoots::Pem(pem.into()),
    };
    let name = |(i, name): (usize, wire::ServerName)| {
        let path = field(&format!("names[{i}]"));
        match name.name.ok_or_else(|| missing(&path))? {
            wire::server_name::Name::Dns(name) => {
                DnsName::parse(&name).map(ServerName::Dns).map_err(|error| bad(&path, error))
            }
            wire::server_name::Name::Uri(uri) => Ok(ServerName::Uri(uri.into())),
        }
    };
    let names: Vec<_> = tls.names.into_iter().enumerate().map(name).collect::<Result<_, _>>()?;
    if names.is_empty() {
        return Err(missing(&field("names")));
    }
    let certificate = tls.client_certificate;
    let certificate =
        certificate.map(|object| object_from_wire(&field("client_certificate"), Some(object))).transpose()?;
    Ok(TlsOrigination {
        sni: (!tls.sni.is_empty()).then(|| tls.sni.into()),
        verify: ServerVerification { roots, names },
        client_certificate: certificate,
    })
}

fn objects_from_wire(path: &str, objects: Vec<wire::ObjectRef>) -> Result<Vec<ObjectRef>, ConversionError> {
    let object = |(i, object)| object_from_wire(&format!("{path}[{i}]"), Some(object));
    objects.into_iter().enumerate().map(object).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use prost::Message;
    use tidegate_core::backend::{
        BackendLimits, BackendProtocol, DnsAnswers, DnsEndpoint, DnsEndpoints, Topology, TopologyHints,
    };
    use tidegate_core::{Identity, TrustDomain};

    use super::*;

    fn backend() -> Backend {
        let identity = Identity::new(TrustDomain::default(), "a", "b").unwrap();
        let other = Identity::new(TrustDomain::default(), "a", "c").unwrap();
        let tls = |roots, sni: Option<&str>| {
            let names = vec![
                ServerName::Dns(DnsName::parse("a.example").unwrap()),
                ServerName::Uri("spiffe://a/b".into()),
            ];
            Transport::Tls(Box::new(TlsOrigination {
                sni: sni.map(Into::into),
                verify: ServerVerification { roots, names },
                client_certificate: sni.map(|_| ObjectRef::new("Secret", "a", "client")),
            }))
        };
        let endpoint = |address: &str, transport| Endpoint::new(address.parse().unwrap(), transport);
        let bundles = TrustRoots::Bundles(vec![ObjectRef::new("ConfigMap", "a", "roots")]);
        Backend {
            name: BackendRef { object: ObjectRef::new("Service", "a", "c"), port: 80 },
            protocol: BackendProtocol::Http1,
            endpoints: vec![
                endpoint("10.0.0.1:80", Transport::Mesh(identity.clone())),
                endpoint("[fd00::1]:8080", Transport::Plain),
                endpoint("192.0.2.2:443", tls(TrustRoots::System, Some("a.example"))),
                endpoint("192.0.2.1:443", tls(bundles, None)),
                endpoint("192.0.2.3:443", tls(TrustRoots::Pem("pem".into()), None)),
                endpoint("10.0.0.2:80", Transport::MeshOneOf([identity, other].into())),
            ],
            topology: Topology::Any,
            workloads: [("10.0.0.1:80".parse().unwrap(), "cart".into())].into(),
            weights: [("10.0.0.1:80".parse().unwrap(), 3)].into(),
            dns: None,
            hosts: vec![],
            original_destination: None,
            proxied_as: None,
            affinity: None,
            limits: BackendLimits::default(),
        }
    }

    #[test]
    fn a_backend_comes_back_from_the_wire_as_it_was() {
        let empty =
            Backend { endpoints: vec![], workloads: BTreeMap::new(), weights: BTreeMap::new(), ..backend() };
        let address = backend().endpoints[1].address;
        let hints = TopologyHints { nodes: vec!["node-1".into()], zones: vec!["a".into(), "b".into()] };
        let local = Topology::SameNode([(address, "node-1".into())].into());
        let none_local = Topology::SameNode(BTreeMap::new());
        let topologies = [local, none_local, Topology::Hints([(address, hints)].into())];
        let placed = topologies.map(|topology| Backend { topology, ..backend() });
        let sticky = Backend { affinity: Some(Duration::from_secs(10_800)), ..backend() };
        let original = [None, Some(8443)].map(|port| {
            let original_destination = Some(OriginalDestination { port });
            Backend { original_destination, proxied_as: Some(ProxiedAs::Address), ..empty.clone() }
        });
        let identity = Identity::new(TrustDomain::default(), "a", "b").unwrap();
        let names = [Some("a.example"), None].map(|name| DnsEndpoint {
            name: name.map(|name| DnsName::parse(name).unwrap()),
            port: 443,
            transport: name.map_or(Transport::Plain, |_| Transport::Mesh(identity.clone())),
            weight: 7,
        });
        let hosts = ["a.example", "*.b.example"].map(|host| DnsPattern::parse(host).unwrap()).to_vec();
        let looked_up = [DnsAnswers::All, DnsAnswers::First].map(|answers| {
            let dns = Some(DnsEndpoints { names: names.to_vec(), answers });
            Backend { dns, hosts: hosts.clone(), proxied_as: Some(ProxiedAs::Host), ..backend() }
        });
        let limits = BackendLimits {
            max_requests: Some(0),
            max_requests_per_connection: Some(7),
            connect_timeout: Some(Duration::from_millis(1500)),
            ..BackendLimits::default()
        };
        let limited = Backend { limits, ..backend() };
        let all =
            [backend(), empty, sticky, limited].into_iter().chain(placed).chain(original).chain(looked_up);
        for backend in all {
            let bytes = wire::Backend::from(&backend).encode_to_vec();
            let decoded = wire::Backend::decode(bytes.as_slice()).unwrap();
            assert_eq!(Backend::try_from(decoded).unwrap(), backend);
        }
    }

    #[test]
    fn what_is_not_understood_refuses_the_whole_backend_and_names_the_field() {
        let spoil = |change: fn(&mut Vec<wire::Endpoint>)| {
            let mut backend = wire::Backend::from(&backend());
            change(&mut backend.endpoints);
            Backend::try_from(backend).unwrap_err().to_string()
        };
        assert_eq!(spoil(|e| e[0].port = 0), "endpoints[0].port: 0 is not a port");
        assert_eq!(spoil(|e| e[1].port = 65536), "endpoints[1].port: 65536 is not a port");
        let no_address = spoil(|e| e[1].address = "[::1]".into());
        assert_eq!(no_address, "endpoints[1].address: \"[::1]\" is not an IP address");
        let twice = spoil(|e| e[1] = e[0].clone());
        assert_eq!(twice, "endpoints: duplicate 10.0.0.1:80");
        let plaintext_by_default = spoil(|e| e[0].transport = None);
        assert_eq!(plaintext_by_default, "endpoints[0].transport: missing");
        let nameless = spoil(|e| {
            e[0].transport = Some(wire::endpoint::Transport::Mesh(wire::Identity::default()));
        });
        assert!(nameless.starts_with("endpoints[0].mesh.trust_domain: "), "{nameless}");
        let anyone = spoil(|e| {
            let Some(wire::endpoint::Transport::Tls(tls)) = &mut e[2].transport else { panic!() };
            tls.names.clear();
        });
        assert_eq!(anyone, "endpoints[2].tls.names: missing");
        let unknown = Backend::try_from(wire::Backend { protocol: 0, ..wire::Backend::from(&backend()) });
        assert_eq!(unknown.unwrap_err().to_string(), "protocol: unknown value 0");
        let stricter = Backend::try_from(wire::Backend {
            internal_traffic_policy: 2,
            ..wire::Backend::from(&backend())
        });
        assert_eq!(stricter.unwrap_err().to_string(), "internal_traffic_policy: unknown value 2");
        let newer = Backend::try_from(wire::Backend { proxied_as: 3, ..wire::Backend::from(&backend()) });
        assert_eq!(newer.unwrap_err().to_string(), "proxied_as: unknown value 3");
        let nothing =
            wire::Backend { dns: Some(wire::DnsEndpoints::default()), ..wire::Backend::from(&backend()) };
        assert_eq!(Backend::try_from(nothing).unwrap_err().to_string(), "dns.names: missing");
        let both = wire::OriginalDestination { port: None };
        let both = wire::Backend { original_destination: Some(both), ..wire::Backend::from(&backend()) };
        let both = Backend::try_from(both).unwrap_err().to_string();
        assert_eq!(both, "endpoints: not empty beside original_destination");
    }
}
