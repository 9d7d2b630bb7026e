use serde_json::{Value, json};

use super::*;

/// A valid entry with these fields changed.
fn findings(change: Value) -> Vec<String> {
    let mut spec = json!({
        "hosts": ["a.example.com"], "addresses": ["192.0.2.1"], "resolution": "STATIC",
        "ports": [{"number": 443, "name": "https", "protocol": "TLS"}],
        "endpoints": [{"address": "192.0.2.2"}],
    });
    for (key, value) in change.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let spec: ServiceEntrySpec = serde_json::from_value(spec).unwrap();
    service_entry("shop", &spec).iter().map(Finding::with_severity).collect()
}

fn port(protocol: &str) -> Value {
    json!([{"number": 443, "name": "p", "protocol": protocol}])
}

#[test]
fn entries_of_istio_s_users_are_valid() {
    let seed = json!({
        "hosts": ["my-company-proxy.com"], "addresses": ["192.0.2.1/32"], "resolution": "NONE",
        "ports": [{"number": 3128, "name": "tcp", "protocol": "TCP"}], "location": "MESH_EXTERNAL", "endpoints": [],
    });
    let dns = json!({"resolution": "DNS", "endpoints": [], "addresses": []});
    let dynamic =
        json!({"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS", "endpoints": [], "addresses": []});
    let exported = json!({"exportTo": [".", "web"]});
    let named =
        json!({"resolution": "DNS", "endpoints": [{"address": "b.example.com", "ports": {"https": 8443}}]});
    let socket = json!({"endpoints": [{"address": "unix:///run/app.sock"}]});
    for change in [json!({}), seed, dns, dynamic, exported, named, socket, json!({"ports": port("mongo")})] {
        assert_eq!(findings(change.clone()), Vec::<String>::new(), "{change}");
    }
}

#[test]
fn hosts_and_addresses_that_istio_refuses_are_refused_with_field_and_value() {
    for (change, expected) in [
        (json!({"hosts": []}), "error: spec.hosts: at least one host is required"),
        (
            json!({"hosts": ["*"]}),
            "error: spec.hosts[0]: '*' is not allowed: name a domain, such as *.example.com",
        ),
        (
            json!({"hosts": ["a_b.c d"]}),
            "error: spec.hosts[0]: \"a_b.c d\" contains a character that is not allowed in a DNS name",
        ),
        (
            json!({"hosts": ["foo*"]}),
            "warning: spec.hosts[0]: 'foo*' matches no host: only a first label may be '*'",
        ),
        (
            json!({"hosts": ["a.example", "b.example"], "ports": port("TCP")}),
            "error: spec.ports[0].protocol: several hosts need ports that carry a host: HTTP, HTTP2, GRPC, HTTPS or TLS",
        ),
        (
            json!({"addresses": ["10.0.0.0/33"]}),
            "error: spec.addresses[0]: expected an IP address or a CIDR range, got '10.0.0.0/33'",
        ),
        (
            json!({"addresses": ["10.0.0.0/8"], "resolution": "DNS"}),
            "error: spec.addresses[0]: '10.0.0.0/8' is a CIDR range, which only NONE and STATIC resolution take",
        ),
    ] {
        assert_eq!(findings(change), [expected]);
    }
}

#[test]
fn ports_and_words_that_istio_refuses_are_refused_with_field_and_value() {
    for (change, expected) in [
        (
            json!({"ports": [{"number": 70000, "name": "p"}]}),
            "error: spec.ports[0].number: expected 1 to 65535, got 70000",
        ),
        (
            json!({"ports": [{"number": 1, "name": "p", "targetPort": 0}]}),
            "error: spec.ports[0].targetPort: expected 1 to 65535, got 0",
        ),
        (
            json!({"ports": [{"number": 1, "name": "p"}, {"number": 1, "name": "q"}]}),
            "error: spec.ports[1].number: 1 is the number of another port",
        ),
        (
            json!({"ports": [{"number": 1, "name": "p"}, {"number": 2, "name": "p"}]}),
            "error: spec.ports[1].name: 'p' is the name of another port",
        ),
        (
            json!({"ports": [{"number": 1, "name": "P"}]}),
            "error: spec.ports[0].name: expected at most 63 lower-case letters, digits and '-', got 'P'",
        ),
        (
            json!({"ports": port("SCTP")}),
            "error: spec.ports[0].protocol: 'SCTP' is not supported: expected HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS",
        ),
        (
            json!({"ports": port("UDP")}),
            "warning: spec.ports[0].protocol: UDP is not intercepted, so this port has no effect",
        ),
        (
            json!({"location": "MARS"}),
            "error: spec.location: 'MARS' is not supported: expected MESH_EXTERNAL or MESH_INTERNAL",
        ),
        (
            json!({"resolution": "MAGIC"}),
            "error: spec.resolution: 'MAGIC' is not supported: expected NONE, STATIC, DNS, DNS_ROUND_ROBIN or DYNAMIC_DNS",
        ),
    ] {
        assert_eq!(findings(change), [expected]);
    }
}

#[test]
fn what_a_resolution_does_not_take_is_refused() {
    let none = json!([]);
    for (change, expected) in [
        (json!({"resolution": "NONE"}), "error: spec.endpoints: not allowed with resolution NONE"),
        (json!({"resolution": null}), "error: spec.endpoints: not allowed with resolution NONE"),
        (
            json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.b"}, {"address": "c.d"}]}),
            "error: spec.endpoints: DNS_ROUND_ROBIN takes one endpoint, got 2",
        ),
        (
            json!({"resolution": "DNS", "hosts": ["*.example.com"], "endpoints": none}),
            "error: spec.hosts[0]: '*.example.com' cannot be resolved: without endpoints, DNS needs whole names",
        ),
        (
            json!({"resolution": "DYNAMIC_DNS", "addresses": [], "endpoints": none}),
            "error: spec.hosts[0]: 'a.example.com' is a whole name: DYNAMIC_DNS takes wildcards, such as *.example.com",
        ),
        (
            json!({"resolution": "DYNAMIC_DNS", "hosts": ["*.example.com"], "endpoints": none}),
            "error: spec.addresses: not allowed with DYNAMIC_DNS",
        ),
        (
            json!({"resolution": "DYNAMIC_DNS", "hosts": ["*.a.b"], "addresses": [], "endpoints": none, "ports": port("TCP")}),
            "error: spec.ports[0].protocol: 'TCP' carries no host: DYNAMIC_DNS takes HTTP, HTTP2, GRPC and TLS",
        ),
        (
            json!({"endpoints": [{"address": "b.example.com"}]}),
            "error: spec.endpoints[0].address: expected an IP address or unix:// with STATIC, got 'b.example.com'",
        ),
        (
            json!({"resolution": "DNS", "endpoints": [{"address": "b c"}]}),
            "error: spec.endpoints[0].address: expected an IP address or a DNS name, got 'b c'",
        ),
    ] {
        assert_eq!(findings(change), [expected]);
    }
}

#[test]
fn an_endpoint_s_service_account_has_a_name_that_one_can_have() {
    let named =
        |account: &str| findings(json!({"endpoints": [{"address": "192.0.2.2", "serviceAccount": account}]}));
    let error =
        "error: spec.endpoints[0].serviceAccount: service account \"a_b\" is not a DNS-1123 subdomain";
    assert_eq!(named("a_b"), [error]);
    assert!(named("").is_empty() && named("cart.v2").is_empty());
}

#[test]
fn a_selector_needs_labels_without_wildcards_and_a_resolution_that_takes_endpoints() {
    for (change, expected) in [
        (
            json!({"endpoints": [], "workloadSelector": {"labels": {"app": "a*"}}, "location": "MESH_INTERNAL"}),
            "error: spec.workloadSelector.labels.app: '*' is not allowed in a label, got 'app: a*'",
        ),
        (
            json!({"endpoints": [], "workloadSelector": {}}),
            "warning: spec.workloadSelector: has no labels, and selects no Pod",
        ),
        (
            json!({"endpoints": [], "workloadSelector": {"labels": {"app": "a"}}}),
            "warning: spec.location: Pods with a sidecar refuse the plaintext of MESH_EXTERNAL: MESH_INTERNAL is for these",
        ),
        (
            json!({"endpoints": [], "workloadSelector": {"labels": {"app": "a"}}, "resolution": "NONE"}),
            "warning: spec.workloadSelector: has no effect with resolution NONE",
        ),
    ] {
        assert_eq!(findings(change), [expected]);
    }
}

#[test]
fn endpoints_and_exports_that_istio_refuses_are_refused() {
    for (change, expected) in [
        (
            json!({"workloadSelector": {"labels": {"app": "a"}}}),
            "error: spec.workloadSelector: not allowed beside spec.endpoints: one of both says who serves",
        ),
        (json!({"endpoints": [{}]}), "error: spec.endpoints[0].address: required, unless network is set"),
        (
            json!({"endpoints": [{"address": "192.0.2.1", "ports": {"http": 80}}]}),
            "error: spec.endpoints[0].ports.http: spec.ports has no port with the name 'http'",
        ),
        (
            json!({"endpoints": [{"address": "192.0.2.1", "ports": {"https": 0}}]}),
            "error: spec.endpoints[0].ports.https: expected 1 to 65535, got 0",
        ),
        (
            json!({"endpoints": [{"address": "unix://run/app/"}]}),
            "error: spec.endpoints[0].address: expected unix:///path or unix://@name, got 'unix://run/app/'",
        ),
        (
            json!({"endpoints": [{"address": "unix:///a", "ports": {"https": 1}}]}),
            "error: spec.endpoints[0].address: a unix:// address has no ports",
        ),
        (json!({"exportTo": ["*", "~"]}), "error: spec.exportTo[0]: '*' must stand alone"),
        (
            json!({"exportTo": ["shop", "."]}),
            "error: spec.exportTo[1]: '.' is namespace shop, which is listed already",
        ),
        (
            json!({"exportTo": ["A"]}),
            "error: spec.exportTo[0]: expected '*', '.', '~' or a namespace, got 'A'",
        ),
    ] {
        assert_eq!(findings(change)[0], expected);
    }
}

#[test]
fn what_is_not_kept_is_not_held_and_bounds_name_their_field() {
    let read =
        |spec: Value| serde_json::from_value::<ServiceEntrySpec>(spec).map_err(|error| error.to_string());
    let many = |count: usize| vec!["a.example"; count];
    assert!(read(json!({"hosts": many(256)})).is_ok());
    assert!(read(json!({"hosts": many(257)})).unwrap_err().contains("spec.hosts: Too many"));
    let ports: serde_json::Map<_, _> = (0..129).map(|i| (format!("p{i}"), 1.into())).collect();
    let endpoint = json!({"address": "192.0.2.1", "labels": {"a": "b"}, "ports": ports});
    let error = read(json!({"hosts": ["a"], "endpoints": [endpoint]})).unwrap_err();
    assert!(error.contains("spec.endpoints[].ports: Too many: must have at most 128 entries"), "{error}");
    let later = read(json!({"hosts": ["a"], "later": {"b": 1}, "endpoints": null, "addresses": null}));
    assert_eq!(later.unwrap().endpoints, []);
}
