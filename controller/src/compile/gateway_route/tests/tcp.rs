//! TCPRoutes, whose rule applies to every connection.

use super::*;

fn tcp(name: &str, parent: &str, backends: &str) -> String {
    route("TCPRoute", name, parent, &format!("{{backendRefs: [{backends}]}}"))
}

/// The shares of connections to a port of Service `cart`, for clients of namespace `shop`.
fn shares(documents: &[&str], port: u16) -> String {
    let index = index(documents);
    let routes = with_resolver(&index, Features::EXECUTED, |resolver| resolver.routes(&cart(), port, "shop"));
    routes.map_or_else(
        || "itself".to_owned(),
        |found| outcome(&RouteTable::new(found.routes).unwrap(), &Request::default()),
    )
}

#[test]
fn a_tcp_route_shares_connections_to_any_tcp_port_among_any_tcp_ports() {
    let backends = "{name: v1, namespace: shop, port: 81, weight: 9}, {name: v2, namespace: shop, port: 80}";
    let route = tcp("shop/r", ", port: 5432", backends);
    assert_eq!(shares(&[SERVICES, &route], 5432), "v1:81=9 v2:80=1");
    assert_eq!(conditions(&[SERVICES, &route], Features::EXECUTED), "Accepted ResolvedRefs");
    assert_eq!(shares(&[SERVICES, &tcp("shop/r", "", backends)], 80), "v1:81=9 v2:80=1");
    assert_eq!(shares(&[SERVICES, &route], 80), "itself");
}

#[test]
fn a_backend_of_a_tcp_route_that_does_not_exist_takes_its_share() {
    let backends =
        "{name: v1, namespace: shop, port: 81, weight: 9}, {name: none, namespace: shop, port: 80}";
    let route = tcp("shop/r", ", port: 5432", backends);
    assert_eq!(shares(&[SERVICES, &route], 5432), "v1:81=9 500=1");
    assert_eq!(conditions(&[SERVICES, &route], Features::EXECUTED), "Accepted ResolvedRefs=BackendNotFound");
}

#[test]
fn the_oldest_tcp_route_has_a_port_unless_routes_of_requests_do() {
    let to = |name: &str, second, backend: &str| {
        created(&tcp(name, ", port: 80", &format!("{{name: {backend}, namespace: shop, port: 80}}")), second)
    };
    let (older, newer) = (to("shop/r", 1, "v2"), to("shop/a", 2, "v1"));
    assert_eq!(shares(&[SERVICES, &newer, &older], 80), "v2:80=1");
    let conflicted = "Accepted=Conflicted ResolvedRefs";
    assert_eq!(
        conditions(&[SERVICES, &newer, &older], Features::EXECUTED),
        conflicted,
        "shop/a is the first by name"
    );
    let http = route("HTTPRoute", "shop/z", ", port: 80", &format!("{{{TO_V1}}}"));
    assert_eq!(shares(&[SERVICES, &older, &http], 80), "404", "an HTTPRoute's rule is about requests");
    let index = index(&[SERVICES, &older, &http]);
    let object = index.routes().find(|object| object.routed == Routed::Tcp).unwrap();
    let parents = RouteStatuses::new(&index, Features::EXECUTED).parents(object);
    assert_eq!(parents[0].conditions[0].message, "HTTPRoute shop/z takes precedence at port 80");
}

#[test]
fn parts_that_only_requests_have_are_not_accepted() {
    for part in ["matches: [{path: {value: /a}}]", "filters: [{type: RequestRedirect, requestRedirect: {}}]"]
    {
        let rule = format!("{{{part}, backendRefs: [{{name: v1, namespace: shop, port: 81}}]}}");
        let route = route("TCPRoute", "shop/r", ", port: 5432", &rule);
        let expected = "Accepted=UnsupportedValue ResolvedRefs";
        assert_eq!(conditions(&[SERVICES, &route], Features::EXECUTED), expected, "{part}");
    }
}

#[test]
fn smi_s_tcp_route_of_the_same_name_is_another_object() {
    let smi = "apiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: {name: r, namespace: shop}\n\
               spec: {matches: {ports: [5432]}}\n";
    let gateway = tcp("shop/r", ", port: 5432", "{name: v1, namespace: shop, port: 81}");
    let index = index(&[SERVICES, smi, &gateway]);
    assert_eq!((index.tcp_routes().count(), index.routes().count()), (1, 1));
    assert_eq!(shares(&[SERVICES, smi, &gateway], 5432), "v1:81=1");
}
