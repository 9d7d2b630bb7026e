mod cells;
mod hosts;
mod naive;
mod naive_hosts;
mod terms;

use std::fmt::Write;
use std::net::SocketAddr;

use tidegate_core::backend::{BackendRef, DnsAnswers, DnsEndpoint, Transport};
use tidegate_core::destination::{DestinationKey, DestinationTarget};
use tidegate_core::policy::AppProtocol;
use tidegate_core::{Destination, TrustDomain};
use tidegate_crds::injection;
use tidegate_proto::ResourceName;

use super::*;
use crate::compile::destination::Resolver;
use crate::compile::route_features::Features;
use crate::compile::status::CurrentStatus;
use crate::object::Kind;
use crate::testing::index;

/// Seed of an Istio user: an external HTTPS proxy.
const PROXY: &str = "hosts: [my-company-proxy.com], addresses: [192.0.2.9/32], location: MESH_EXTERNAL, resolution: NONE, \
                     ports: [{number: 3128, name: tcp, protocol: TCP}]";

/// An entry, `<namespace>/<name>`, made in this second.
fn entry(name: &str, second: u8, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-01T00:00:{second:02}Z'}}\n\
         spec: {{{spec}}}"
    )
}

/// An entry for port 443 of these addresses, as TCP.
fn tcp(name: &str, second: u8, addresses: &str, more: &str) -> String {
    let ports = "ports: [{number: 443, name: tcp, protocol: TCP}]";
    entry(name, second, &format!("hosts: [a.example], addresses: [{addresses}], {ports}{more}"))
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}, tidegate.io/sidecar: injected}}}}\n\
         spec: {{serviceAccountName: {name}, containers: [], initContainers: [{{name: tidegate-sidecar, restartPolicy: Always}}]}}\n\
         status: {{podIP: {ip}, phase: Running}}"
    )
}

fn with_resolver<T>(index: &Index, ask: impl FnOnce(Resolver<'_>) -> T) -> T {
    ask(Resolver {
        index,
        trust_domain: &TrustDomain::default(),
        features: Features::EXECUTED,
        is_workload: |pod| injection::has_sidecar(pod),
    })
}

/// What clients of a namespace reach at an address: what connections carry, the entry, and its endpoints.
fn seen(index: &Index, address: &str, client: Option<&str>) -> String {
    seen_as(index, &address.parse::<SocketAddr>().unwrap().into(), client)
}

/// The same for a host at an address, `<ip:port>/<tls|http>/<name>`.
fn seen_host(index: &Index, key: &str, client: Option<&str>) -> String {
    let Some(ResourceName::Destination(key)) = ResourceName::parse(&format!("destination/{key}")) else {
        panic!("{key}")
    };
    seen_as(index, &key, client)
}

fn seen_as(index: &Index, key: &DestinationKey, client: Option<&str>) -> String {
    with_resolver(index, |resolver| {
        match resolver.destination(key.address, &resolver.entries(key), client).value {
            Destination::Routed { protocol, target: DestinationTarget::Backend(name) } => {
                let backend = resolver.backend(&name).value.unwrap();
                let mut text = format!("{protocol:?} {}", name.object);
                if let Some(original) = backend.original_destination {
                    let port = original.port.map(|port| format!(":{port}")).unwrap_or_default();
                    let _ = write!(text, " original{port}");
                }
                for DnsEndpoint { name, port, transport, weight } in
                    backend.dns.iter().flat_map(|dns| &dns.names)
                {
                    let name = name.as_ref().map_or("<host>", |name| name.as_str());
                    let identity = terms(transport, *weight);
                    let first = if backend.dns.as_ref().unwrap().answers == DnsAnswers::First {
                        " first"
                    } else {
                        ""
                    };
                    let _ = write!(text, "{first} {name}:{port}{identity}");
                }
                for endpoint in &backend.endpoints {
                    let weight = backend.weights.get(&endpoint.address).copied().unwrap_or(1);
                    let _ = write!(text, " {}{}", endpoint.address, terms(&endpoint.transport, weight));
                }
                text
            }
            Destination::Blocked(reason) => format!("blocked: {reason}"),
            other => format!("{other:?}"),
        }
    })
}

/// The service accounts of which an endpoint must be one, and its weight if it is not 1.
fn terms(transport: &Transport, weight: u32) -> String {
    let accounts: Vec<_> = transport.identities().iter().map(|identity| identity.service_account()).collect();
    let accounts = if accounts.is_empty() { String::new() } else { format!("={}", accounts.join("|")) };
    if weight == 1 { accounts } else { format!("{accounts}*{weight}") }
}

/// The condition of an entry, its reason and its warnings.
fn status(index: &Index, name: &str) -> (String, String, Vec<String>) {
    let scope = StatusScope::everything(index);
    let all = ServiceEntry::statuses(&scope);
    let judged = all.into_iter().find(|judged| judged.name.to_string() == name).unwrap();
    let ObjectStatus { current, condition, reason, warnings, .. } = judged.status;
    assert_eq!(current == CurrentStatus::Committed, condition == Some(ACCEPTED));
    (condition.unwrap().to_owned(), reason, warnings)
}

#[test]
fn an_external_proxy_is_reached_at_its_address_as_opaque_bytes() {
    let index = index(&[&entry("default/proxy", 0, PROXY)]);
    assert_eq!(seen(&index, "192.0.2.9:3128", None), "Tcp ServiceEntry default/proxy original");
    for other in ["192.0.2.9:3129", "192.0.2.10:3128"] {
        assert_eq!(seen(&index, other, None), "Unknown", "{other}");
    }
    assert_eq!(status(&index, "default/proxy").0, ACCEPTED);
}

const NONE: &str = "resolution: NONE";
const FIXED: &str =
    "resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, ports: {p: 81}}]";

#[test]
fn each_supported_resolution_protocol_and_location_is_in_force() {
    let internal =
        "resolution: STATIC, location: MESH_INTERNAL, endpoints: [{address: 10.0.0.1, serviceAccount: cart}]";
    let (tcp, http) = ("Tcp ServiceEntry shop/e", "Http ServiceEntry shop/e");
    let (both, at_8443) = ("10.0.0.1:443 10.0.0.2:81", "original:8443");
    let supported = [
        ("TCP", "192.0.2.1", NONE, format!("{tcp} original")),
        ("TCP", "192.0.2.0/24", NONE, format!("{tcp} original")),
        ("TCP", "", NONE, format!("{tcp} original")),
        ("MONGO", "192.0.2.1", NONE, format!("{tcp} original")),
        ("TLS", "192.0.2.1", NONE, format!("{tcp} original")),
        ("HTTPS", "192.0.2.1/32", NONE, format!("{tcp} original")),
        ("HTTP", "192.0.2.1", NONE, format!("{http} original")),
        ("GRPC", "192.0.2.1", NONE, "H2c ServiceEntry shop/e original".to_owned()),
        ("", "192.0.2.0/24", NONE, "Undeclared ServiceEntry shop/e original".to_owned()),
        ("TCP, targetPort: 8443", "192.0.2.1", NONE, format!("{tcp} {at_8443}")),
        ("TCP", "192.0.2.1", FIXED, format!("{tcp} {both}")),
        ("TCP", "192.0.2.0/24", FIXED, format!("{tcp} {both}")),
        ("HTTPS", "192.0.2.1", FIXED, format!("{tcp} {both}")),
        ("HTTP", "192.0.2.1", FIXED, format!("{http} {both}")),
        ("TCP", "192.0.2.1", internal, format!("{tcp} 10.0.0.1:443=cart")),
        ("HTTP2", "192.0.2.1", internal, "H2c ServiceEntry shop/e 10.0.0.1:443=cart".to_owned()),
    ];
    for (protocol, addresses, more, expected) in supported {
        let (index, what) = one(protocol, addresses, more);
        assert_eq!(seen(&index, "192.0.2.1:443", None), expected, "{what}");
        assert_eq!(status(&index, "shop/e").0, ACCEPTED, "{what}");
    }
}

#[test]
fn an_entry_with_a_unix_socket_is_not_in_force_and_names_it() {
    let sockets = "resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: 'unix:///run/app.sock'}]";
    let reason = "spec.endpoints[1].address: 'unix:///run/app.sock' is not supported: sidecars connect to IP addresses only";
    let (index, what) = one("TCP", "192.0.2.1", sockets);
    assert_eq!(seen(&index, "192.0.2.1:443", None), "Unknown", "{what}");
    let (condition, said, _) = status(&index, "shop/e");
    assert_eq!((&*condition, &*said), ("NotSupported", reason));
    let (index, _) = one("TCP", "192.0.2.1", &format!("{sockets}, location: MESH_INTERNAL"));
    let inside = seen(&index, "192.0.2.1:443", None);
    assert_eq!(inside, format!("blocked: ServiceEntry shop/e: {reason}"), "never in plaintext");
}

#[test]
fn an_entry_that_selects_no_pod_says_so() {
    let spec = "resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {app: cart}}";
    let (none, _) = one("TCP", "192.0.2.1", spec);
    assert_eq!(seen(&none, "192.0.2.1:443", None), "Tcp ServiceEntry shop/e");
    let warning = "spec.workloadSelector selects no Pod of namespace shop that is ready";
    assert_eq!(status(&none, "shop/e").2, [warning]);
}

/// An index of one entry for port 443.
fn one(protocol: &str, addresses: &str, more: &str) -> (Index, String) {
    let protocol = if protocol.is_empty() { String::new() } else { format!(", protocol: {protocol}") };
    let ports = format!("ports: [{{number: 443, name: p{protocol}}}]");
    let spec = format!("hosts: [a.example], addresses: [{addresses}], {ports}, {more}");
    (index(&[&entry("shop/e", 0, &spec)]), spec)
}

#[test]
fn an_internal_endpoint_with_the_address_of_a_workload_is_that_workload() {
    let spec = "hosts: [a.example], addresses: [240.0.0.1], location: MESH_INTERNAL, resolution: STATIC, \
                ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.1.0.1}, {address: 10.1.0.9}]";
    let index = index(&[&entry("shop/e", 0, spec), &pod("cart", "10.1.0.1")]);
    assert_eq!(seen(&index, "240.0.0.1:80", None), "Http ServiceEntry shop/e 10.1.0.1:80=cart 10.1.0.9:80");
    let name = BackendRef { object: ObjectName::new("shop", "e").to_ref(Kind::ServiceEntry), port: 80 };
    let pods = with_resolver(&index, |resolver| resolver.backend(&name).pods);
    assert_eq!(pods.into_iter().map(|pod| pod.to_string()).collect::<Vec<_>>(), ["shop/cart"]);
}

#[test]
fn what_a_service_or_a_workload_has_is_not_an_entry_s() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}";
    let wide = tcp("shop/wide", 0, "10.0.0.0/8", "");
    let exact = tcp("shop/exact", 0, "10.96.0.1", "");
    let named = tcp("shop/named", 0, "192.0.2.1", "").replace("a.example", "cart.shop.svc.cluster.local");
    let index = index(&[service, &wide, &exact, &named, &pod("cart", "10.1.0.1")]);
    assert_eq!(seen(&index, "10.96.0.1:443", Some("shop")), "Passthrough");
    assert!(seen(&index, "10.1.0.1:443", Some("shop")).ends_with("Pod shop/cart 10.1.0.1:443=cart"));
    assert_eq!(seen(&index, "10.2.0.1:443", Some("shop")), "Tcp ServiceEntry shop/wide original");
    assert_eq!(seen(&index, "192.0.2.1:443", None), "Unknown");
    assert_eq!(status(&index, "shop/wide").0, ACCEPTED);
    let (condition, reason, _) = status(&index, "shop/exact");
    assert_eq!(condition, "Conflicted");
    assert_eq!(reason, "spec.addresses[0]: 10.96.0.1 is the cluster IP of Service shop/cart");
    let (condition, reason, _) = status(&index, "shop/named");
    assert_eq!(condition, "Conflicted");
    assert_eq!(reason, "spec.hosts[0]: cart.shop.svc.cluster.local is the name of Service shop/cart");
}

#[test]
fn of_several_entries_clients_get_their_own_namespace_s_then_the_longest_prefix_then_the_oldest() {
    let old = tcp("a/old", 1, "192.0.2.1", "");
    let new = tcp("b/new", 2, "192.0.2.1", "");
    let wide = tcp("c/wide", 0, "192.0.2.0/24", "");
    let documents = [&old[..], &new, &wide];
    for documents in [documents, [&new, &wide, &old], [&wide, &old, &new]] {
        let index = index(&documents);
        let who = |client| seen(&index, "192.0.2.1:443", client);
        assert_eq!(who(None), "Tcp ServiceEntry a/old original");
        assert_eq!(who(Some("a")), "Tcp ServiceEntry a/old original");
        assert_eq!(who(Some("b")), "Tcp ServiceEntry b/new original");
        assert_eq!(who(Some("c")), "Tcp ServiceEntry c/wide original");
        assert_eq!(status(&index, "a/old"), (ACCEPTED.to_owned(), status(&index, "a/old").1, Vec::new()));
        let (condition, _, warnings) = status(&index, "b/new");
        assert_eq!(condition, ACCEPTED);
        assert_eq!(
            warnings,
            [
                "port 443 of 192.0.2.1 is also ServiceEntry a/old's, which takes precedence for clients of other namespaces"
            ]
        );
    }
    let same = tcp("a/same", 3, "192.0.2.1", "");
    let index = index(&[&old, &same]);
    let (condition, reason, _) = status(&index, "a/same");
    assert_eq!(condition, "Conflicted");
    assert_eq!(reason, "port 443 of 192.0.2.1 is ServiceEntry a/old's, which takes precedence");
}

#[test]
fn export_to_narrows_who_sees_an_entry() {
    let own = tcp("a/own", 0, "192.0.2.1", ", exportTo: ['.']");
    let named = tcp("a/named", 0, "192.0.2.2", ", exportTo: [shop]");
    let hidden = tcp("a/hidden", 0, "192.0.2.3", ", exportTo: ['~']");
    let index = index(&[&own, &named, &hidden, &pod("cart", "10.1.0.1")]);
    let is_seen = |address, client| seen(&index, address, client) != "Unknown";
    assert!(is_seen("192.0.2.1:443", Some("a")) && !is_seen("192.0.2.1:443", Some("b")));
    assert!(is_seen("192.0.2.2:443", Some("shop")) && !is_seen("192.0.2.2:443", None));
    assert!(!is_seen("192.0.2.3:443", Some("a")));
    let clients = with_resolver(&index, |resolver| {
        resolver.entries(&"192.0.2.2:443".parse::<SocketAddr>().unwrap().into()).clients()
    });
    assert_eq!(clients.iter().map(|client| &**client).collect::<Vec<_>>(), ["a", "shop"]);
}

#[test]
fn tcp_beside_http_on_the_same_port_stays_opaque() {
    let http =
        "hosts: [b.example], addresses: [192.0.2.8], ports: [{number: 3128, name: http, protocol: HTTP}]";
    let index = index(&[&entry("default/proxy", 1, PROXY), &entry("default/http", 0, http)]);
    assert_eq!(seen(&index, "192.0.2.9:3128", None), "Tcp ServiceEntry default/proxy original");
    assert_eq!(seen(&index, "192.0.2.8:3128", None), "Http ServiceEntry default/http original");
    let protocol = with_resolver(&index, |resolver| {
        let address: SocketAddr = "192.0.2.9:3128".parse().unwrap();
        match resolver.destination(address, &resolver.entries(&address.into()), None).value {
            Destination::Routed { protocol, .. } => protocol,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(protocol, AppProtocol::Tcp, "it is never sniffed");
}

#[test]
fn an_entry_with_errors_has_no_effect_and_says_why_and_unused_fields_are_named() {
    let bad = tcp("a/bad", 0, "192.0.2.1, 300.0.0.1", "");
    let more = ", resolution: STATIC, endpoints: [{address: 10.0.0.1, network: net, locality: eu}, {network: net}], subjectAltNames: [a]";
    let odd = tcp("a/odd", 0, "192.0.2.2", more);
    let index = index(&[&bad, &odd]);
    assert_eq!(seen(&index, "192.0.2.1:443", None), "Unknown");
    let (condition, reason, _) = status(&index, "a/bad");
    assert_eq!(condition, "Invalid");
    assert!(reason.starts_with("spec.addresses[1]: expected an IP address or a CIDR range"), "{reason}");
    let (condition, _, warnings) = status(&index, "a/odd");
    assert_eq!(condition, ACCEPTED);
    let fields: Vec<_> = warnings.iter().map(|warning| warning.split_once(' ').unwrap().0).collect();
    assert_eq!(
        fields,
        [
            "spec.endpoints[0].locality",
            "spec.endpoints[0].network",
            "spec.endpoints[1]",
            "spec.subjectAltNames"
        ]
    );
}
