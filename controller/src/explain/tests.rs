use super::*;
use crate::testing::{FROM_GATEWAY, GATEWAY, HTTPBIN, PERMISSIVE, backend, index, ingress_backend};

const PRINCIPAL: &str = "ingress-nginx.ingress-nginx.cluster.local";

fn query() -> Query {
    Query {
        backend: ObjectName::new("httpbin", "httpbin"),
        port: None,
        source: "127.0.0.2".parse().unwrap(),
        server_name: None,
        principals: Vec::new(),
        speaks: Speaks::Likely,
    }
}

fn with_principal(principal: &str) -> Query {
    Query { principals: vec![principal.to_owned()], ..query() }
}

fn asked(documents: &[&str], query: &Query) -> Explanation {
    explain(&index(documents), &TrustDomain::default(), query).unwrap()
}

fn https(skip: bool, principal: &str) -> String {
    let tls = format!(", tls: {{skipClientCertValidation: {skip}}}");
    let sources = format!("{FROM_GATEWAY}, {{kind: AuthenticatedPrincipal, name: {principal}}}");
    ingress_backend("ib", &backend("https", &tls), &sources)
}

#[test]
fn the_walk_through_is_explained_at_each_step() {
    let http = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    let denied = asked(&[HTTPBIN, GATEWAY], &query());
    assert_eq!((denied.decision, denied.code), ("deny", Some("no_ingress_backend")));

    let allowed = asked(&[HTTPBIN, GATEWAY, &http], &query());
    assert_eq!((allowed.decision, allowed.terms), ("allow", Some("plaintext HTTP")));
    assert_eq!(allowed.rule.as_deref(), Some("httpbin/ib"));
    assert_eq!((allowed.port, allowed.workload.as_str()), (14001, "httpbin/httpbin-1"));
    assert_eq!(allowed.server_identity, "httpbin.httpbin.cluster.local");

    let trusted = asked(&[HTTPBIN, GATEWAY, &https(false, PRINCIPAL)], &with_principal(PRINCIPAL));
    assert_eq!(trusted.decision, "allow");
    assert!(trusted.reason.contains(PRINCIPAL), "{}", trusted.reason);

    let untrusted = [HTTPBIN, GATEWAY, &https(false, "untrusted-client.cluster.local")];
    let refused = asked(&untrusted, &with_principal(PRINCIPAL));
    assert_eq!((refused.decision, refused.code), ("deny", Some("principal_not_allowed")));
    assert_eq!(refused.terms, Some("TLS, client certificate demanded"));
    assert_eq!(asked(&untrusted, &query()).code, Some("client_certificate_required"));

    let skipped = asked(
        &[HTTPBIN, GATEWAY, &https(true, "untrusted-client.cluster.local")],
        &with_principal(PRINCIPAL),
    );
    assert_eq!((skipped.decision, skipped.terms), ("allow", Some("TLS, no client certificate asked for")));
}

#[test]
fn a_wrong_address_is_the_reason_even_before_a_byte_is_read() {
    let http = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    let from_elsewhere = Query { source: "192.0.2.1".parse().unwrap(), ..query() };
    let denied = asked(&[HTTPBIN, GATEWAY, &http], &from_elsewhere);
    assert_eq!((denied.code, denied.rule.as_deref()), (Some("source_not_allowed"), Some("httpbin/ib")));
}

#[test]
fn one_spelling_of_a_mesh_peer_stands_for_both() {
    for principal in ["a.b.cluster.local", "spiffe://cluster.local/ns/b/sa/a"] {
        let query = Query { speaks: Speaks::Mesh, ..with_principal(principal) };
        assert_eq!(asked(&[HTTPBIN, PERMISSIVE], &query).decision, "allow", "{principal}");
        let without = asked(&[HTTPBIN], &query);
        assert!(without.reason.contains("there is no MeshConfig osm-mesh-config"), "{}", without.reason);
    }
    let stranger = Query { speaks: Speaks::Mesh, ..with_principal("spiffe://elsewhere/ns/b/sa/a") };
    assert_eq!(asked(&[HTTPBIN, PERMISSIVE], &stranger).code, Some("not_a_workload"));
}

#[test]
fn a_service_that_no_pod_stands_behind_yet_is_explained_as_if_one_did() {
    let (_, service) = HTTPBIN.split_once("---").unwrap();
    let http = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    assert_eq!(asked(&[service, GATEWAY, &http], &query()).decision, "allow");
}

#[test]
fn questions_without_an_answer_say_what_is_missing() {
    let two = HTTPBIN.replace("ports: [{name: http,", "ports: [{name: x, port: 81}, {name: http,");
    let index = index(&[&two]);
    let ask = |query: &Query| explain(&index, &TrustDomain::default(), query).unwrap_err().to_string();
    assert_eq!(ask(&query()), "service httpbin/httpbin has the target ports [81, 14001]: say which");
    let unknown = Query { backend: ObjectName::new("httpbin", "x"), ..query() };
    assert_eq!(ask(&unknown), "there is no service httpbin/x");
    let no_name = Query { port: Some(81), ..with_principal("*.a") };
    assert!(ask(&no_name).contains("neither a DNS name nor a URI"));
}
