//! Weights of endpoints, and the identities that they must have.

use super::*;

/// What clients reach at port 443 of an internal entry with these fields, and its warnings or the reason why it is not in force.
fn internal(more: &str) -> (String, String) {
    let (index, _) = one("TCP", "192.0.2.1", &format!("location: MESH_INTERNAL, {more}"));
    let found = seen(&index, "192.0.2.1:443", None);
    let (condition, reason, warnings) = status(&index, "shop/e");
    let said = if condition == ACCEPTED { warnings.join("; ") } else { reason };
    (found.replace("Tcp ServiceEntry shop/e ", ""), said)
}

#[test]
fn weights_decide_where_they_differ() {
    let none = String::new();
    for (endpoints, expected) in [
        ("{address: 10.0.0.1, weight: 4}, {address: 10.0.0.2, weight: 0}", "10.0.0.1:443*4 10.0.0.2:443"),
        ("{address: 10.0.0.1, weight: 4}, {address: 10.0.0.2, weight: 4}", "10.0.0.1:443 10.0.0.2:443"),
        (
            "{address: 10.0.0.1}, {address: 10.0.0.1, weight: 4}, {address: 10.0.0.2}",
            "10.0.0.1:443 10.0.0.2:443",
        ),
    ] {
        let found = internal(&format!("resolution: STATIC, endpoints: [{endpoints}]"));
        assert_eq!(found, (expected.to_owned(), none.clone()), "{endpoints}");
    }
    let names =
        "{address: a.example, weight: 3}, {address: b.example, weight: 2}, {address: 10.0.0.1, weight: 2}";
    let found = internal(&format!("resolution: DNS, endpoints: [{names}]"));
    assert_eq!(found.0, "a.example:443*3 b.example:443*2 10.0.0.1:443*2");
    let equal = internal("resolution: DNS, endpoints: [{address: a.example, weight: 3}]");
    assert_eq!(equal.0, "a.example:443");
}

#[test]
fn a_server_must_have_its_account_or_one_of_the_subject_alt_names() {
    let names = "subjectAltNames: ['spiffe://cluster.local/ns/other/sa/vm', 'spiffe://cluster.local/ns/shop/sa/cart']";
    for (endpoints, expected) in [
        ("resolution: STATIC, endpoints: [{address: 10.0.0.1}]", "10.0.0.1:443=vm|cart"),
        ("resolution: STATIC, endpoints: [{address: 10.0.0.1, serviceAccount: a}]", "10.0.0.1:443=vm|a|cart"),
        ("resolution: DNS", "a.example:443=vm|cart"),
        ("resolution: DNS, endpoints: [{address: b.example}]", "b.example:443=vm|cart"),
    ] {
        assert_eq!(internal(&format!("{endpoints}, {names}")), (expected.to_owned(), String::new()));
    }
    let one =
        internal("resolution: DNS, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/a', b.example]");
    assert_eq!(one.0, "a.example:443=a");
    let warning = "spec.subjectAltNames[1]: 'b.example' is not a name of a workload in the mesh: \
                   expected spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>";
    assert_eq!(one.1, warning);
    let (found, reason) = internal("resolution: DNS, subjectAltNames: [b.example]");
    assert!(
        found.starts_with("blocked: ") && reason.starts_with("spec.subjectAltNames[0]: 'b.example'"),
        "{found}"
    );
}

#[test]
fn a_pod_must_be_itself_whatever_the_subject_alt_names() {
    let spec = "hosts: [a.example], addresses: [192.0.2.1], location: MESH_INTERNAL, resolution: STATIC, \
                ports: [{number: 443, name: p, protocol: TCP}], subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/a']";
    let pod = pod("cart", "10.1.0.1");
    for endpoints in ["endpoints: [{address: 10.1.0.1}]", "workloadSelector: {labels: {app: cart}}"] {
        let index = index(&[&entry("shop/e", 0, &format!("{spec}, {endpoints}")), &pod]);
        assert_eq!(seen(&index, "192.0.2.1:443", None), "Tcp ServiceEntry shop/e 10.1.0.1:443=cart");
    }
}
