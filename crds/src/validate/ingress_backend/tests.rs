use serde_json::{Value, json};

use super::*;

/// Findings as text, for one backend `httpbin:14001` with this protocol and `tls` block.
fn findings(protocol: &str, tls: Value, sources: Value) -> Vec<String> {
    let spec = json!({
        "backends": [{"name": "httpbin", "port": {"number": 14001, "protocol": protocol}, "tls": tls}],
        "sources": sources,
    });
    all(spec)
}

fn all(spec: Value) -> Vec<String> {
    let spec: IngressBackendSpec = serde_json::from_value(spec).unwrap();
    ingress_backend(&spec).iter().map(Finding::with_severity).collect()
}

fn range() -> Value {
    json!({"kind": "IPRange", "name": "10.0.0.0/8"})
}

fn principal(name: &str) -> Value {
    json!({"kind": "AuthenticatedPrincipal", "name": name})
}

#[test]
fn osm_s_refusals_are_refused_in_its_words() {
    let service =
        |name: &str, namespace: Value| json!([{"kind": "Service", "name": name, "namespace": namespace}]);
    for (protocol, sources, expected) in [
        (
            "grpc",
            json!([range()]),
            "spec.backends[0].port.protocol: Expected 'port.protocol' to be 'http' or 'https', got: grpc",
        ),
        (
            "http",
            json!([{"kind": "IPRange", "name": "10.0.0.1"}]),
            "spec.sources[0].name: Invalid 'source.name' value specified for IPRange. Expected CIDR notation 'a.b.c.d/x', got '10.0.0.1'",
        ),
        (
            "http",
            json!([{"kind": "Pod", "name": "x"}]),
            "spec.sources[0].kind: Invalid 'source.kind' value specified. Must be one of: Service, AuthenticatedPrincipal, IPRange",
        ),
        (
            "http",
            service("x", Value::Null),
            "spec.sources[0].namespace: 'source.namespace' not specified for source kind Service",
        ),
        (
            "http",
            service("", json!("ns")),
            "spec.sources[0].name: 'source.name' not specified for source kind Service",
        ),
        (
            "https",
            json!([principal("")]),
            "spec.sources[0].name: 'source.name' not specified for source kind AuthenticatedPrincipal",
        ),
    ] {
        assert_eq!(findings(protocol, Value::Null, sources), [format!("error: {expected}")]);
    }
}

#[test]
fn the_same_name_and_port_twice_is_refused() {
    let backend = |port: u16| json!({"name": "httpbin", "port": {"number": port, "protocol": "http"}});
    assert_eq!(
        all(json!({"backends": [backend(1), backend(14001), backend(14001)], "sources": [range()]})),
        ["error: spec.backends[2]: Duplicate backends detected with service name: httpbin and port: 14001"]
    );
}

#[test]
fn what_osm_accepted_is_not_an_error() {
    let skip = json!({"skipClientCertValidation": true});
    let validate = json!({"skipClientCertValidation": false});
    let warnings = [
        all(json!({"backends": [], "sources": []})),
        findings("http", Value::Null, json!([])),
        findings("http", Value::Null, json!([principal("a.b.cluster.local")])),
        findings("https", validate, json!([range()])),
        findings("https", Value::Null, json!([range()])),
        findings("https", Value::Null, json!([principal("*.cluster.local")])),
        findings(
            "https",
            json!({"skipClientCertValidation": false, "sniHosts": ["*"]}),
            json!([principal("*")]),
        ),
        findings("http", json!({"skipClientCertValidation": false, "sniHosts": ["a.b"]}), json!([range()])),
        findings("https", skip.clone(), json!([range(), principal("a.b.cluster.local")])),
        findings("https", skip, json!([range()])),
    ];
    for found in warnings {
        assert!(!found.is_empty());
        assert!(found.iter().all(|finding| finding.starts_with("warning: ")), "{found:?}");
    }
}

#[test]
fn a_policy_that_means_what_it_says_has_no_findings() {
    let service = json!({"kind": "Service", "name": "x", "namespace": "y"});
    let ranges = json!([{"kind": "IPRange", "name": "fd00::/8"}, range(), service]);
    for protocol in ["http", "HTTP", "tcp", "TCP"] {
        assert_eq!(findings(protocol, Value::Null, ranges.clone()), Vec::<String>::new(), "{protocol}");
    }
    let tls = json!({"skipClientCertValidation": false, "sniHosts": ["a.example", "*.b.example"]});
    for protocol in ["https", "Https"] {
        for name in ["gw.ns.cluster.local", "spiffe://cluster.local/ns/gw/sa/gw", "*"] {
            assert_eq!(
                findings(protocol, tls.clone(), json!([range(), principal(name)])),
                Vec::<String>::new()
            );
        }
    }
}

#[test]
fn a_tls_block_where_no_tls_is_ended_is_warned_about() {
    for tls in [
        json!({"skipClientCertValidation": false}),
        json!({"skipClientCertValidation": true, "sniHosts": ["a.example"]}),
    ] {
        assert_eq!(
            findings("http", tls, json!([range()])),
            [
                "warning: spec.backends[0].tls: ignored: protocol http does not terminate TLS; clients that use TLS need port.protocol https"
            ]
        );
    }
}

#[test]
fn tcp_refuses_what_it_cannot_check() {
    let tls = json!({"skipClientCertValidation": true});
    let found = findings("tcp", tls, json!([range(), principal("a.b.cluster.local")]));
    assert_eq!(
        found,
        [
            "error: spec.backends[0].tls: protocol tcp passes bytes through unchanged and does not terminate TLS",
            "error: spec.sources[1]: backend 'httpbin' speaks tcp, whose client certificates cannot be checked: use Service or IPRange sources",
        ]
    );
}

#[test]
fn what_is_wrong_with_every_pair_is_one_finding_and_what_is_wrong_many_times_is_counted() {
    let backend = |i: usize, protocol: &str| json!({"name": format!("b{i}"), "port": {"number": 1, "protocol": protocol}});
    let principals: Vec<_> = (0..1000).map(|i| principal(&format!("a{i}.b.cluster.local"))).collect();
    let tcp: Vec<_> = (0..200).map(|i| backend(i, "tcp")).collect();
    assert_eq!(
        all(json!({"backends": tcp, "sources": principals})),
        [
            "error: spec.sources[0]: backends 'b0', 'b1', 'b2', 'b3', 'b4' and 195 more speak tcp, whose client \
             certificates cannot be checked: use Service or IPRange sources"
        ]
    );
    let odd: Vec<_> = (0..200).map(|i| backend(i, "grpc")).collect();
    let found = all(json!({"backends": odd, "sources": [range()]}));
    assert_eq!(found.len(), 8);
    assert_eq!(
        found[7],
        "error: spec.backends[7].port.protocol: Expected 'port.protocol' to be 'http' or 'https', got: grpc; and 192 more \
         like it"
    );
}
