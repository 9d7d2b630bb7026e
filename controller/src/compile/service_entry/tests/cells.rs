//! Every combination of resolution, location, protocol and addresses.

use super::*;

/// What names a host that connections are told apart by, of a protocol.
fn source(protocol: &str) -> Option<&'static str> {
    match protocol {
        "TLS" | "HTTPS" => Some("tls"),
        "HTTP" | "HTTP2" | "GRPC" => Some("http"),
        _ => None,
    }
}

/// What connections carry.
fn carried(protocol: &str) -> &'static str {
    match protocol {
        "HTTP" => "Http",
        "HTTP2" | "GRPC" => "H2c",
        "" => "Undeclared",
        _ => "Tcp",
    }
}

const PROTOCOLS: [&str; 9] = ["TCP", "MONGO", "REDIS", "TLS", "HTTPS", "HTTP", "HTTP2", "GRPC", ""];
const ADDRESSES: [&str; 3] = ["192.0.2.1", "192.0.2.0/24", ""];

/// Resolutions with their endpoints, and what these are in words.
const RESOLUTIONS: [(&str, &str); 9] = [
    ("resolution: NONE", " original"),
    ("resolution: STATIC, endpoints: [{address: 10.0.0.1, serviceAccount: cart}]", " 10.0.0.1:443=cart"),
    ("resolution: STATIC, workloadSelector: {labels: {app: cart}}", " 10.1.0.1:443=cart"),
    ("resolution: DNS", " a.example:443"),
    ("resolution: DNS, workloadSelector: {labels: {app: cart}}", " 10.1.0.1:443=cart"),
    (
        "resolution: DNS, endpoints: [{address: b.example, ports: {p: 81}, serviceAccount: cart}, {address: 10.0.0.1, serviceAccount: cart}]",
        " b.example:81=cart 10.0.0.1:443=cart",
    ),
    ("resolution: DNS_ROUND_ROBIN", " first a.example:443"),
    ("resolution: DNS_ROUND_ROBIN, endpoints: [{address: b.example}]", " first b.example:443"),
    ("resolution: DYNAMIC_DNS", " <host>:443"),
];

/// Whether Istio's rules allow a cell.
fn is_valid(resolution: &str, protocol: &str, addresses: &str) -> bool {
    if resolution.contains("DYNAMIC_DNS") {
        return addresses.is_empty() && source(protocol).is_some();
    }
    !(resolution.contains("DNS") && addresses.contains('/'))
}

#[test]
fn each_cell_of_resolution_location_protocol_and_addresses_is_in_force_or_refused_by_istio_s_rules() {
    let mut count = 0;
    for ((resolution, endpoints), location) in RESOLUTIONS
        .into_iter()
        .flat_map(|resolution| [(resolution, "MESH_EXTERNAL"), (resolution, "MESH_INTERNAL")])
    {
        for (protocol, addresses) in
            PROTOCOLS.into_iter().flat_map(|protocol| ADDRESSES.map(|addresses| (protocol, addresses)))
        {
            count += 1;
            let host = if resolution.contains("DYNAMIC") { "'*.example'" } else { "a.example" };
            let declared =
                if protocol.is_empty() { String::new() } else { format!(", protocol: {protocol}") };
            let spec = format!(
                "hosts: [{host}], addresses: [{addresses}], location: {location}, {resolution}, \
                 ports: [{{number: 443, name: p{declared}}}]"
            );
            let index = index(&[&entry("shop/e", 0, &spec), &pod("cart", "10.1.0.1")]);
            let (condition, reason, _) = status(&index, "shop/e");
            if !is_valid(resolution, protocol, addresses) {
                assert_eq!(condition, "Invalid", "{spec}: {reason}");
                assert_eq!(seen(&index, "192.0.2.1:443", None), "Unknown", "{spec}");
                continue;
            }
            assert_eq!(condition, ACCEPTED, "{spec}: {reason}");
            let external = |text: &str| text.replace("=cart", "");
            let endpoints =
                if location == "MESH_INTERNAL" { endpoints.to_owned() } else { external(endpoints) };
            let expected = format!("{} ServiceEntry shop/e{endpoints}", carried(protocol));
            match source(protocol).filter(|_| addresses != "192.0.2.1") {
                None => assert_eq!(seen(&index, "192.0.2.1:443", None), expected, "{spec}"),
                Some(source) => {
                    assert_eq!(seen(&index, "192.0.2.1:443", None), "ByHost(Unknown)", "{spec}");
                    let of = |host| seen_host(&index, &format!("192.0.2.1:443/{source}/{host}"), None);
                    assert_eq!(of("a.example"), expected, "{spec}");
                    assert_eq!(of("a.other"), "Unknown", "{spec}");
                }
            }
        }
    }
    assert_eq!(count, 486);
}

#[test]
fn several_hosts_with_one_address_are_told_apart_where_each_leads_to_its_own_servers() {
    let spec = |resolution| {
        format!(
            "hosts: [a.example, b.example], addresses: [192.0.2.1], resolution: {resolution}, \
             ports: [{{number: 443, name: tls, protocol: TLS}}]"
        )
    };
    let dns = index(&[&entry("shop/e", 0, &spec("DNS"))]);
    assert_eq!(seen(&dns, "192.0.2.1:443", None), "ByHost(Unknown)");
    let of_b = seen_host(&dns, "192.0.2.1:443/tls/b.example", None);
    assert_eq!(of_b, "Tcp ServiceEntry shop/e <host>:443");
    let none = index(&[&entry("shop/e", 0, &spec("NONE"))]);
    assert_eq!(seen(&none, "192.0.2.1:443", None), "Tcp ServiceEntry shop/e original");
}
