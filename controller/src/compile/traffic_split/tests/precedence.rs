//! What decides where several objects are about one Service.

use super::*;

/// An HTTPRoute of a namespace that leads port 80 of Service `cart` to `v2`.
fn http_route(namespace: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop, port: 80}}], \
         rules: [{{backendRefs: [{{name: v2, namespace: shop, port: 80}}]}}]}}\n"
    )
}

#[test]
fn of_several_splits_the_oldest_decides_then_the_first_by_name() {
    let to = |name: &str, second, backend: &str| {
        split(name, second, &format!("{{service: {backend}, weight: 1}}"), "")
    };
    assert_eq!(at(&[&to("a", 2, "v1"), &to("b", 1, "v2")], 80, &get("/")), "v2=1");
    assert_eq!(at(&[&to("b", 1, "v2"), &to("a", 1, "v1")], 80, &get("/")), "v1=1");
    // One that cannot be in force still decides: repairing it must not change what others do.
    let broken = split("a", 1, NINE_TO_ONE, ", matches: [{kind: HTTPRouteGroup, name: none}]");
    assert_eq!(at(&[&broken, &to("b", 2, "v2")], 80, &get("/")), "itself");
}

#[test]
fn routes_of_the_client_s_namespace_or_of_the_service_s_take_precedence_over_a_split() {
    let split = split("s", 1, NINE_TO_ONE, "");
    for (namespace, web, others) in [("shop", "v2=1", "v2=1"), ("web", "v2=1", "v1=90 v2=10")] {
        let index = index(&[SERVICES, &split, &http_route(namespace)]);
        assert_eq!(outcome(routes(&index, 80, "web"), &get("/")), web);
        assert_eq!(outcome(routes(&index, 80, "other"), &get("/")), others);
        assert_eq!(outcome(routes(&index, 5432, "web"), &OPAQUE), "v1=90", "another port");
    }
}

#[test]
fn the_status_says_where_routes_take_precedence() {
    let of = |namespace: &str, root: &str| {
        let split = split("s", 1, NINE_TO_ONE, "").replace("service: cart", &format!("service: {root}"));
        let route = http_route(namespace).replace("name: cart", &format!("name: {root}"));
        statuses::status(&[&split, &route], "s")
    };
    assert_eq!(
        of("shop", "cart"),
        "committed Accepted; HTTPRoute shop/r takes precedence at port 80; these backends do not have port 5432 and get \
         nothing of it: v2; port 8080 is not split: no backend has it"
    );
    assert_eq!(
        of("web", "v2"),
        "committed Accepted; routes of the namespaces web take precedence for their own clients"
    );
    assert_eq!(of("shop", "v2"), "error Conflicted: HTTPRoute shop/r takes precedence at port 80");
}
