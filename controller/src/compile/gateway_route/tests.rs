use std::collections::BTreeSet;

use proptest::prelude::*;
use tidegate_core::Destination;
use tidegate_core::destination::DestinationTarget;
use tidegate_core::policy::AppProtocol;
use tidegate_core::route::{Action, BackendTarget, Route, RouteTable};
use tidegate_crds::gateway_api::Routed;

use super::*;
use crate::compile::status::CurrentStatus;
use crate::testing::shop::{Request, SERVICES, cart, get, with_resolver};
use crate::testing::{cluster_index, index};

mod filters;
mod naive;
mod rules;
mod statuses;
mod tcp;
mod tls;

/// Where a route's requests go, as YAML.
const TO_V1: &str = "backendRefs: [{name: v1, namespace: shop, port: 80}]";

/// A route with one parent, Service `cart` of namespace `shop`; `parent` are more fields of it, `rules` a YAML list without
/// its brackets.
fn route(kind: &str, name: &str, parent: &str, rules: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop{parent}}}], rules: [{rules}]}}\n"
    )
}

fn http(rules: &str) -> String {
    route("HTTPRoute", "shop/r", ", port: 80", rules)
}

fn grpc(rules: &str) -> String {
    route("GRPCRoute", "shop/r", ", port: 80", rules)
}

fn created(document: &str, second: u32) -> String {
    document.replacen(
        "metadata: {",
        &format!("metadata: {{creationTimestamp: '2026-01-01T00:00:{second:02}Z', "),
        1,
    )
}

/// The routes of port 80 of Service `cart` for clients of a namespace.
fn routes(index: &Index, caller: &str) -> Option<Vec<Route>> {
    with_resolver(index, Features::EXECUTED, |resolver| resolver.routes(&cart(), 80, caller))
        .map(|found| found.routes)
}

fn table(documents: &[&str], caller: &str) -> RouteTable {
    RouteTable::new(routes(&index(documents), caller).unwrap()).unwrap()
}

/// What happens to a request, in a word: `404`, a status with which it is answered, or the shares with their weights.
fn outcome(table: &RouteTable, request: &Request) -> String {
    let Some(selected) = table.select(request) else { return "404".to_owned() };
    match &selected.rule.action {
        Action::Respond(response) => response.status.to_string(),
        Action::Redirect(redirect) => format!("redirect {}", redirect.status()),
        Action::Forward(shares) => {
            let share = |share: &tidegate_core::route::WeightedBackend| match &share.target {
                BackendTarget::Backend(backend) => {
                    format!("{}:{}={}", backend.object.name, backend.port, share.weight)
                }
                BackendTarget::Invalid(response) => format!("{}={}", response.status, share.weight),
                BackendTarget::App => panic!("no route leads to an app"),
            };
            shares.iter().map(share).collect::<Vec<_>>().join(" ")
        }
    }
}

/// The conditions of the first parent, such as `Accepted ResolvedRefs=BackendNotFound`; one that is as wished is its type
/// alone.
fn conditions(documents: &[&str], features: Features) -> String {
    let index = index(documents);
    let object = index.routes().next().unwrap();
    let parents = RouteStatuses::new(&index, features).parents(object);
    let condition = |found: &ParentCondition| match (found.is_well(), found.holds) {
        (true, _) => found.kind.to_owned(),
        (false, true) => format!("{}:{}", found.kind, found.reason),
        (false, false) => format!("{}={}", found.kind, found.reason),
    };
    parents[0].conditions.iter().map(condition).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_service_without_routes_keeps_its_backend_and_one_with_routes_names_them() {
    let destination = |documents: &[&str], features, address: &str| {
        let index = index(documents);
        with_resolver(&index, features, |resolver| resolver.for_all_clients(address).value)
    };
    let route = http(&format!("{{{TO_V1}}}"));
    let routed = destination(&[SERVICES, &route], Features::EXECUTED, "10.96.0.10:80");
    let Destination::Routed { protocol, target: DestinationTarget::Routes(name) } = routed else {
        panic!("{routed:?}")
    };
    assert_eq!((protocol, name.as_str()), (AppProtocol::Http, "Service/shop/cart:80"));
    for (features, address) in
        [(Features::EXECUTED, "10.96.0.10:8080"), (Features::only(&[]), "10.96.0.10:80")]
    {
        let unrouted = destination(&[SERVICES], features, address);
        assert_eq!(destination(&[SERVICES, &route], features, address), unrouted, "{address}");
    }
}

#[test]
fn a_consumer_s_routes_are_for_its_namespace_alone_and_in_place_of_the_producer_s() {
    let to = |name: &str, backend: &str| {
        let rules = format!("{{backendRefs: [{{name: {backend}, namespace: shop, port: 80}}]}}");
        route("HTTPRoute", name, "", &rules)
    };
    let (producer, consumer) = (to("shop/p", "v1"), to("web/c", "v2"));
    let goes = |documents: &[&str], caller| outcome(&table(documents, caller), &get("/"));
    let both = [SERVICES, &producer, &consumer];
    assert_eq!(goes(&both, "shop"), "v1:80=1");
    assert_eq!(goes(&both, "other"), "v1:80=1");
    assert_eq!(goes(&both, "web"), "v2:80=1");
    let alone = [SERVICES, &consumer];
    assert_eq!(goes(&alone, "web"), "v2:80=1");
    assert_eq!(goes(&alone, "other"), "cart:80=1", "without routes of its own it reaches the Service itself");
}

#[test]
fn routes_have_effect_only_in_namespaces_of_the_mesh() {
    let member = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {openservicemesh.io/monitored-by: osm}}\n";
    let route = http(&format!("{{{TO_V1}}}"));
    assert!(routes(&cluster_index(&[SERVICES, &route, member]), "shop").is_some());
    assert!(routes(&cluster_index(&[SERVICES, &route]), "shop").is_none());
    let index = cluster_index(&[SERVICES, &route]);
    let object = index.routes().next().unwrap();
    assert!(RouteStatuses::new(&index, Features::EXECUTED).parents(object).is_empty());
}

#[test]
fn the_newest_routes_of_a_port_are_left_out_once_there_is_no_more_room() {
    let expressions = |i| format!("{{path: {{type: RegularExpression, value: '/{i}/[a-z]'}}}}");
    let matches: Vec<_> = (0..64).map(expressions).collect();
    let rules = format!("{{matches: [{}], {TO_V1}}}", matches.join(", "));
    let all: Vec<_> =
        (0..17).map(|i| created(&route("HTTPRoute", &format!("shop/r{i}"), "", &rules), i)).collect();
    let mut documents = vec![SERVICES];
    documents.extend(all.iter().map(String::as_str));
    let index = index(&documents);
    assert_eq!(routes(&index, "shop").unwrap().len(), 16);
    let mut statuses = RouteStatuses::new(&index, Features::EXECUTED);
    let refused: Vec<_> = index
        .routes()
        .filter(|object| statuses.judged(*object).status.current == CurrentStatus::Error)
        .map(|object| object.name.to_string())
        .collect();
    assert_eq!(refused, ["shop/r16"]);
}

/// A route of the property below.
#[derive(Clone, Debug)]
struct Sketch {
    is_grpc: bool,
    namespace: &'static str,
    port: Option<u16>,
    created: u32,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let namespace = prop::sample::select(vec!["shop", "web"]);
    let port = prop::sample::select(vec![None, Some(80), Some(8080), Some(5432), Some(9999)]);
    (any::<bool>(), namespace, port, 0..3_u32).prop_map(|(is_grpc, namespace, port, created)| Sketch {
        is_grpc,
        namespace,
        port,
        created,
    })
}

/// GEP-1294, sentence by sentence: the names of the routes that clients of a namespace get at a port.
fn expected(sketches: &[Sketch], port: u16, caller: &str) -> Option<BTreeSet<String>> {
    let is_http = port != 5432 && port != 9999;
    let all: Vec<_> = sketches
        .iter()
        .enumerate()
        .filter(|(_, sketch)| is_http && sketch.port.is_none_or(|wanted| wanted == port))
        .collect();
    if all.is_empty() {
        return None;
    }
    let consumers: Vec<_> = all.iter().filter(|(_, sketch)| sketch.namespace == caller).collect();
    let producers: Vec<_> = all.iter().filter(|(_, sketch)| sketch.namespace == "shop").collect();
    let group = if consumers.is_empty() { producers } else { consumers };
    if group.is_empty() {
        return Some(["Service shop/cart".to_owned()].into());
    }
    let has_grpc = group.iter().any(|(_, sketch)| sketch.is_grpc);
    let winners = group.into_iter().filter(|(_, sketch)| sketch.is_grpc == has_grpc);
    let name = |(i, sketch): &(usize, &Sketch)| {
        let kind = if sketch.is_grpc { "GRPCRoute" } else { "HTTPRoute" };
        format!("{kind} {}/r{i}", sketch.namespace)
    };
    Some(winners.map(name).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn routes_are_attached_as_gep_1294_says(sketches in prop::collection::vec(sketch(), 0..6)) {
        let documents: Vec<_> = sketches.iter().enumerate().map(|(i, sketch)| {
            let kind = if sketch.is_grpc { "GRPCRoute" } else { "HTTPRoute" };
            let parent = sketch.port.map(|port| format!(", port: {port}")).unwrap_or_default();
            let name = format!("{}/r{i}", sketch.namespace);
            created(&route(kind, &name, &parent, &format!("{{{TO_V1}}}")), sketch.created)
        }).collect();
        let mut all = vec![SERVICES];
        all.extend(documents.iter().map(String::as_str));
        let index = index(&all);
        for port in [80, 8080, 5432, 9999] {
            for caller in ["shop", "web", "other"] {
                let found = with_resolver(&index, Features::EXECUTED, |resolver| resolver.routes(&cart(), port, caller));
                let found = found.map(|found| {
                    found.routes.iter().map(|route| route.origin.to_string()).collect::<BTreeSet<_>>()
                });
                prop_assert_eq!(found, expected(&sketches, port, caller), "{} {}", port, caller);
            }
        }
    }
}
