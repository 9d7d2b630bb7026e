use tidegate_core::route::{Action, BackendTarget, RouteTable};

use super::*;
use crate::compile::route_features::Features;
use crate::compile::service_routes::PortRoutes;
use crate::compile::status::CurrentStatus;
use crate::testing::shop::{Request, SERVICES, cart, get, with_resolver};
use crate::testing::{cluster_index, index};

mod naive;
mod precedence;
mod statuses;

/// HTTPRouteGroups of namespace `shop`: `new` for a header, `books` for paths, `all` for everything, `wrong`.
const GROUPS: &str = r"
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: new, namespace: shop}
spec: {matches: [{name: a, headers: [{x-version: 'new.*'}]}]}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: books, namespace: shop}
spec: {matches: [{name: a, pathRegex: /books/.*, methods: [GET]}, {name: b, pathRegex: /new}]}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: all, namespace: shop}
spec: {matches: [{name: a, pathRegex: '.*', methods: ['*']}]}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: wrong, namespace: shop}
spec: {matches: [{name: a, pathRegex: '('}]}
";

/// A split of Service `cart` in namespace `shop`; `backends` is a YAML list without its brackets, `more` are further fields.
fn split(name: &str, second: u32, backends: &str, more: &str) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-01T00:00:{second:02}Z'}}\n\
         spec: {{service: cart, backends: [{backends}]{more}}}\n"
    )
}

const NINE_TO_ONE: &str = "{service: v1, weight: 90}, {service: v2, weight: 10}";

/// What clients of a namespace get at a port of Service `cart`.
fn routes(index: &Index, port: u16, caller: &str) -> Option<PortRoutes> {
    with_resolver(index, Features::EXECUTED, |resolver| {
        let routes = resolver.routes(&cart(), port, caller);
        assert_eq!(routes.is_some(), resolver.has_routes(&cart(), port));
        routes
    })
}

/// A connection of bytes that are not parsed: rules see nothing of it.
const OPAQUE: Request = Request { method: "", authority: "", path: "", query: None, headers: &[] };

/// The shares of a request's backends, such as `v1=90 500=10`; `itself` without routes.
fn outcome(routes: Option<PortRoutes>, request: &Request) -> String {
    let Some(PortRoutes { routes, .. }) = routes else { return "itself".to_owned() };
    let table = RouteTable::new(routes).unwrap();
    let rule = table.select(request).unwrap().rule;
    let Action::Forward(shares) = &rule.action else { panic!("{rule:?}") };
    let shares: Vec<_> = shares
        .iter()
        .map(|share| match &share.target {
            BackendTarget::Backend(backend) => format!("{}={}", backend.object.name, share.weight),
            BackendTarget::Invalid(response) => format!("{}={}", response.status, share.weight),
            BackendTarget::App => panic!("no split leads to an app"),
        })
        .collect();
    shares.join(" ")
}

/// What a request for a port of Service `cart` gets with these objects.
fn at(documents: &[&str], port: u16, request: &Request) -> String {
    let documents: Vec<_> = [SERVICES, GROUPS].into_iter().chain(documents.iter().copied()).collect();
    outcome(routes(&index(&documents), port, "web"), request)
}

#[test]
fn a_split_shares_each_port_among_the_backends_that_have_it() {
    let split = split("s", 1, NINE_TO_ONE, "");
    assert_eq!(at(&[&split], 80, &get("/")), "v1=90 v2=10");
    assert_eq!(at(&[&split], 5432, &OPAQUE), "v1=90", "v2 does not have the port");
    assert_eq!(at(&[&split], 8080, &get("/")), "itself", "no backend has the port");
    assert_eq!(at(&[], 80, &get("/")), "itself");
    for service in ["cart.shop", "cart.shop.svc.cluster.local"] {
        let split = split.replace("service: cart,", &format!("service: {service},"));
        assert_eq!(at(&[&split], 80, &get("/")), "v1=90 v2=10", "{service}");
    }
}

#[test]
fn the_root_may_be_a_backend_and_splits_do_not_nest() {
    let root = split("s", 1, "{service: cart, weight: 3}, {service: v1, weight: 1}", "");
    let nested = split("inner", 1, "{service: v2, weight: 1}", "").replace("service: cart", "service: v1");
    assert_eq!(at(&[&root, &nested], 80, &get("/")), "cart=3 v1=1");
    assert_eq!(at(&[&root, &nested], 8080, &get("/")), "cart=3");
}

#[test]
fn a_backend_that_cannot_be_reached_answers_its_share_with_an_error() {
    let backends = |backend: &str| format!("{{service: v1, weight: 9}}, {{service: {backend}, weight: 1}}");
    for backend in ["missing", "v2.other", "alias", "bytes"] {
        let split = split("s", 1, &backends(backend), "");
        assert_eq!(at(&[&split], 80, &get("/")), "v1=9 500=1", "{backend}");
    }
    let bytes = split("s", 1, &backends("bytes"), "");
    assert_eq!(at(&[&bytes], 5432, &OPAQUE), "v1=9 bytes=1");
    assert_eq!(at(&[&split("s", 1, "{service: v1, weight: 0}", "")], 80, &get("/")), "v1=0");
    assert_eq!(at(&[&split("s", 1, "", "")], 80, &get("/")), "");
}

#[test]
fn requests_that_a_group_matches_are_split_and_others_go_to_the_root() {
    let with = |groups: &str| {
        let groups: Vec<_> =
            groups.split(' ').map(|name| format!("{{kind: HTTPRouteGroup, name: {name}}}")).collect();
        split("s", 1, NINE_TO_ONE, &format!(", matches: [{}]", groups.join(", ")))
    };
    let new = Request { headers: &[("x-version", "new-2")], ..get("/") };
    let (to_both, to_root) = ("v1=90 v2=10", "cart=1");
    for (groups, request, expected) in [
        ("new", new, to_both),
        ("new", get("/"), to_root),
        ("new", Request { headers: &[("x-version", "old")], ..get("/") }, to_root),
        ("books", get("/books/1"), to_both),
        ("books", Request { method: "POST", ..get("/books/1") }, to_root),
        ("books", Request { method: "POST", ..get("/new") }, to_both),
        ("new books", get("/new"), to_both),
        ("new books", new, to_both),
        ("all", Request { method: "POST", ..get("/any") }, to_both),
        ("missing", get("/"), "itself"),
        ("new missing", new, "itself"),
        ("wrong", get("/"), "itself"),
    ] {
        assert_eq!(at(&[&with(groups)], 80, &request), expected, "{groups} {request:?}");
    }
    // Bytes that are not parsed match no condition, and everything.
    assert_eq!(at(&[&with("new")], 5432, &OPAQUE), to_root);
    assert_eq!(at(&[&with("all")], 5432, &OPAQUE), "v1=90");
}

#[test]
fn a_root_without_an_address_is_not_split() {
    for root in ["headless", "alias", "none", "cart.other"] {
        let split = split("s", 1, NINE_TO_ONE, "").replace("service: cart", &format!("service: {root}"));
        let index = index(&[SERVICES, &split]);
        let name = ObjectName::new("shop", root.split('.').next().unwrap());
        assert!(shares::at(&index, &name, 80).is_none(), "{root}");
    }
}

#[test]
fn an_open_service_mesh_user_s_version_means_the_same() {
    let older = split("s", 1, NINE_TO_ONE, "").replace("v1alpha4", "v1alpha2");
    assert_eq!(at(&[&older], 80, &get("/")), "v1=90 v2=10");
}
