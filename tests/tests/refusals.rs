//! What each refused client sees: RST, TLS alerts by number, `403`, `400`; in TLS 1.3 and 1.2.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use rcgen::{DnType, ExtendedKeyUsagePurpose};
use serde_json::Value;
use tidegate_tests::app::App;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Client, End, RequestOutcome, TlsVersion};
use tidegate_tests::mesh::{Mesh, PORT, SERVER_NAME};
use tidegate_tests::nginx::{Backend, Nginx, ProxySsl};
use tidegate_tests::objects::{backend, gateway, https, policy, principal, range};
use tidegate_tests::openssl::s_client;
use tidegate_tests::pki::{Authority, INGRESS_CLIENT, Leaf};

const RESET: RequestOutcome = RequestOutcome::Refused(End::Reset);
const OK: RequestOutcome = RequestOutcome::Status(200);
const FORBIDDEN: RequestOutcome = RequestOutcome::Status(403);

fn alert(number: u8) -> RequestOutcome {
    RequestOutcome::Refused(End::Alert(number))
}

fn mutual_tls(sources: &[Value]) -> Value {
    policy("httpbin", &[https("httpbin", PORT, false, &[])], sources)
}

fn plain_http(sources: &[Value]) -> Value {
    policy("httpbin", &[backend("httpbin", PORT, "http")], sources)
}

#[test]
fn what_the_policy_does_not_open_is_reset_before_any_tls() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    let clients = |mesh: &Mesh| {
        let tls = TlsVersion::ALL.map(|version| {
            let tls = mesh.tls().version(version).credentials(mesh.gateway_credentials());
            mesh.client().tls(tls)
        });
        [mesh.client()].into_iter().chain(tls).collect::<Vec<_>>()
    };

    for client in clients(&mesh) {
        assert_eq!(client.get("/get"), RESET, "no policy: {client:?}");
    }
    mesh.apply("policy", &[plain_http(&[gateway()])]);
    for client in clients(&mesh) {
        let client = client.from(mesh.stranger());
        assert_eq!(client.get("/get"), RESET, "http, other address: {client:?}");
    }
    mesh.apply("policy", &[mutual_tls(&[gateway(), principal(INGRESS_CLIENT)])]);
    for client in clients(&mesh) {
        let client = client.from(mesh.stranger());
        assert_eq!(client.get("/get"), RESET, "https, other address: {client:?}");
    }
    assert_eq!(mesh.client().get("/get"), RESET, "plaintext to https");

    let hosts = https("httpbin", PORT, false, &["foo.example"]);
    mesh.apply("policy", &[policy("httpbin", &[hosts], &[principal(INGRESS_CLIENT)])]);
    for version in TlsVersion::ALL {
        let tls = mesh.tls().version(version).credentials(mesh.gateway_credentials());
        assert_eq!(mesh.client().tls(tls.clone()).get("/get"), RESET, "no server name, {version:?}");
        let client = mesh.client().tls(tls.clone().server_name("bar.example"));
        assert_eq!(client.get("/get"), RESET, "other server name, {version:?}");
        assert_eq!(mesh.client().tls(tls.server_name("foo.example")).get("/get"), OK, "{version:?}");
    }
    assert_eq!(app.requests().len(), 2, "only admitted requests reach the app");
}

#[test]
fn client_certificates_that_are_not_good_get_the_alert_that_says_why() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    mesh.apply("policy", &[mutual_tls(&[gateway(), principal(INGRESS_CLIENT)])]);
    let good = Leaf::dns(INGRESS_CLIENT);
    let foreign = Authority::root("Other Root");
    let same_name = Authority::root("Mesh Root");
    let cases = [
        ("none", None, [116, 40]),
        ("foreign CA", Some(foreign.issue(&good)), [48, 48]),
        ("foreign CA of the same name", Some(same_name.issue(&good)), [48, 48]),
        ("expired", Some(mesh.sign(&good.clone().expired())), [45, 45]),
        ("not yet valid", Some(mesh.sign(&good.clone().not_yet_valid())), [45, 45]),
        (
            "only for servers",
            Some(mesh.sign(&good.clone().with_usages(&[ExtendedKeyUsagePurpose::ServerAuth]))),
            [43, 43],
        ),
    ];
    for (what, credentials, alerts) in cases {
        let credentials = credentials.map(std::sync::Arc::new);
        for (version, number) in TlsVersion::ALL.into_iter().zip(alerts) {
            let mut tls = mesh.tls().version(version);
            if let Some(credentials) = &credentials {
                tls = tls.credentials(credentials.clone());
            }
            let client = mesh.client().tls(tls);
            assert_eq!(client.get("/get"), alert(number), "{what}, {version:?}");
            // TLS 1.3 lets the client finish its handshake first, TLS 1.2 does not.
            assert_eq!(client.connect().is_ok(), version == TlsVersion::Tls13, "{what}, {version:?}");

            let flag = if version == TlsVersion::Tls13 { "-tls1_3" } else { "-tls1_2" };
            let seen =
                s_client(mesh.target(), mesh.path(), credentials.as_deref(), &[flag, "-bind", &bind(&mesh)]);
            assert_eq!(seen.alert, Some(number), "{what}, openssl {flag}: {}", seen.output);
        }
    }
    assert!(app.received().is_empty());
}

/// The address from which openssl connects.
fn bind(mesh: &Mesh) -> String {
    format!("{}:0", mesh.gateway())
}

#[test]
fn tls_1_1_is_refused_with_protocol_version_and_the_request_for_a_certificate_names_the_root() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[mutual_tls(&[gateway(), principal(INGRESS_CLIENT)])]);
    let arguments = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0", "-bind", &bind(&mesh)];
    let seen = s_client(mesh.target(), mesh.path(), None, &arguments);
    assert_eq!(seen.alert, Some(70), "{}", seen.output);

    let credentials = mesh.gateway_credentials();
    let seen = s_client(mesh.target(), mesh.path(), Some(&credentials), &["-tls1_2", "-bind", &bind(&mesh)]);
    assert!(seen.output.contains("HTTP/1.1 200 OK"), "{}", seen.output);
    assert!(
        seen.output.contains("Acceptable client certificate CA names\nCN = Mesh Root"),
        "{}",
        seen.output
    );
}

/// A case, the certificate, the principals that are allowed, and the answer.
fn names_and_answers() -> Vec<(&'static str, Leaf, Vec<Value>, RequestOutcome)> {
    let spiffe = "spiffe://cluster.local/ns/ingress-nginx/sa/ingress-nginx";
    let by_name = vec![principal(INGRESS_CLIENT)];
    let bare = Leaf::bare;
    vec![
        ("the name", Leaf::dns(INGRESS_CLIENT), by_name.clone(), OK),
        ("no extended key usage", Leaf::dns(INGRESS_CLIENT).with_usages(&[]), by_name.clone(), OK),
        ("an RSA key", Leaf::dns(INGRESS_CLIENT).rsa(), by_name.clone(), OK),
        ("the name is the second one", Leaf::dns("a.example").with_dns(INGRESS_CLIENT), by_name.clone(), OK),
        ("upper case", Leaf::dns(&INGRESS_CLIENT.to_uppercase()), by_name.clone(), OK),
        ("another name", Leaf::dns("other.ns.cluster.local"), by_name.clone(), FORBIDDEN),
        ("the name as a URI", bare().with_uri(&format!("x://{INGRESS_CLIENT}")), by_name.clone(), FORBIDDEN),
        ("the identity as a URI", bare().with_uri(spiffe), by_name.clone(), FORBIDDEN),
        (
            "the name as an e-mail address",
            bare().with_email(&format!("a@{INGRESS_CLIENT}")),
            by_name.clone(),
            FORBIDDEN,
        ),
        (
            "common name right, DNS name other",
            Leaf::dns("a.example").with_common_name(INGRESS_CLIENT),
            by_name.clone(),
            FORBIDDEN,
        ),
        ("common name alone", bare().with_common_name(INGRESS_CLIENT), by_name, FORBIDDEN),
        (
            "the whole subject",
            bare().with_common_name("a").with_subject(DnType::OrganizationName, "x"),
            vec![principal("CN=a,O=x"), principal("O=x,CN=a")],
            FORBIDDEN,
        ),
        ("any certificate", Leaf::dns("a.example"), vec![principal("*")], OK),
        ("any certificate, even without a name", bare(), vec![principal("*")], OK),
        (
            "a suffix is not a wildcard",
            Leaf::dns(INGRESS_CLIENT),
            vec![principal("*.cluster.local")],
            FORBIDDEN,
        ),
        (
            "a dot is not a wildcard",
            Leaf::dns("aXb.ns.cluster.local"),
            vec![principal("a.b.ns.cluster.local")],
            FORBIDDEN,
        ),
        (
            "a trailing dot is nothing",
            Leaf::dns(INGRESS_CLIENT),
            vec![principal(&format!("{INGRESS_CLIENT}."))],
            OK,
        ),
        ("a URI principal", bare().with_uri(spiffe), vec![principal(spiffe)], OK),
        ("a URI in a DNS name", Leaf::dns(spiffe), vec![principal(spiffe)], alert(42)),
    ]
}

#[test]
fn certificates_of_the_mesh_s_ca_are_judged_by_their_names() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    for (what, leaf, principals, expected) in names_and_answers() {
        mesh.apply("policy", &[mutual_tls(&principals)]);
        let credentials = std::sync::Arc::new(mesh.sign(&leaf));
        for version in TlsVersion::ALL {
            let tls = mesh.tls().version(version).credentials(credentials.clone());
            assert_eq!(mesh.client().tls(tls).get("/get"), expected, "{what}, {version:?}");
        }
    }
}

#[test]
fn server_names_and_alpn_that_no_rule_speaks_of_do_not_matter() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[mutual_tls(&[gateway(), principal(INGRESS_CLIENT)])]);
    let credentials = std::sync::Arc::new(mesh.gateway_credentials());
    for version in TlsVersion::ALL {
        let tls = mesh.tls().version(version).credentials(credentials.clone());
        assert_eq!(mesh.client().tls(tls.clone()).get("/get"), OK, "none, {version:?}");
        // The Service's name is not reserved here: only ALPN identifies mesh peers.
        for name in [SERVER_NAME, "foo.example", "httpbin.httpbin.svc.cluster.local"] {
            let named = tls.clone().server_name(name);
            assert_eq!(mesh.client().tls(named.clone()).get("/get"), OK, "{name}, {version:?}");
            let client = mesh.client().tls(named.protocols(&["http/1.1"]));
            assert_eq!(client.get("/get"), OK, "{name} with http/1.1, {version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_offers_h2_alone_gets_it_and_one_that_offers_both_gets_what_the_app_speaks() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    mesh.apply("policy", &[mutual_tls(&[gateway(), principal(INGRESS_CLIENT)])]);
    for version in TlsVersion::ALL {
        let tls = mesh.tls().version(version).server_name(SERVER_NAME).protocols(&["h2"]);
        let client = mesh.client().tls(tls.credentials(mesh.gateway_credentials()));
        let connection = H2Connection::open(&client).await.unwrap();
        let answer = connection.get("/get").await.unwrap();
        assert_eq!(answer.head.status(), 200, "{version:?}");
        assert!(String::from_utf8(answer.body).unwrap().contains("\"path\":\"/get\""));
    }
    assert_eq!(app.requests().len(), 2);
    let tls = mesh.tls().protocols(&["h2", "http/1.1"]).credentials(mesh.gateway_credentials());
    let connection = mesh.client().tls(tls).connect().unwrap();
    assert_eq!(connection.tls().unwrap().alpn_protocol(), Some(&b"http/1.1"[..]));

    mesh.apply("policy", &[mutual_tls(&[principal("somebody.else")])]);
    let tls = mesh.tls().protocols(&["h2"]).credentials(mesh.gateway_credentials());
    let connection = H2Connection::open(&mesh.client().tls(tls)).await.unwrap();
    let answer = connection.get("/get").await.unwrap();
    assert_eq!(answer.head.status(), 403);
    assert_eq!(answer.body, b"RBAC: access denied");
    assert_eq!(answer.head.headers()["content-type"], "text/plain");
    assert_eq!(answer.head.headers()["content-length"], "19");
}

#[test]
fn sources_decide_by_protocol_as_open_service_mesh_s_users_know() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    let (gate, stranger) = (mesh.gateway(), mesh.stranger());
    let own = mesh.sign(&Leaf::dns("some.workload.cluster.local"));
    let named = mesh.gateway_credentials();
    let plain = mesh.client();
    let tls = |credentials| mesh.client().tls(mesh.tls().credentials(credentials));
    let (own, named, none) = (tls(own), tls(named), mesh.client().tls(mesh.tls()));
    let range_of_gate = format!("{}0/27", mesh.block().prefix()).replace(".0/27", ".0/26");
    let no_tls_block = policy("httpbin", &[backend("httpbin", PORT, "https")], &[principal(INGRESS_CLIENT)]);
    let capitals = policy("httpbin", &[backend("httpbin", PORT, "HTTP")], &[gateway()]);
    type Case<'a> = (&'a str, Value, Vec<(&'a Client, std::net::IpAddr, RequestOutcome)>);
    let cases: Vec<Case<'_>> = vec![
        (
            "http, principal only: open to every address",
            plain_http(&[principal(INGRESS_CLIENT)]),
            vec![(&plain, gate, OK), (&plain, stranger, OK)],
        ),
        ("http, no source: open", plain_http(&[]), vec![(&plain, gate, OK), (&plain, stranger, OK)]),
        (
            "http, range only",
            plain_http(&[range(&range_of_gate)]),
            vec![(&plain, gate, OK), (&plain, stranger, RESET)],
        ),
        (
            "https, Service only: any certificate of the mesh's CA from there",
            mutual_tls(&[gateway()]),
            vec![(&own, gate, OK), (&named, gate, OK), (&own, stranger, RESET), (&none, gate, alert(116))],
        ),
        (
            "https, principal only: from every address",
            mutual_tls(&[principal(INGRESS_CLIENT)]),
            vec![(&named, gate, OK), (&named, stranger, OK), (&own, stranger, FORBIDDEN)],
        ),
        (
            "https without a tls block: certificates are validated",
            no_tls_block,
            vec![(&named, gate, OK), (&none, gate, alert(116))],
        ),
        ("protocol in capitals", capitals, vec![(&plain, gate, OK), (&plain, stranger, RESET)]),
    ];
    for (what, policy, clients) in cases {
        mesh.apply("policy", &[policy]);
        assert_eq!(mesh.status("httpbin").0, "committed", "{what}");
        for (client, source, expected) in clients {
            assert_eq!(
                client.clone().from(source).get("/get"),
                expected,
                "{what}: from {source}, {client:?}"
            );
        }
    }
}

#[test]
fn sni_hosts_match_whole_names_and_wildcards_match_what_lies_below() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    let hosts = https("httpbin", PORT, false, &["foo.example", "*.bar.example"]);
    mesh.apply("policy", &[policy("httpbin", &[hosts], &[principal(INGRESS_CLIENT)])]);
    let tls = mesh.tls().credentials(mesh.gateway_credentials());
    for (name, expected) in [
        ("foo.example", OK),
        ("FOO.Example", OK),
        ("x.foo.example", RESET),
        ("a.bar.example", OK),
        ("a.b.bar.example", OK),
        ("bar.example", RESET),
        ("abar.example", RESET),
    ] {
        assert_eq!(mesh.client().tls(tls.clone().server_name(name)).get("/get"), expected, "{name}");
    }
}

#[test]
fn tls_to_an_http_backend_is_answered_400_in_plaintext() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    mesh.apply("policy", &[plain_http(&[gateway()])]);
    // A real ClientHello, as bytes.
    let mut hello = Vec::new();
    mesh.tls().connection().write_tls(&mut hello).unwrap();
    let (bytes, end) = mesh.client().exchange(&hello, Duration::from_secs(10));
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let lines: Vec<_> = head.lines().filter(|line| !line.starts_with("date: ")).collect();
    assert_eq!(
        lines,
        ["HTTP/1.1 400 Bad Request", "content-length: 11", "content-type: text/plain", "connection: close"]
    );
    assert_eq!((body, end), ("Bad Request", End::Closed));
    assert!(app.received().is_empty());
}

#[test]
fn a_client_that_sends_nothing_is_closed_in_order_after_15_seconds() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[plain_http(&[gateway()])]);
    let start = Instant::now();
    let (bytes, end) = mesh.client().exchange(&[], Duration::from_secs(25));
    assert_eq!((bytes, end), (Vec::new(), End::Closed));
    let elapsed = start.elapsed();
    assert!((Duration::from_secs(14)..Duration::from_secs(20)).contains(&elapsed), "{elapsed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn h2c_to_an_app_that_speaks_only_http_1_is_502() {
    let mut mesh = Mesh::start();
    // Answers as an HTTP/1.1 server answers what it cannot parse.
    let _app = App::start(mesh.app_address(), |conversation| {
        conversation.bytes()?;
        conversation.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
        conversation.finish()?;
        while !conversation.bytes()?.is_empty() {}
        Ok(())
    });
    mesh.apply("policy", &[plain_http(&[gateway()])]);
    let connection = H2Connection::open(&mesh.client()).await.unwrap();
    let answer = connection.get("/get").await.unwrap();
    assert_eq!(answer.head.status(), 502);
    assert_eq!(
        String::from_utf8(answer.body).unwrap(),
        "upstream connect error or disconnect/reset before headers. reset reason: protocol error"
    );
}

#[test]
fn nginx_answers_502_to_what_is_refused_before_http_and_its_log_says_how() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    let plain = Backend { target: mesh.target(), tls: None };
    let mut nginx = Nginx::start(mesh.path(), mesh.front(), mesh.gateway(), &plain);
    mesh.apply("policy", &[mutual_tls(&[gateway(), principal(INGRESS_CLIENT)])]);
    assert_eq!(nginx.get("/get").status(), 502, "plaintext to https");
    assert!(nginx.error_log().contains("recv() failed (104: Connection reset by peer)"));

    mesh.apply("policy", &[mutual_tls(&[range("127.0.0.1/32"), principal(INGRESS_CLIENT)])]);
    let ssl = ProxySsl::new(mesh.secret(), SERVER_NAME);
    nginx.reload(&Backend { tls: Some(ssl), ..plain });
    assert_eq!(nginx.get("/get").status(), 502, "other address");
    assert!(
        nginx.error_log().contains("peer closed connection in SSL handshake (104"),
        "{}",
        nginx.error_log()
    );
    assert!(app.received().is_empty());
}
