//! Entries at whose ports hosts tell connections apart.

use super::*;

/// An entry for these hosts at port 443, without addresses unless `more` has some.
fn tls(name: &str, second: u8, hosts: &str, more: &str) -> String {
    let ports = "ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]";
    entry(name, second, &format!("hosts: [{hosts}], {ports}, resolution: NONE{more}"))
}

fn to(name: &str) -> String {
    format!("Tcp ServiceEntry {name} original")
}

#[test]
fn a_host_without_addresses_is_reached_at_every_address_and_no_other_host_is() {
    let index = index(&[&tls("shop/api", 0, "API.example.com, '*.wide.example'", "")]);
    for address in ["192.0.2.1:443", "[2001:db8::1]:443", "192.0.2.1:80"] {
        assert_eq!(seen(&index, address, None), "ByHost(Unknown)", "{address}");
    }
    assert_eq!(seen(&index, "192.0.2.1:444", None), "Unknown");
    for (key, expected) in [
        ("192.0.2.1:443/tls/api.example.com", to("shop/api")),
        ("[2001:db8::1]:443/tls/api.example.com", to("shop/api")),
        ("192.0.2.1:443/tls/a.b.wide.example", to("shop/api")),
        ("192.0.2.1:443/tls/wide.example", "Unknown".to_owned()),
        ("192.0.2.1:443/tls/other.example.com", "Unknown".to_owned()),
        ("192.0.2.1:443/tls/x.api.example.com", "Unknown".to_owned()),
        // The port is one for TLS, so a request in plaintext is not for it.
        ("192.0.2.1:443/http/api.example.com", "Unknown".to_owned()),
        ("192.0.2.1:80/http/api.example.com", "Http ServiceEntry shop/api original".to_owned()),
        ("192.0.2.1:80/tls/api.example.com", "Unknown".to_owned()),
        ("192.0.2.1:444/tls/api.example.com", "Unknown".to_owned()),
    ] {
        assert_eq!(seen_host(&index, key, None), expected, "{key}");
    }
    assert_eq!(status(&index, "shop/api").0, ACCEPTED);
}

#[test]
fn a_range_narrows_the_addresses_at_which_a_host_is_reached() {
    let index = index(&[&tls("shop/api", 0, "a.example", ", addresses: [192.0.2.0/24]")]);
    assert_eq!(seen(&index, "192.0.2.1:443", None), "ByHost(Unknown)");
    assert_eq!(seen(&index, "192.0.3.1:443", None), "Unknown");
    assert_eq!(seen_host(&index, "192.0.2.1:443/tls/a.example", None), to("shop/api"));
    assert_eq!(seen_host(&index, "192.0.3.1:443/tls/a.example", None), "Unknown");
}

#[test]
fn the_most_specific_host_wins_then_the_client_s_namespace_then_the_oldest() {
    let wide = tls("a/wide", 0, "'*.example'", "");
    let exact = tls("b/exact", 3, "x.api.example", "");
    let middle = tls("c/middle", 2, "'*.api.example'", "");
    let younger = tls("d/younger", 4, "x.api.example", "");
    let documents = [&wide[..], &exact, &middle, &younger];
    for documents in [documents, [&younger, &middle, &exact, &wide]] {
        let index = index(&documents);
        let who = |host: &str, client| seen_host(&index, &format!("192.0.2.1:443/tls/{host}"), client);
        assert_eq!(who("x.api.example", None), to("b/exact"));
        assert_eq!(who("x.api.example", Some("a")), to("b/exact"));
        assert_eq!(who("x.api.example", Some("d")), to("d/younger"));
        assert_eq!(who("y.api.example", Some("a")), to("c/middle"));
        assert_eq!(who("y.example", None), to("a/wide"));
        let (condition, _, warnings) = status(&index, "d/younger");
        assert_eq!(condition, ACCEPTED);
        let warning = "x.api.example at port 443 of every address is also ServiceEntry b/exact's, which takes precedence \
                       for clients of other namespaces";
        assert_eq!(warnings.first().map(String::as_str), Some(warning));
    }
    let same = tls("b/same", 9, "x.api.example", "");
    let (condition, reason, _) = status(&index(&[&exact, &same]), "b/same");
    assert_eq!(condition, "Conflicted");
    let expected =
        "x.api.example at port 443 of every address is ServiceEntry b/exact's, which takes precedence";
    assert_eq!(reason, expected);
}

#[test]
fn export_to_narrows_which_clients_connections_are_read_at_all() {
    let own = tls("a/own", 0, "a.example", ", exportTo: ['.']");
    let named = tls("b/named", 0, "b.example", ", exportTo: [shop]");
    let index = index(&[&own, &named, &pod("cart", "10.1.0.1")]);
    assert_eq!(seen(&index, "192.0.2.1:443", None), "Unknown");
    assert_eq!(seen(&index, "192.0.2.1:443", Some("b")), "Unknown");
    for client in ["a", "shop"] {
        assert_eq!(seen(&index, "192.0.2.1:443", Some(client)), "ByHost(Unknown)", "{client}");
    }
    assert_eq!(seen_host(&index, "192.0.2.1:443/tls/a.example", Some("shop")), "Unknown");
    let key = "192.0.2.1:443".parse::<SocketAddr>().unwrap().into();
    let clients = with_resolver(&index, |resolver| resolver.entries(&key).clients());
    assert_eq!(clients.iter().map(|client| &**client).collect::<Vec<_>>(), ["a", "b", "shop"]);
}

#[test]
fn bytes_are_not_read_where_tcp_comes_first() {
    let plain = "hosts: [b.example], ports: [{number: 3128, name: http, protocol: HTTP}]";
    let wide =
        "hosts: [c.example], addresses: [192.0.2.0/24], ports: [{number: 3128, name: tcp, protocol: TCP}]";
    let (http, proxy) = (entry("shop/http", 0, plain), entry("default/proxy", 9, PROXY));
    let index_of = index(&[&http, &proxy, &entry("default/wide", 9, wide)]);
    // One that lists the address comes before the entries with hosts of the client's own namespace.
    assert_eq!(seen(&index_of, "192.0.2.9:3128", Some("shop")), "Tcp ServiceEntry default/proxy original");
    assert_eq!(seen(&index_of, "192.0.2.8:3128", None), "Tcp ServiceEntry default/wide original");
    assert_eq!(seen(&index_of, "192.0.3.8:3128", None), "ByHost(Unknown)");
    // Its own namespace's come before a range of another; without a host, the range is left.
    let own = seen(&index_of, "192.0.2.8:3128", Some("shop"));
    assert!(own.starts_with("ByHost(Routed") && own.contains("wide"), "{own}");
    let named = |host| seen_host(&index_of, &format!("192.0.2.8:3128/http/{host}"), Some("shop"));
    assert_eq!(named("b.example"), "Http ServiceEntry shop/http original");
    assert_eq!(named("x.example"), "Tcp ServiceEntry default/wide original");
    let every = "hosts: [d.example], ports: [{number: 3128, name: tcp, protocol: TCP}]";
    let index = index(&[&http, &entry("shop/tcp", 9, every)]);
    assert_eq!(seen(&index, "192.0.2.8:3128", None), "Tcp ServiceEntry shop/tcp original");
    let (condition, reason, _) = status(&index, "shop/http");
    assert_eq!(condition, "Conflicted");
    assert_eq!(
        reason,
        "b.example at port 3128 of every address is ServiceEntry shop/tcp's, which takes precedence"
    );
}

#[test]
fn a_service_s_name_is_not_a_host_of_an_entry() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}";
    let claim = tls("a/claim", 0, "cart.shop.svc, a.example", "");
    let index = index(&[service, &claim]);
    for host in ["cart.shop.svc", "a.example"] {
        assert_eq!(seen_host(&index, &format!("192.0.2.1:443/tls/{host}"), None), "Unknown", "{host}");
    }
    assert_eq!(status(&index, "a/claim").0, "Conflicted");
}
