use tidegate_core::ObjectRef;
use tidegate_core::backend::{Backend, BackendProtocol, Endpoint, Locality, Topology, UsableEndpoints};
use tidegate_core::destination::DestinationTarget;
use tidegate_core::policy::AppProtocol;
use tidegate_crds::injection;

use super::*;
use crate::testing::cluster_index;

mod naive;

/// A Pod with a sidecar unless `more` says otherwise; its service account has its name.
fn pod(name: &str, ips: &[&str], more: &str) -> String {
    let list: Vec<_> = ips.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {name}-uid, labels: {{tidegate.io/sidecar: injected}}}}\n\
         spec: {{serviceAccountName: {name}, containers: [], initContainers: [{{name: tidegate-sidecar, restartPolicy: Always}}]}}\n\
         status: {{podIP: '{}', podIPs: [{}], phase: Running}}\n{more}",
        ips[0],
        list.join(", ")
    )
}

fn plain_pod(name: &str, ip: &str) -> String {
    pod(name, &[ip], "").replace("tidegate-sidecar", "migrate")
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: cart, namespace: shop}}\nspec: {{{spec}}}\n")
}

/// Endpoints are `(address, Pod, conditions)`.
fn slice(family: &str, ports: &str, endpoints: &[(&str, &str, &str)]) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, pod, conditions)| {
            format!(
                "{{addresses: ['{address}'], conditions: {{{conditions}}}, targetRef: {{kind: Pod, name: {pod}, namespace: shop, uid: {pod}-uid}}}}"
            )
        })
        .collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: cart-{}, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}\n\
         addressType: {family}\nports: [{ports}]\nendpoints: [{}]\n",
        family.to_lowercase(),
        endpoints.join(", ")
    )
}

const CART: &str = "clusterIP: 10.96.0.10, ports: [{name: http, port: 80, targetPort: web}]";
const HTTP: &str = "{name: http, port: 8080}";

fn with_resolver<T>(documents: &[&str], ask: impl FnOnce(Resolver<'_>) -> T) -> T {
    let index = cluster_index(documents);
    ask(Resolver {
        index: &index,
        trust_domain: &TrustDomain::default(),
        features: Features::EXECUTED,
        is_workload: |pod| injection::has_sidecar(pod) && !crate::object::pod::has_ended(pod),
    })
}

fn resolve(documents: &[&str], address: &str) -> Resolved<Destination> {
    with_resolver(documents, |resolver| resolver.for_all_clients(address))
}

fn backend(documents: &[&str], name: &BackendRef) -> Resolved<Option<Backend>> {
    with_resolver(documents, |resolver| resolver.backend(name))
}

/// `passthrough`, `unknown`, `in the cluster`, or the name and the endpoints of the address's family, each with the service account that must answer.
fn told(documents: &[&str], address: &str) -> String {
    let is_ipv4 = address.parse::<SocketAddr>().unwrap().is_ipv4();
    match resolve(documents, address).value {
        Destination::Passthrough => "passthrough".to_owned(),
        Destination::Unknown => "unknown".to_owned(),
        Destination::InCluster => "in the cluster".to_owned(),
        Destination::Routed { target: DestinationTarget::Backend(name), .. } => {
            let backend = backend(documents, &name).value.expect("what a destination refers to exists");
            let endpoint = |endpoint: &Endpoint| match &endpoint.transport {
                Transport::Mesh(identity) => format!(" {}={}", endpoint.address, identity.service_account()),
                _ => format!(" {}", endpoint.address),
            };
            let of_family = backend.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == is_ipv4);
            let endpoints: String = of_family.map(endpoint).collect();
            format!("{}/{}{endpoints}", name.object.namespace, name.object.name)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cluster_ip_is_its_service_s_ready_endpoints_meshed_where_the_pod_has_a_sidecar() {
    let slice = slice(
        "IPv4",
        HTTP,
        &[("10.1.0.1", "a", "ready: true"), ("10.1.0.2", "b", ""), ("10.1.0.3", "c", "ready: false")],
    );
    let a = pod("a", &["10.1.0.1"], "");
    let b = plain_pod("b", "10.1.0.2");
    let documents = [&service(CART)[..], &slice, &a, &b];
    assert_eq!(told(&documents, "10.96.0.10:80"), "shop/cart 10.1.0.1:8080=a 10.1.0.2:8080");
    let rests_on: Vec<_> =
        resolve(&documents, "10.96.0.10:80").pods.iter().map(ToString::to_string).collect();
    assert_eq!(rests_on, ["shop/a", "shop/b"], "also on those that may join later");
    let cart = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 };
    let rests_on: Vec<_> = backend(&documents, &cart).pods.iter().map(ToString::to_string).collect();
    assert_eq!(rests_on, ["shop/a", "shop/b"]);
}

#[test]
fn what_is_outside_the_mesh_is_passed_through_if_a_service_has_it_and_unknown_otherwise() {
    let slice = slice("IPv4", HTTP, &[("10.1.0.2", "b", "")]);
    let b = plain_pod("b", "10.1.0.2");
    for (spec, address, expected) in [
        // No endpoint has a sidecar; another port; an unknown address; a node port; the Pod itself.
        (CART, "10.96.0.10:80", "passthrough"),
        (CART, "10.96.0.10:8080", "passthrough"),
        (CART, "192.0.2.1:80", "unknown"),
        (
            "type: NodePort, clusterIP: 10.96.0.10, ports: [{name: http, port: 80, nodePort: 30080}]",
            "192.168.0.1:30080",
            "unknown",
        ),
        (CART, "10.1.0.2:8080", "in the cluster"),
        // Clients of a headless Service get the Pod's address from DNS.
        ("clusterIP: None, ports: [{name: http, port: 80, targetPort: web}]", "10.1.0.2:8080", "passthrough"),
        ("type: ExternalName, externalName: example.com", "10.96.0.10:80", "unknown"),
        (
            "clusterIP: 10.96.0.10, ports: [{name: http, port: 80, protocol: UDP}]",
            "10.96.0.10:80",
            "passthrough",
        ),
    ] {
        assert_eq!(told(&[&service(spec), &slice, &b], address), expected, "{spec} {address}");
    }
    let without_slices = service("clusterIP: 10.96.0.10, ports: [{port: 80}]");
    assert_eq!(told(&[&without_slices], "10.96.0.10:80"), "passthrough", "another mesh or program serves it");
    let headless = service("clusterIP: None, ports: [{name: http, port: 80}]");
    let alone = slice.replace(", targetRef: {kind: Pod, name: b, namespace: shop, uid: b-uid}", "");
    assert_eq!(told(&[&headless, &alone], "10.1.0.2:8080"), "passthrough", "an endpoint without a Pod");
}

#[test]
fn a_service_without_endpoints_is_refused_rather_than_passed_round_the_mesh() {
    let none_ready = slice("IPv4", HTTP, &[("10.1.0.1", "a", "ready: false")]);
    let a = pod("a", &["10.1.0.1"], "");
    assert_eq!(told(&[&service(CART), &none_ready, &a], "10.96.0.10:80"), "shop/cart");
}

#[test]
fn endpoints_that_serve_their_last_stand_in_where_none_is_ready() {
    let last = "ready: false, serving: true, terminating: true";
    let a = pod("a", &["10.1.0.1"], "");
    let b = pod("b", &["10.1.0.2"], "");
    let only_last = slice("IPv4", HTTP, &[("10.1.0.1", "a", last)]);
    assert_eq!(told(&[&service(CART), &only_last, &a], "10.96.0.10:80"), "shop/cart 10.1.0.1:8080=a");
    let both = slice("IPv4", HTTP, &[("10.1.0.1", "a", last), ("10.1.0.2", "b", "ready: true")]);
    assert_eq!(told(&[&service(CART), &both, &a, &b], "10.96.0.10:80"), "shop/cart 10.1.0.2:8080=b");
    let dead = slice("IPv4", HTTP, &[("10.1.0.1", "a", "ready: false, serving: false, terminating: true")]);
    assert_eq!(told(&[&service(CART), &dead, &a], "10.96.0.10:80"), "shop/cart");
}

#[test]
fn each_family_of_a_dual_stack_service_has_its_own_endpoints() {
    let dual =
        "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::a'], ports: [{name: http, port: 80}]";
    let v4 = slice("IPv4", HTTP, &[("10.1.0.1", "a", "ready: true")]);
    let v6 = slice("IPv6", HTTP, &[("fd00::1", "a", "ready: true")]);
    let a = pod("a", &["10.1.0.1", "fd00::1"], "");
    let documents = [&service(dual)[..], &v4, &v6, &a];
    assert_eq!(told(&documents, "10.96.0.10:80"), "shop/cart 10.1.0.1:8080=a");
    assert_eq!(told(&documents, "[fd00:96::a]:80"), "shop/cart [fd00::1]:8080=a");
    assert_eq!(told(&documents, "[fd00::1]:8080"), "shop/a [fd00::1]:8080=a");
    let target = |address: &str| resolve(&documents, address).value;
    assert_eq!(target("10.96.0.10:80"), target("[fd00:96::a]:80"), "both lead to one backend");
    assert_eq!(target("10.1.0.1:8080"), target("[fd00::1]:8080"));
}

#[test]
fn a_backend_that_nothing_is_behind_does_not_exist() {
    let slice = slice("IPv4", HTTP, &[("10.1.0.2", "b", "")]);
    let documents = [&service(CART)[..], &slice, &plain_pod("b", "10.1.0.2")];
    for (kind, name, port) in [
        ("Service", "cart", 81),
        ("Service", "other", 80),
        ("Pod", "b", 8080),
        ("Pod", "other", 80),
        ("ServiceEntry", "cart", 80),
    ] {
        let name = BackendRef { object: ObjectRef::new(kind, "shop", name), port };
        let Resolved { value, pods } = backend(&documents, &name);
        assert_eq!(value, None, "{name}");
        assert_eq!(pods.len(), usize::from(kind == "Pod"), "a Pod of that name may come: {name}");
    }
    let unmeshed = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 };
    let unmeshed = backend(&documents, &unmeshed).value.unwrap();
    assert_eq!(unmeshed.endpoints, [Endpoint::new("10.1.0.2:8080".parse().unwrap(), Transport::Plain)]);
}

#[test]
fn ports_are_matched_by_name() {
    let two = "clusterIP: 10.96.0.10, ports: [{name: http, port: 80}, {name: admin, port: 81}]";
    let slice =
        slice("IPv4", "{name: admin, port: 9901}, {name: http, port: 8080}", &[("10.1.0.1", "a", "")]);
    let a = pod("a", &["10.1.0.1"], "");
    let documents = [&service(two)[..], &slice, &a];
    assert_eq!(told(&documents, "10.96.0.10:80"), "shop/cart 10.1.0.1:8080=a");
    assert_eq!(told(&documents, "10.96.0.10:81"), "shop/cart 10.1.0.1:9901=a");
}

#[test]
fn a_named_target_port_may_be_another_number_in_each_slice() {
    let older = slice("IPv4", HTTP, &[("10.1.0.1", "a", "")]);
    let newer = slice("IPv4", "{name: http, port: 9090}", &[("10.1.0.2", "b", "")]);
    let newer = newer.replace("name: cart-ipv4", "name: cart-ipv4-2");
    let (a, b) = (pod("a", &["10.1.0.1"], ""), pod("b", &["10.1.0.2"], ""));
    let documents = [&service(CART)[..], &older, &newer, &a, &b];
    assert_eq!(told(&documents, "10.96.0.10:80"), "shop/cart 10.1.0.1:8080=a 10.1.0.2:9090=b");
}

/// A slice in which the endpoint of a Pod has these fields as well.
fn with_fields(slice: &str, pod: &str, fields: &str) -> String {
    let reference = format!("targetRef: {{kind: Pod, name: {pod},");
    assert!(slice.contains(&reference));
    slice.replace(&reference, &format!("{fields}, {reference}"))
}

fn cart(documents: &[&str]) -> Backend {
    let name = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 };
    backend(documents, &name).value.unwrap()
}

/// The endpoints that a client on this node and in this zone uses, and those that it falls back to; the last byte of each.
fn used(backend: &Backend, node: &str, zone: &str) -> (Vec<u8>, Vec<u8>) {
    let client = Locality { node: Some(node.into()), zone: Some(zone.into()) };
    let UsableEndpoints { preferred, others } = backend.topology.usable(&backend.endpoints, Some(&client));
    let last = |endpoint: &Endpoint| match endpoint.address.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    (preferred.into_iter().map(last).collect(), others.into_iter().map(last).collect())
}

#[test]
fn clients_of_a_local_service_use_what_is_ready_on_their_node_else_what_serves_its_last_there() {
    let last = "ready: false, serving: true, terminating: true";
    let slice = slice(
        "IPv4",
        HTTP,
        &[
            ("10.1.0.1", "a", "ready: true"),
            ("10.1.0.2", "b", last),
            ("10.1.0.3", "c", last),
            ("10.1.0.4", "d", ""),
        ],
    );
    let slice = [("a", "n1"), ("b", "n1"), ("c", "n2")].into_iter().fold(slice, |slice, (pod, node)| {
        with_fields(&slice, pod, &format!("nodeName: {node}, hints: {{forZones: [{{name: z}}]}}"))
    });
    let pods: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .zip(1..)
        .map(|(name, i)| pod(name, &[&format!("10.1.0.{i}")], ""))
        .collect();
    for policy in ["Local", "NotKnownYet"] {
        let service = service(&format!("internalTrafficPolicy: {policy}, {CART}"));
        let documents: Vec<_> =
            [&service[..], &slice].into_iter().chain(pods.iter().map(|pod| &pod[..])).collect();
        let local = cart(&documents);
        assert_eq!(used(&local, "n1", "z"), (vec![1], vec![]));
        assert_eq!(used(&local, "n2", "z"), (vec![3], vec![]));
        assert_eq!(used(&local, "n3", "z"), (vec![], vec![]));
    }
    let documents: Vec<_> = [&service(CART)[..], &slice].into_iter().map(str::to_owned).chain(pods).collect();
    let cluster = cart(&documents.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(used(&cluster, "n2", "z"), (vec![1, 4], vec![]), "d lacks a hint");
}

#[test]
fn hints_of_ready_endpoints_decide_for_each_family() {
    let dual =
        "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::a'], ports: [{name: http, port: 80}]";
    let ipv4 = slice(
        "IPv4",
        HTTP,
        &[("10.1.0.1", "a", ""), ("10.1.0.2", "b", ""), ("10.1.0.3", "c", "ready: false")],
    );
    let ipv6 = slice("IPv6", HTTP, &[("fd00::11", "a", ""), ("fd00::12", "b", "")]);
    let ipv4 =
        with_fields(&ipv4, "a", "nodeName: n1, hints: {forZones: [{name: east}], forNodes: [{name: n1}]}");
    let ipv4 = with_fields(&ipv4, "b", "nodeName: n2, hints: {forZones: [{name: east}, {name: west}]}");
    let (a, b) = (pod("a", &["10.1.0.1", "fd00::11"], ""), pod("b", &["10.1.0.2", "fd00::12"], ""));
    let c = pod("c", &["10.1.0.3"], "");
    let cart = cart(&[&service(dual), &ipv4, &ipv6, &a, &b, &c]);
    assert_eq!(used(&cart, "n1", "east"), (vec![1, 2, 17, 18], vec![]), "b has no hint for nodes");
    assert_eq!(used(&cart, "n9", "west"), (vec![2, 17, 18], vec![1]));
    assert_eq!(used(&cart, "n9", "north"), (vec![1, 2, 17, 18], vec![]));
}

#[test]
fn most_backends_carry_nothing_about_places_and_clients() {
    let slice = slice("IPv4", HTTP, &[("10.1.0.1", "a", "")]);
    let slice = with_fields(&slice, "a", "nodeName: n1, zone: x");
    let a = pod("a", &["10.1.0.1"], "");
    for more in
        ["", "internalTrafficPolicy: Cluster, sessionAffinity: None, trafficDistribution: PreferClose, "]
    {
        let cart = cart(&[&service(&format!("{more}{CART}")), &slice, &a]);
        assert_eq!((cart.topology, cart.affinity), (Topology::Any, None));
    }
    // Kubernetes reads no hints while only endpoints that terminate are left.
    let last = with_fields(&slice, "a", "hints: {forZones: [{name: x}]}")
        .replace("conditions: {}", "conditions: {ready: false, serving: true, terminating: true}");
    let cart = cart(&[&service(CART), &last, &a]);
    assert_eq!((cart.endpoints.len(), cart.topology), (1, Topology::Any));
}

#[test]
fn a_service_with_session_affinity_says_for_how_long() {
    let slice = slice("IPv4", HTTP, &[("10.1.0.1", "a", "")]);
    let a = pod("a", &["10.1.0.1"], "");
    let affinity = |config: &str| {
        let service = service(&format!("sessionAffinity: ClientIP, {config}{CART}"));
        cart(&[&service, &slice, &a]).affinity.unwrap().as_secs()
    };
    assert_eq!(affinity(""), 10_800);
    assert_eq!(affinity("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, "), 60);
    assert_eq!(affinity("sessionAffinityConfig: {clientIP: {timeoutSeconds: -1}}, "), 1);
}

#[test]
fn endpoints_say_what_their_pods_belong_to() {
    let of_deployment =
        pod("cart-v1-7d4b-x", &["10.1.0.1"], "").replace("labels: {", "labels: {pod-template-hash: 7d4b, ");
    let slice = slice("IPv4", HTTP, &[("10.1.0.1", "cart-v1-7d4b-x", ""), ("10.1.0.2", "b", "")]);
    let cart = cart(&[&service(CART), &slice, &of_deployment, &plain_pod("b", "10.1.0.2")]);
    let names: Vec<_> = cart.workloads.values().map(|name| &**name).collect();
    assert_eq!(names, ["cart-v1", "b"]);
}

#[test]
fn a_pod_s_own_address_is_that_pod_for_every_client() {
    // Members of a StatefulSet find each other, and themselves, behind a headless Service.
    let headless = service("clusterIP: None, ports: [{name: http, port: 8080}]");
    let (a, b) = (pod("a", &["10.1.0.1"], ""), pod("b", &["10.1.0.2"], ""));
    let slice = slice("IPv4", HTTP, &[("10.1.0.1", "a", ""), ("10.1.0.2", "b", "")]);
    let documents = [&headless[..], &slice, &a, &b];
    assert_eq!(told(&documents, "10.1.0.1:8080"), "shop/a 10.1.0.1:8080=a");
    assert_eq!(told(&documents, "10.1.0.2:9999"), "shop/b 10.1.0.2:9999=b");
}

/// What connections to an address carry, and what its backend speaks.
fn carried(documents: &[&str], address: &str) -> (AppProtocol, BackendProtocol) {
    let Destination::Routed { protocol, target: DestinationTarget::Backend(name) } =
        resolve(documents, address).value
    else {
        panic!("not in the mesh")
    };
    (protocol, backend(documents, &name).value.unwrap().protocol)
}

#[test]
fn a_service_s_port_declares_what_connections_carry_and_endpoints_speak() {
    let slice = |name: &str| slice("IPv4", &format!("{{{name}port: 8080}}"), &[("10.1.0.1", "a", "")]);
    let a = pod("a", &["10.1.0.1"], "");
    for (name, more, expected) in [
        ("name: http, ", "", (AppProtocol::Http, BackendProtocol::Http)),
        ("name: http, ", ", appProtocol: kubernetes.io/h2c", (AppProtocol::H2c, BackendProtocol::Http2)),
        ("name: web, ", ", appProtocol: ws", (AppProtocol::Http, BackendProtocol::Http1)),
        ("name: web, ", "", (AppProtocol::Undeclared, BackendProtocol::Http)),
        ("name: https, ", "", (AppProtocol::Tcp, BackendProtocol::Tcp)),
        ("name: http, ", ", appProtocol: example.com/mine", (AppProtocol::Tcp, BackendProtocol::Tcp)),
        ("", ", targetPort: 5432", (AppProtocol::Tcp, BackendProtocol::Tcp)),
    ] {
        let service = service(&format!("clusterIP: 10.96.0.10, ports: [{{{name}port: 80{more}}}]"));
        let documents = [&service[..], &slice(name), &a];
        assert_eq!(carried(&documents, "10.96.0.10:80"), expected, "{name}{more}");
    }
}

#[test]
fn a_pod_s_own_port_is_what_its_headless_service_says_else_its_container_s_name() {
    let slice = slice("IPv4", "{name: grpc, port: 8080}", &[("10.1.0.1", "a", "")]);
    let a = pod("a", &["10.1.0.1"], "")
        .replace("containers: []", "containers: [{name: app, ports: [{name: http, containerPort: 8080}]}]");
    let headless = service("clusterIP: None, ports: [{name: grpc, port: 8080}]");
    let (http, grpc) =
        ((AppProtocol::Http, BackendProtocol::Http), (AppProtocol::H2c, BackendProtocol::Http2));
    assert_eq!(carried(&[&headless, &slice, &a], "10.1.0.1:8080"), grpc);
    assert_eq!(carried(&[&service(CART), &slice, &a], "10.1.0.1:8080"), http);
    assert_eq!(carried(&[&a], "10.1.0.1:8080"), http);
    assert_eq!(carried(&[&a], "10.1.0.1:9090").0, AppProtocol::Undeclared);
}

#[test]
fn a_completed_pod_gives_its_address_s_next_owner_nothing() {
    let done = pod("done", &["10.1.0.1"], "").replace("Running", "Succeeded");
    let a = pod("a", &["10.1.0.1"], "");
    assert_eq!(told(&[&done, &a], "10.1.0.1:8080"), "shop/a 10.1.0.1:8080=a");
    assert_eq!(told(&[&done, &plain_pod("plain", "10.1.0.1")], "10.1.0.1:8080"), "in the cluster");
    assert_eq!(told(&[&done], "10.1.0.1:8080"), "in the cluster");
}

#[test]
fn an_endpoint_whose_pod_is_not_known_to_be_there_is_not_dialled_rather_than_in_plaintext() {
    let two = slice("IPv4", HTTP, &[("10.1.0.1", "a", ""), ("10.1.0.2", "b", "")]);
    let (a, b) = (pod("a", &["10.1.0.1"], ""), pod("b", &["10.1.0.2"], ""));
    let stale = two.replace("uid: a-uid", "uid: before");
    let moved = two.replace("10.1.0.1", "10.1.0.9");
    let done = a.replace("Running", "Succeeded");
    for (what, slice, pods) in [
        ("not known yet", &two, ""),
        ("another of that name", &stale, &*a),
        ("another address", &moved, &*a),
        ("over", &two, &*done),
    ] {
        let documents = [&service(CART)[..], slice, pods, &b];
        assert_eq!(told(&documents, "10.96.0.10:80"), "shop/cart 10.1.0.2:8080=b", "{what}");
        assert_eq!(told(&documents[..3], "10.96.0.10:80"), "shop/cart", "{what}, and no other endpoint");
        let rests_on = resolve(&documents, "10.96.0.10:80").pods;
        assert!(rests_on.contains(&ObjectName::new("shop", "a")), "it is looked at again: {what}");
    }
}

#[test]
fn an_endpoint_that_refers_to_no_pod_is_its_author_s_word() {
    let both = slice("IPv4", HTTP, &[("10.1.0.1", "a", ""), ("192.0.2.7", "x", "")]);
    let outside = both.replace(", targetRef: {kind: Pod, name: x, namespace: shop, uid: x-uid}", "");
    assert_ne!(outside, both);
    let a = pod("a", &["10.1.0.1"], "");
    let documents = [&service(CART)[..], &outside, &a];
    assert_eq!(told(&documents, "10.96.0.10:80"), "shop/cart 10.1.0.1:8080=a 192.0.2.7:8080");
    let alone = slice("IPv4", HTTP, &[("192.0.2.7", "x", "")]);
    let alone = alone.replace(", targetRef: {kind: Pod, name: x, namespace: shop, uid: x-uid}", "");
    assert_eq!(told(&[&service(CART), &alone], "10.96.0.10:80"), "passthrough");
}

#[test]
fn a_port_that_interception_leaves_alone_is_dialled_in_plaintext() {
    let slice = slice("IPv4", HTTP, &[("10.1.0.1", "a", "")]);
    for arguments in
        ["intercept, --exclude-inbound-ports, '22,8080'", "intercept, '--exclude-inbound-ports=8080'"]
    {
        let containers = format!("initContainers: [{{name: tidegate-intercept, args: [{arguments}]}}, ");
        let a = pod("a", &["10.1.0.1"], "").replace("initContainers: [", &containers);
        assert_eq!(told(&[&service(CART), &slice, &a], "10.96.0.10:80"), "passthrough");
        assert_eq!(told(&[&a], "10.1.0.1:8080"), "passthrough");
        assert_eq!(told(&[&a], "10.1.0.1:80"), "shop/a 10.1.0.1:80=a");
    }
    let a = pod("a", &["10.1.0.1"], "");
    assert_eq!(
        told(&[&a], "10.1.0.1:15010"),
        "passthrough",
        "Prometheus reads a sidecar's metrics as they are"
    );
}
