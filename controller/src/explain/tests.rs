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
        request: HttpRequest::default(),
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

#[test]
fn a_request_of_a_mesh_peer_is_explained_by_the_target_that_allows_it_or_came_closest() {
    let documents = [HTTPBIN, crate::testing::NOT_PERMISSIVE, crate::testing::BOOKS];
    let ask = |method: &str, path: &str, speaks| {
        let request = HttpRequest { method: method.into(), path: path.into(), headers: vec![] };
        let peer = with_principal("buyer.shop.cluster.local");
        asked(&documents, &Query { speaks, request, ..peer })
    };
    let allowed = ask("GET", "/books/%31?x=y", Speaks::Mesh);
    assert_eq!((allowed.decision, allowed.rule.as_deref()), ("allow", Some("httpbin/books")));
    assert_eq!(allowed.reason, "TrafficTarget httpbin/books, mesh peer buyer.shop.cluster.local");
    assert_eq!(allowed.request.as_deref(), Some("GET /books/%31?x=y"));
    let refused = ask("POST", "/books/1", Speaks::Mesh);
    assert_eq!((refused.decision, refused.code), ("deny", Some("request_not_allowed")));
    assert_eq!(refused.rule.as_deref(), Some("httpbin/books"));
    assert_eq!(ask("GET", "/books/1", Speaks::MeshTcp).code, Some("not_parsed"));
    let stranger = Query { speaks: Speaks::Mesh, ..with_principal("thief.shop.cluster.local") };
    assert_eq!(asked(&documents, &stranger).code, Some("peer_not_allowed"));
    let request = HttpRequest { path: "/books/..;/x".into(), ..HttpRequest::default() };
    let ambiguous = Query { speaks: Speaks::Mesh, request, ..with_principal("buyer.shop.cluster.local") };
    let error = explain(&index(&documents), &TrustDomain::default(), &ambiguous).unwrap_err().to_string();
    assert!(
        error.starts_with("GET /books/..;/x is answered with 400: its path hides a dot segment"),
        "{error}"
    );
}

/// The rows of the table of a page that begins with this heading, without their backticks.
fn documented(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, table) = page.split_once(heading).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells =
        |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    rows.map(cells).collect()
}

#[test]
fn the_example_of_the_documentation_decides_as_its_table_says() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/smi");
    let loaded = crate::source::folder::FolderSource::new(folder).load();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let index = Index::of(loaded.changes);
    let page = include_str!("../../../docs/smi.md");
    let rows = documented(page, "| request | to port | from service account | decision |");
    assert_eq!(rows.len(), 6);
    for row in rows {
        let [sent, port, account, expected] = row.as_slice() else { panic!("{row:?}") };
        let (namespace, account) = account.split_once('/').unwrap();
        let (request, header) = sent.split_once(" with ").unwrap_or((sent, ""));
        let (method, path) = request.split_once(' ').unwrap_or(("GET", "/"));
        let query = Query {
            backend: ObjectName::new("bookstore", "bookstore"),
            port: Some(port.parse().unwrap()),
            speaks: if request == "bytes" { Speaks::MeshTcp } else { Speaks::Mesh },
            request: HttpRequest {
                method: method.into(),
                path: path.into(),
                headers: HttpRequest::header(header).into_iter().collect(),
            },
            ..with_principal(&format!("{account}.{namespace}.cluster.local"))
        };
        let found = explain(&index, &TrustDomain::default(), &query).unwrap();
        assert_eq!(found.code.unwrap_or(found.decision), expected, "{row:?}");
    }
}

#[test]
fn the_example_of_limits_has_those_that_the_documentation_says() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/limits");
    let loaded = crate::source::folder::FolderSource::new(folder).load();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let index = Index::of(loaded.changes);
    let rows = documented(include_str!("../../../docs/limits.md"), "| what | limits |");
    assert_eq!(rows.len(), 3);
    for row in rows {
        let [sent, expected] = row.as_slice() else { panic!("{row:?}") };
        let query = Query {
            backend: ObjectName::new("bookstore", "bookstore"),
            port: None,
            speaks: if sent.starts_with("bytes") { Speaks::MeshTcp } else { Speaks::Mesh },
            request: HttpRequest {
                path: sent.strip_prefix("GET ").unwrap_or("/").into(),
                ..HttpRequest::default()
            },
            ..with_principal("bookbuyer.bookbuyer.cluster.local")
        };
        let found = explain(&index, &TrustDomain::default(), &query).unwrap();
        assert_eq!(found.decision, "allow");
        let origin = " (UpstreamTrafficSetting bookstore/bookstore)";
        let limits: Vec<_> = found.limits.iter().map(|limit| limit.strip_suffix(origin).unwrap()).collect();
        assert_eq!(limits.join("; "), *expected, "{row:?}");
    }
}

#[test]
fn an_external_authorization_is_named_where_requests_are_parsed() {
    let config = |port: &str| {
        format!(
            "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
             metadata: {{name: osm-mesh-config, namespace: tidegate-system}}\n\
             spec: {{traffic: {{enablePermissiveTrafficPolicyMode: true, \
             inboundExternalAuthorization: {{enable: true, address: opa.opa{port}}}}}}}\n"
        )
    };
    let http = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    let allowed = asked(&[HTTPBIN, GATEWAY, &http, &config(", port: 9191")], &query());
    let authorizer = allowed.authorizer.as_deref();
    assert_eq!(allowed.decision, "allow");
    assert_eq!(authorizer, Some("opa.opa:9191 decides within 1s; its failure refuses the request"));
    let bytes = Query { speaks: Speaks::MeshTcp, ..with_principal("a.b.cluster.local") };
    assert_eq!(asked(&[HTTPBIN, GATEWAY, &config(", port: 9191")], &bytes).authorizer, None);

    let refused = asked(&[HTTPBIN, GATEWAY, &http, &config("")], &query());
    assert_eq!((refused.decision, refused.code), ("deny", Some("external_authorization_invalid")));
    assert_eq!(refused.rule.as_deref(), Some("tidegate-system/osm-mesh-config"));
}
