//! TLSRoutes, whose rule applies to connections by the name of the server.

use super::*;

/// A TLSRoute of Service `cart` for these hostnames, which leads to a backend.
fn tls(name: &str, hostnames: &str, port: u16, backend: &str) -> String {
    let rules = format!("{{backendRefs: [{{name: {backend}, namespace: shop, port: 81}}]}}");
    let route = route("TLSRoute", name, &format!(", port: {port}"), &rules);
    route.replace("spec: {", &format!("spec: {{hostnames: [{hostnames}], "))
}

/// Where a connection to port 5432 goes whose client asks for this server.
fn server(documents: &[&str], name: &'static str) -> String {
    let index = index(documents);
    let routes = with_resolver(&index, Features::EXECUTED, |resolver| resolver.routes(&cart(), 5432, "shop"));
    let table = RouteTable::new(routes.unwrap().routes).unwrap();
    outcome(&table, &Request { authority: name, ..Request::default() })
}

#[test]
fn the_name_of_the_server_chooses_among_tls_routes_the_most_specific_first() {
    let exact = tls("shop/a", "db.example", 5432, "v1");
    let suffix = tls("shop/b", "'*.example'", 5432, "bytes");
    let documents = [SERVICES, &exact, &suffix];
    assert_eq!(server(&documents, "db.example"), "v1:81=1");
    assert_eq!(server(&documents, "other.example"), "500=1", "there is no Service bytes");
    for name in ["example", "db.example.org", ""] {
        assert_eq!(server(&documents, name), "404", "{name}");
    }
}

#[test]
fn a_tls_route_needs_names_of_servers_and_a_port_whose_clients_speak_tls() {
    let of = |route: &str| conditions(&[SERVICES, route], Features::EXECUTED);
    assert_eq!(of(&tls("shop/r", "db.example", 5432, "v1")), "Accepted ResolvedRefs");
    let refused = "Accepted=UnsupportedValue ResolvedRefs";
    assert_eq!(of(&tls("shop/r", "db.example", 80, "v1")), refused, "a port with HTTP");
    assert_eq!(of(&tls("shop/r", "db.example", 8080, "v1")), refused, "a port that declares nothing");
    for hostnames in ["", "'*'", "10.0.0.1", "'a b'", "db.example, 'a b'"] {
        assert_eq!(of(&tls("shop/r", hostnames, 5432, "v1")), refused, "{hostnames}");
    }
}

#[test]
fn a_tls_route_takes_a_port_from_tcp_routes() {
    let rules = "{backendRefs: [{name: v1, namespace: shop, port: 81}]}";
    let tcp = route("TCPRoute", "shop/a", ", port: 5432", rules);
    let tls = tls("shop/r", "db.example", 5432, "v1");
    assert_eq!(server(&[SERVICES, &tcp, &tls], "other.example"), "404");
    let index = index(&[SERVICES, &tcp, &tls]);
    let object = index.routes().find(|object| object.routed == Routed::Tcp).unwrap();
    let parents = RouteStatuses::new(&index, Features::EXECUTED).parents(object);
    assert_eq!(parents[0].conditions[0].reason, "Conflicted");
}
