//! Odd certificates and odd ClientHellos at the sidecar; tokens and requests at the CA.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use serde_json::json;
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tidegate_tests::app::App;
use tidegate_tests::client::{self, End, RequestOutcome, TlsVersion};
use tidegate_tests::mesh::{Mesh, PORT};
use tidegate_tests::objects::{gateway, https, policy, principal};
use tidegate_tests::pki::{Authority, INGRESS_CLIENT, Leaf};
use tidegate_tests::tokens::{self, TokenKey};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request};

const OK: RequestOutcome = RequestOutcome::Status(200);
const FORBIDDEN: RequestOutcome = RequestOutcome::Status(403);

fn mutual_mesh(name: &str) -> Mesh {
    let mut mesh = Mesh::start();
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[gateway(), principal(name)])],
    );
    mesh
}

#[test]
fn names_with_control_characters_are_refused_and_never_reach_a_header() {
    let mesh = mutual_mesh("*");
    let app = App::echo(mesh.app_address());
    let names = [
        ("NUL in a DNS name", Leaf::bare().with_dns(&format!("{INGRESS_CLIENT}\0.evil.example"))),
        ("NUL in a URI", Leaf::dns(INGRESS_CLIENT).with_uri("spiffe://cluster.local/ns/a/sa/b\0c")),
        (
            "a request in a URI",
            Leaf::dns(INGRESS_CLIENT)
                .with_uri("spiffe://x/\r\nHost: x\r\n\r\nGET /admin HTTP/1.1\r\nHost: y\r\n\r\n"),
        ),
        ("a field in a URI", Leaf::dns(INGRESS_CLIENT).with_uri("spiffe://x/a;By=forged,Hash=0;URI=\"y\"")),
    ];
    for (what, leaf) in names {
        let credentials = std::sync::Arc::new(mesh.sign(&leaf));
        for version in TlsVersion::ALL {
            app.forget();
            let tls = mesh.tls().version(version).credentials(credentials.clone());
            let outcome = mesh.client().tls(tls).get("/get");
            match outcome {
                RequestOutcome::Refused(End::Alert(_)) => assert!(app.received().is_empty(), "{what}"),
                // Escaped: one request, and no second element of the header.
                RequestOutcome::Status(200) => {
                    let [request] = &app.requests()[..] else { panic!("{what}: {:?}", app.requests()) };
                    let header = request.value("x-forwarded-client-cert").unwrap();
                    let elements = outside_quotes(header);
                    assert!(!elements.contains(','), "{what}: {header}");
                    assert_eq!(elements.matches("By=").count(), 1, "{what}: {header}");
                    assert_eq!(elements.matches("Hash=").count(), 1, "{what}: {header}");
                }
                other => panic!("{what}, {version:?}: {other:?}"),
            }
        }
    }
}

/// The part of a header that is not in double quotes.
fn outside_quotes(header: &str) -> String {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let mut rest = String::new();
    for c in header.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            c if !is_quoted => rest.push(c),
            _ => {}
        }
    }
    rest
}

#[test]
fn chains_that_cost_much_to_judge_are_refused_at_once() {
    let mesh = mutual_mesh(INGRESS_CLIENT);
    let app = App::echo(mesh.app_address());
    let good = Leaf::dns(INGRESS_CLIENT);
    let many_names = (0..5_000).fold(good.clone(), |leaf, i| leaf.with_dns(&format!("n{i}.example")));
    let long_names =
        (0..1_000).fold(good.clone(), |leaf, i| leaf.with_uri(&format!("x://{i}/{}", "y".repeat(1000))));
    let mut cross = mesh.root.issue_deep(&good, 2);
    let extra = cross.chain[1].clone();
    cross.chain.extend(std::iter::repeat_n(extra, 20));
    let cases = [
        ("nine certificates", mesh.root.issue_deep(&good, 8)),
        ("twenty more than needed", cross),
        ("5,000 names", mesh.sign(&many_names)),
        ("1 MB", mesh.sign(&long_names)),
    ];
    for (what, credentials) in cases {
        let tls = mesh.tls().credentials(credentials);
        let before = mesh.sidecar.processor_time();
        let outcome = mesh.client().tls(tls).get("/get");
        assert!(matches!(outcome, RequestOutcome::Refused(_)), "{what}: {outcome:?}");
        let used = mesh.sidecar.processor_time() - before;
        assert!(used < Duration::from_millis(300), "{what}: {used:?}");
    }
    assert!(app.received().is_empty());
    let tls = mesh.tls().credentials(mesh.root.issue_deep(&good, 2));
    assert_eq!(mesh.client().tls(tls).get("/get"), OK, "a chain of three");
}

#[test]
fn an_authority_s_name_constraints_bind_what_is_below_it() {
    let mesh = mutual_mesh("*");
    let _app = App::echo(mesh.app_address());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Constrained");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("team.cluster.local".to_owned())],
        excluded_subtrees: vec![GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4]))],
    });
    let constrained = mesh.root.sign_authority(&params, &key);
    let issuer = Issuer::new(params, key);
    for (name, allowed) in [("a.team.cluster.local", true), (INGRESS_CLIENT, false)] {
        let mut credentials = Authority::issue_as(&issuer, &Leaf::dns(name));
        credentials.chain.push(constrained.clone());
        let outcome = mesh.client().tls(mesh.tls().credentials(credentials)).get("/get");
        assert_eq!(outcome == OK, allowed, "{name}: {outcome:?}");
    }
}

#[test]
fn mesh_peers_of_another_trust_domain_or_with_half_an_identity_are_refused() {
    let mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    let other_domain =
        Leaf::dns("cart.shop.other.example").with_uri("spiffe://other.example/ns/shop/sa/cart");
    let contradiction =
        Leaf::dns("cart.shop.cluster.local").with_uri("spiffe://cluster.local/ns/shop/sa/admin");
    let two = Leaf::workload("shop", "cart").with_uri("spiffe://cluster.local/ns/shop/sa/admin");
    let cases = [
        ("another trust domain", other_domain),
        ("DNS name alone", Leaf::dns("cart.shop.cluster.local")),
        ("URI alone", Leaf::bare().with_uri("spiffe://cluster.local/ns/shop/sa/cart")),
        ("names that contradict each other", contradiction),
        ("two identities", two),
        (
            "text of a URI in a common name",
            Leaf::bare().with_common_name("spiffe://cluster.local/ns/shop/sa/cart"),
        ),
    ];
    for (what, leaf) in cases {
        let tls = mesh.tls().protocols(&["tidegate/h1"]).credentials(mesh.sign(&leaf));
        let outcome = mesh.client().tls(tls).get("/get");
        assert!(matches!(outcome, FORBIDDEN | RequestOutcome::Refused(_)), "{what}: {outcome:?}");
        assert!(app.received().is_empty(), "{what}");
    }
}

/// The records of a ClientHello, each with at most `size` bytes of it.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let body = &hello[5..];
    body.chunks(size)
        .flat_map(|part| [&[0x16, 3, 1, (part.len() >> 8) as u8, part.len() as u8][..], part].concat())
        .collect()
}

#[test]
fn a_client_hello_in_pieces_is_judged_as_the_whole() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    let hosts = https("httpbin", PORT, true, &["foo.example"]);
    mesh.apply("policy", &[policy("httpbin", &[hosts], &[])]);
    for (name, allowed) in [(Some("foo.example"), true), (Some("bar.example"), false), (None, false)] {
        let tls = match name {
            Some(name) => mesh.tls().server_name(name),
            None => mesh.tls(),
        };
        let mut hello = Vec::new();
        tls.connection().write_tls(&mut hello).unwrap();
        let pieces = [
            ("whole", hello.clone(), hello.len()),
            ("byte by byte", hello.clone(), 1),
            ("in records of 100 bytes", in_records(&hello, 100), usize::MAX),
            ("in records of 50 bytes, byte by byte", in_records(&hello, 50), 1),
        ];
        for (how, bytes, size) in pieces {
            let mut stream = client::connect(Some(mesh.gateway()), mesh.target()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            for piece in bytes.chunks(size) {
                if stream.write_all(piece).is_err() {
                    break;
                }
            }
            let mut first = [0; 6];
            let got = stream.read_exact(&mut first);
            // A handshake record with a ServerHello, or no answer.
            let is_answered = got.is_ok() && first[0] == 0x16 && first[5] == 2;
            assert_eq!(is_answered, allowed, "{name:?} {how}: {first:?}");
            if !allowed {
                assert!(got.is_err(), "{name:?} {how}: no byte of TLS: {first:?}");
            }
        }
    }
}

/// A client of the CA.
async fn ca(mesh: &Mesh) -> IstioCertificateServiceClient<Channel> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(mesh.root.pem()));
    let address = format!("https://{}", mesh.ca_address());
    let channel = Channel::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
    IstioCertificateServiceClient::new(channel)
}

fn csr(params: &CertificateParams) -> String {
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn bare_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

fn request(csr: String, token: Option<&str>) -> Request<IstioCertificateRequest> {
    let mut request =
        Request::new(IstioCertificateRequest { csr, validity_duration: 3600, ..Default::default() });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_ca_believes_only_tokens_that_were_made_for_it() {
    let mesh = Mesh::start();
    let mut ca = ca(&mesh).await;
    let key = &mesh.token_key;
    let changed = |field: &str, value: serde_json::Value| {
        let mut claims = tokens::claims("shop", "cart");
        claims[field] = value;
        claims
    };
    let without = |field: &str| {
        let mut claims = tokens::claims("shop", "cart");
        claims.as_object_mut().unwrap().remove(field);
        claims
    };
    let now = tokens::now();
    let other_key = TokenKey::generate();
    let refused = [
        ("none", None),
        ("no JWT", Some("abc".to_owned())),
        ("another's key", Some(other_key.token("shop", "cart"))),
        (
            "the API server's audience",
            Some(key.sign(&changed("aud", json!(["https://kubernetes.default.svc"])))),
        ),
        ("no audience", Some(key.sign(&without("aud")))),
        ("expired", Some(key.sign(&changed("exp", json!(now - 120))))),
        ("no expiry", Some(key.sign(&without("exp")))),
        ("not yet valid", Some(key.sign(&changed("nbf", json!(now + 600))))),
        ("another issuer", Some(key.sign(&changed("iss", json!("https://other.example"))))),
        ("no service account", Some(key.sign(&changed("sub", json!("system:node:a"))))),
        (
            "names that contradict each other",
            Some(key.sign(&changed("sub", json!("system:serviceaccount:shop:admin")))),
        ),
    ];
    for (what, token) in refused {
        let status = ca.create_certificate(request(csr(&bare_params()), token.as_deref())).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status}");
        if let Some(token) = token {
            assert!(!mesh.ca.log().contains(&token) || token.len() < 10, "{what}: the token is in the log");
        }
    }
    let token = key.token("shop", "cart");
    let answer =
        ca.create_certificate(request(csr(&bare_params()), Some(&token))).await.unwrap().into_inner();
    assert!(answer.cert_chain.len() >= 2, "leaf and root");
    assert!(!mesh.ca.log().contains(&token));
    assert!(!mesh.ca.log().contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_for_more_than_the_token_proves_is_refused() {
    let mesh = Mesh::start();
    let mut ca = ca(&mesh).await;
    let token = mesh.token_key.token("shop", "cart");
    let san = |san: SanType| {
        let mut params = bare_params();
        params.subject_alt_names = vec![
            SanType::DnsName("cart.shop.cluster.local".try_into().unwrap()),
            SanType::URI("spiffe://cluster.local/ns/shop/sa/cart".try_into().unwrap()),
            san,
        ];
        csr(&params)
    };
    let mut authority = bare_params();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut common_name = bare_params();
    common_name.distinguished_name.push(DnType::CommonName, "admin.shop.cluster.local");
    let refused = [
        ("another's DNS name", san(SanType::DnsName("admin.shop.cluster.local".try_into().unwrap()))),
        ("another's URI", san(SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into().unwrap()))),
        ("an address", san(SanType::IpAddress("10.0.0.1".parse().unwrap()))),
        ("an e-mail address", san(SanType::Rfc822Name("a@b.example".try_into().unwrap()))),
        ("a common name", csr(&common_name)),
        ("no request at all", "abc".to_owned()),
        ("ten megabytes", "x".repeat(10 << 20)),
    ];
    for (what, csr) in refused {
        let status = ca.create_certificate(request(csr, Some(&token))).await.unwrap_err();
        let expected =
            matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted | Code::OutOfRange);
        assert!(expected, "{what}: {status}");
    }
    // Whatever is requested, the answer is a leaf certificate or a refusal.
    match ca.create_certificate(request(csr(&authority), Some(&token))).await {
        Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status}"),
        Ok(answer) => {
            let leaf = answer.into_inner().cert_chain.remove(0);
            assert!(!openssl_text(&mesh, &leaf).contains("CA:TRUE"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_holds_both_spellings_fixed_usages_and_no_more_life_than_is_allowed() {
    let mesh = Mesh::start();
    let mut ca = ca(&mesh).await;
    let token = mesh.token_key.token("shop", "cart");
    let mut asked = request(csr(&bare_params()), Some(&token));
    asked.get_mut().validity_duration = 10 * 365 * 24 * 3600;
    let answer = ca.create_certificate(asked).await.unwrap().into_inner();
    let text = openssl_text(&mesh, &answer.cert_chain[0]);
    assert!(
        text.contains("DNS:cart.shop.cluster.local, URI:spiffe://cluster.local/ns/shop/sa/cart"),
        "{text}"
    );
    assert!(text.contains("CA:FALSE") && !text.contains("Certificate Sign"), "{text}");
    assert!(
        text.contains("TLS Web Client Authentication") && text.contains("TLS Web Server Authentication"),
        "{text}"
    );
    assert!(text.contains("Signature Algorithm: ecdsa-with-SHA256"), "{text}");
}

fn openssl_text(mesh: &Mesh, pem: &str) -> String {
    let file = mesh.path().join("certificate.pem");
    std::fs::write(&file, pem).unwrap();
    let output = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(&file)
        .output()
        .unwrap_or_else(|error| panic!("openssl: {error}; on Debian: apt-get install openssl"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn garbage_at_the_ca_and_at_the_controller_ends_nothing() {
    let mesh = Mesh::start();
    for address in [mesh.ca_address(), mesh.discovery_address()] {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\x00\x01\x01",
            b"",
            b"\0\0\0",
        ] {
            for _ in 0..20 {
                let mut stream = client::connect(None, address).unwrap();
                let _ = stream.write_all(bytes);
            }
        }
    }
    let token = mesh.token_key.token("shop", "cart");
    ca(&mesh).await.create_certificate(request(csr(&bare_params()), Some(&token))).await.unwrap();
    let mut mesh = mesh;
    mesh.apply("policy", &[policy("httpbin", &[https("httpbin", PORT, true, &[])], &[])]);
}

#[test]
fn the_controller_refuses_clients_without_a_certificate_and_shows_a_workload_only_its_own_policy() {
    let mesh = Mesh::start();
    let tls = client::Tls::new(mesh.roots(), "tidegate-controller.tidegate-system.cluster.local");
    let outcome = client::Client::to(mesh.discovery_address()).tls(tls.protocols(&["h2"])).get("/");
    assert_eq!(outcome, RequestOutcome::Refused(End::Alert(116)));
    // A sidecar of another service account that requests httpbin's policy.
    std::fs::write(mesh.path().join("tokens/other"), mesh.token_key.token("shop", "cart")).unwrap();
    let mut other = mesh
        .another_sidecar("other", 40)
        .with_argument("--token-file", mesh.path().join("tokens/other").to_str().unwrap());
    other.start();
    tidegate_tests::wait::until_true(
        "its request for another workload is refused",
        tidegate_tests::wait::SOON,
        || mesh.controller.log().contains("shop") && other.log().contains("policy stream ended"),
    );
    assert!(!other.is_ready());
    assert!(other.admin_json("/config")["policy"].is_null());
}
