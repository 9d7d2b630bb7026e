use std::path::PathBuf;
use std::time::SystemTime;

use jsonwebtoken::Algorithm;
use rcgen::KeyPair;
use rustls_pki_types::ServerName;
use serde_json::json;
use tidegate_core::contract::names::TOKEN_AUDIENCE;
use tidegate_core::{DnsName, PeerCertificate, TrustDomain};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tidegate_runtime::forward_proxy::ControlPlaneProxyOptions;
use tidegate_runtime::grpc::{Address, channel, client_config};
use tidegate_runtime::tls::load_pem_certificates;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::*;
use crate::authenticate::signed_jwt::{SignedJwt, SignedJwtOptions};
use crate::authority::Vouched;
use crate::store::bundle_file::BundleFile;
use crate::store::root_folder::RootFolder;
use crate::testing::{TokenSigner, openssl, params, plain_request, request, uri};

struct World {
    dir: tempfile::TempDir,
    signer: TokenSigner,
    metrics: Metrics,
    manager: CertManagerHandle,
}

fn dns(name: &str) -> San {
    San::Dns(DnsName::parse(name).unwrap())
}

fn config() -> CertManagerConfig {
    CertManagerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: Some("127.0.0.1:0".parse().unwrap()),
        serving_names: vec![dns("ca.example"), San::Ip("127.0.0.1".parse().unwrap())],
        trust_domain: TrustDomain::default(),
        new_root: NewRoot::default(),
        rules: IssuingRules::default(),
        service_names: ServiceNames::default(),
        propagation: Duration::ZERO,
        rate_limit: RateLimit::default(),
        max_connections: 100,
        connection_age: CONNECTION_AGE,
    }
}

fn dependencies(dir: &std::path::Path, metrics: Metrics) -> CertManagerDependencies {
    let authenticator = SignedJwt::open(SignedJwtOptions {
        key_files: vec![dir.join("keys.pem")],
        audience: TOKEN_AUDIENCE.to_owned(),
        issuer: None,
        trust_domain: tidegate_core::TrustDomain::default(),
    });
    CertManagerDependencies {
        authenticator: Arc::new(authenticator.unwrap()),
        root_store: Arc::new(RootFolder::new(dir.join("ca"))),
        given: None,
        publishers: vec![Arc::new(BundleFile::new(dir.join("bundle.pem")))],
        gateway: None,
        workload_life: watch::channel(None).1,
        checks: CheckSchedule::default(),
        metrics,
        readiness: Readiness::new(),
        log: LogHandle::detached(),
    }
}

async fn world_with(config: CertManagerConfig) -> World {
    let dir = tempfile::tempdir().unwrap();
    let signer = TokenSigner::new(Algorithm::ES256);
    std::fs::write(dir.path().join("keys.pem"), signer.key.public_key_pem()).unwrap();
    let metrics = Metrics::new();
    let manager = CertManager::start(config, dependencies(dir.path(), metrics.clone())).await.unwrap();
    World { dir, signer, metrics, manager }
}

async fn world() -> World {
    world_with(config()).await
}

/// A channel of a client that trusts these roots.
fn client_of(address: SocketAddr, bundle: Arc<TrustBundle>) -> IstioCertificateServiceClient<Channel> {
    let address = Address::new(ServerName::try_from("127.0.0.1").unwrap(), address.port());
    let name = ServerName::try_from("ca.example").unwrap();
    IstioCertificateServiceClient::new(channel(
        &address,
        &ControlPlaneProxyOptions::default(),
        name,
        move || client_config(&bundle, None).ok(),
    ))
}

impl World {
    fn client(&self) -> IstioCertificateServiceClient<Channel> {
        client_of(self.manager.grpc_address(), self.manager.bundle().borrow().clone())
    }

    fn token(&self, audience: &str) -> String {
        self.signer.sign(&json!({
            "aud": audience,
            "exp": jsonwebtoken::get_current_timestamp() + 600,
            "sub": "system:serviceaccount:httpbin:httpbin",
        }))
    }

    fn request(&self, csr: &str, seconds: i64) -> Request<IstioCertificateRequest> {
        with_token(csr, seconds, Some(&self.token(TOKEN_AUDIENCE)))
    }

    async fn ask(&self, csr: &str, seconds: i64) -> Result<Vec<String>, Status> {
        let response = self.client().create_certificate(self.request(csr, seconds)).await;
        response.map(|response| response.into_inner().cert_chain)
    }

    async fn admin(&self, method: &str, path: &str) -> String {
        let address = self.manager.admin_address().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn with_token(csr: &str, seconds: i64, token: Option<&str>) -> Request<IstioCertificateRequest> {
    let mut request = Request::new(IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: seconds,
        metadata: None,
    });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

fn der(chain: &[String]) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    chain.iter().flat_map(|pem| load_pem_certificates(pem.as_bytes()).unwrap()).collect()
}

#[tokio::test]
async fn a_caller_gets_a_chain_that_ends_with_the_published_root() {
    let world = world().await;
    let key = KeyPair::generate().unwrap();
    let csr = params(vec![]).serialize_request(&key).unwrap().pem().unwrap();
    let chain = der(&world.ask(&csr, 3600).await.unwrap());
    let leaf = PeerCertificate::from_der(&chain[0]).unwrap();
    assert_eq!(
        leaf.display_names(),
        "DNS:httpbin.httpbin.cluster.local, URI:spiffe://cluster.local/ns/httpbin/sa/httpbin"
    );
    let left = leaf.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3590), "{left:?}");
    let bundle = TrustBundle::read_file(&world.dir.path().join("bundle.pem")).unwrap();
    assert_eq!(bundle.roots(), &chain[1..]);
}

#[tokio::test]
async fn the_meshs_own_client_gets_its_credentials() {
    let world = world().await;
    let dir = world.dir.path();
    std::fs::write(dir.join("token"), world.token(TOKEN_AUDIENCE)).unwrap();
    let options = tidegate_runtime::identity::CaOptions {
        ca_address: format!("https://{}", world.manager.grpc_address()).parse().unwrap(),
        ca_server_name: None,
        ca_trust_bundle: PathBuf::from("unused"),
        token_file: dir.join("token"),
        proxy: ControlPlaneProxyOptions::default(),
        certificate_lifetime: Duration::from_secs(3600),
    };
    let me = crate::testing::httpbin();
    let mut kept =
        tidegate_runtime::identity::start(options, Some(me), world.manager.bundle(), &Metrics::new());
    let credentials = kept.credentials.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(credentials.leaf.sans.len(), 2);
    // A rotation brings new credentials under the new root.
    for _ in 0..3 {
        world.manager.rotate(Vouched::Everything).await.unwrap();
    }
    let renewed = kept.credentials.wait_for(|now| now.as_ref().is_some_and(|now| now.generation > 1)).await;
    assert!(renewed.unwrap().is_some());
}

#[tokio::test]
async fn refusals_carry_the_right_code_and_a_plain_reason() {
    let world = world().await;
    let mut client = world.client();
    let plain = plain_request();
    let good = world.token(TOKEN_AUDIENCE);
    let other =
        TokenSigner::new(Algorithm::ES256).sign(&json!({"aud": TOKEN_AUDIENCE, "exp": u32::MAX, "sub": "a"}));
    let expired =
        world.signer.sign(&json!({"aud": TOKEN_AUDIENCE, "exp": 1000, "sub": "system:serviceaccount:a:b"}));
    let api_server = world.token("https://kubernetes.default.svc");
    let victim = request(&params(vec![uri("spiffe://cluster.local/ns/bank/sa/vault")]));
    let table: [(&str, i64, Option<&str>, Code, &str); 9] = [
        (&plain, 0, None, Code::Unauthenticated, "no bearer token"),
        (&plain, 0, Some(&api_server), Code::Unauthenticated, "audience"),
        (&plain, 0, Some(&other), Code::Unauthenticated, "known key"),
        (&plain, 0, Some(&expired), Code::Unauthenticated, "expired"),
        (&plain, 0, Some("nonsense"), Code::Unauthenticated, "not a signed JWT"),
        (&victim, 0, Some(&good), Code::InvalidArgument, "spiffe://cluster.local/ns/bank/sa/vault"),
        ("", 0, Some(&good), Code::InvalidArgument, "PEM"),
        (&plain, -5, Some(&good), Code::InvalidArgument, "negative"),
        (&"A".repeat(20 * 1024), 0, Some(&good), Code::InvalidArgument, "more than 16384"),
    ];
    for (csr, seconds, token, code, reason) in table {
        let status = client.create_certificate(with_token(csr, seconds, token)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{status}");
    }
    assert!(client.create_certificate(world.request(&plain, 0)).await.is_ok());
    let page = world.metrics.encode();
    for line in [
        "tidegate_certificates_issued_total{purpose=\"workload\"} 1",
        "tidegate_certificate_requests_refused_total{reason=\"audience\"} 1",
        "tidegate_certificate_requests_refused_total{reason=\"name\"} 1",
        "tidegate_root_rotation_step 0",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn a_service_account_that_is_called_as_the_authority_is_gets_no_certificate() {
    let world = world().await;
    // `ca.example` is the authority's own name.
    let token = world.signer.sign(&json!({
        "aud": TOKEN_AUDIENCE, "exp": u32::MAX, "sub": "system:serviceaccount:example:ca",
    }));
    let request = with_token(&plain_request(), 0, Some(&token));
    let status = world.client().create_certificate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let reason = "ca.example.cluster.local, under which the certificate authority serves";
    assert!(status.message().contains(reason), "{status}");
    let counted = "tidegate_certificate_requests_refused_total{reason=\"identity\"} 1";
    assert!(world.metrics.encode().contains(counted));
}

/// A body that never comes.
struct Never;

impl http_body::Body for Never {
    type Data = tonic::codegen::Bytes;
    type Error = Status;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Status>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_call_without_a_good_token_is_answered_before_its_body() {
    use tonic::codegen::{Service, http};
    let world = world().await;
    let bundle = world.manager.bundle().borrow().clone();
    let address =
        Address::new(ServerName::try_from("127.0.0.1").unwrap(), world.manager.grpc_address().port());
    let name = ServerName::try_from("ca.example").unwrap();
    let mut channel = channel(&address, &ControlPlaneProxyOptions::default(), name, move || {
        client_config(&bundle, None).ok()
    });
    for authorization in
        [None, Some("Bearer nonsense".to_owned()), Some(format!("Bearer {}", world.token("x")))]
    {
        let mut request =
            http::Request::post("https://ca.example/istio.v1.auth.IstioCertificateService/CreateCertificate")
                .header("content-type", "application/grpc");
        if let Some(authorization) = &authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(tonic::body::Body::new(Never)).unwrap();
        let answer = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
            channel.call(request).await.unwrap()
        };
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "16", "{authorization:?}");
    }
}

#[tokio::test]
async fn two_tokens_at_once_are_refused() {
    let world = world().await;
    let mut request = world.request(&plain_request(), 0);
    let again = format!("Bearer {}", world.token(TOKEN_AUDIENCE)).parse().unwrap();
    request.metadata_mut().append("authorization", again);
    let status = world.client().create_certificate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_message_that_is_too_large_or_too_deep_harms_no_other_caller() {
    let world = world().await;
    let mut client = world.client();
    let long = "A".repeat(10 * 1024 * 1024);
    let status = client.create_certificate(world.request(&long, 0)).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");

    // google.protobuf.Struct → Value → Struct → …
    let mut value = prost_types::Value { kind: None };
    for _ in 0..500 {
        let fields = [("a".to_owned(), value)].into();
        value = prost_types::Value {
            kind: Some(prost_types::value::Kind::StructValue(prost_types::Struct { fields })),
        };
    }
    let mut deep = world.request(&plain_request(), 0);
    deep.get_mut().metadata = Some(prost_types::Struct { fields: [("a".to_owned(), value)].into() });
    assert!(client.create_certificate(deep).await.is_err());
    assert!(world.ask(&plain_request(), 0).await.is_ok());
}

#[tokio::test]
async fn garbage_and_plaintext_at_the_port_leave_the_service_alone() {
    let world = world().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 100], b""] {
        let mut stream = TcpStream::connect(world.manager.grpc_address()).await.unwrap();
        let _ = stream.write_all(garbage).await;
        drop(stream);
    }
    assert!(world.ask(&plain_request(), 0).await.is_ok());
}

#[tokio::test]
async fn one_identity_that_asks_too_often_is_slowed_down() {
    let mut config = config();
    config.rate_limit = RateLimit { per_second: 0.001, burst: 3, max_identities: 10 };
    let world = world_with(config).await;
    let mut client = world.client();
    for _ in 0..3 {
        client.create_certificate(world.request(&plain_request(), 0)).await.unwrap();
    }
    let status = client.create_certificate(world.request(&plain_request(), 0)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let other = world.signer.sign(&json!({
        "aud": TOKEN_AUDIENCE, "exp": u32::MAX, "sub": "system:serviceaccount:other:one",
    }));
    assert!(client.create_certificate(with_token(&plain_request(), 0, Some(&other))).await.is_ok());
}

#[tokio::test]
async fn a_restart_keeps_the_root_and_clients_that_trust_it() {
    let world = world().await;
    let bundle = world.manager.bundle().borrow().clone();
    let World { dir, signer, metrics, manager } = world;
    assert_eq!(manager.drain(Duration::from_secs(10)).await, drain::DrainOutcome::Complete);
    let manager = CertManager::start(config(), dependencies(dir.path(), Metrics::new())).await.unwrap();
    let world = World { dir, signer, metrics, manager };
    let mut client = client_of(world.manager.grpc_address(), bundle);
    assert!(client.create_certificate(world.request(&plain_request(), 0)).await.is_ok());
}

#[tokio::test]
async fn a_given_intermediate_issues_with_its_chain() {
    let world = world().await;
    let dir = world.dir.path();
    openssl(
        dir,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout r.key -out r.crt -subj /CN=r",
    );
    openssl(
        dir,
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout i.key -out i.csr -subj /CN=i",
    );
    std::fs::write(
        dir.join("ext"),
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n",
    )
    .unwrap();
    openssl(dir, "x509 -req -in i.csr -CA r.crt -CAkey r.key -CAcreateserial -extfile ext -out i.crt");
    let mut dependencies = dependencies(dir, Metrics::new());
    dependencies.root_store = Arc::new(RootFolder::new(dir.join("other")));
    dependencies.given = Some(GivenFiles {
        certificate: dir.join("i.crt"),
        key: dir.join("i.key"),
        root: Some(dir.join("r.crt")),
    });
    let manager = CertManager::start(config(), dependencies).await.unwrap();
    let mut client = client_of(manager.grpc_address(), manager.bundle().borrow().clone());
    let response = client.create_certificate(world.request(&plain_request(), 0)).await.unwrap();
    let chain = response.into_inner().cert_chain;
    assert_eq!(chain.len(), 3);
    for (name, pem) in [("leaf", &chain[0]), ("middle", &chain[1]), ("root", &chain[2])] {
        std::fs::write(dir.join(name), pem).unwrap();
    }
    let verified = openssl(dir, "verify -purpose sslclient -CAfile root -untrusted middle leaf");
    assert_eq!(verified, b"leaf: OK\n");
    assert_eq!(manager.rotate(Vouched::Nothing).await.unwrap_err(), NotAllowed::Given);
}

#[tokio::test]
async fn a_client_that_knows_only_the_old_or_only_the_new_root_is_served_through_a_rotation() {
    let world = world().await;
    let old = world.manager.bundle().borrow().clone();
    assert!(world.admin("POST", "/rotation/next").await.contains("\"trust-both\""));
    let both = world.manager.bundle().borrow().clone();
    assert_eq!(both.roots().len(), 2);
    let new = Arc::new(TrustBundle::from_certificates([both.roots()[1].clone()]).unwrap());
    let ask = async |bundle: &Arc<TrustBundle>| {
        // The serving certificate follows the state within a moment.
        let mut client = client_of(world.manager.grpc_address(), bundle.clone());
        client.create_certificate(world.request(&plain_request(), 0)).await
    };
    for bundle in [&old, &both] {
        let chain = der(&ask(bundle).await.unwrap().into_inner().cert_chain);
        assert_eq!(chain.last(), old.roots().first(), "the old root still issues");
    }
    assert!(world.admin("POST", "/rotation/next?force=true").await.contains("\"issue-new\""));
    until(async || ask(&new).await.is_ok()).await;
    for bundle in [&old, &both, &new] {
        let chain = der(&ask(bundle).await.unwrap().into_inner().cert_chain);
        assert_eq!(chain.last(), new.roots().first(), "the new root issues");
        assert_eq!(chain.len(), 3, "leaf, bridge to the old root, new root");
    }
    assert!(world.admin("POST", "/rotation/next?force=true").await.contains("\"steady\""));
    until(async || world.metrics.encode().contains("tidegate_root_rotation_step 0")).await;
    for bundle in [&old, &both, &new] {
        assert!(ask(bundle).await.is_ok(), "a client with a copy of the old root is still served");
    }
}

#[tokio::test]
async fn a_client_that_knows_only_a_root_that_was_revoked_is_served_no_more() {
    let world = world().await;
    let old = world.manager.bundle().borrow().clone();
    let ask = async |bundle: &Arc<TrustBundle>| {
        let mut client = client_of(world.manager.grpc_address(), bundle.clone());
        client.create_certificate(world.request(&plain_request(), 0)).await
    };
    for step in ["trust-both", "issue-new", "steady"] {
        let answer = world.admin("POST", "/rotation/next?force=true&revoke=true").await;
        assert!(answer.contains(&format!("\"step\":\"{step}\"")), "{answer}");
    }
    let new = world.manager.bundle().borrow().clone();
    until(async || ask(&old).await.is_err()).await;
    assert!(ask(&new).await.is_ok());
    assert!(world.admin("GET", "/rotation").await.contains("\"retired_roots\":[]"));
}

#[tokio::test]
async fn the_admin_page_shows_the_rotation_and_refuses_a_step_with_its_reason() {
    let mut config = config();
    config.propagation = Duration::from_secs(3600);
    let world = world_with(config).await;
    let status = world.admin("GET", "/rotation").await;
    assert!(status.starts_with("HTTP/1.1 200") && status.contains("\"step\":\"steady\""), "{status}");
    assert!(world.admin("GET", "/rotation/next").await.starts_with("HTTP/1.1 405"));
    assert!(world.admin("POST", "/rotation/next").await.starts_with("HTTP/1.1 200"));
    let refused = world.admin("POST", "/rotation/next").await;
    assert!(refused.starts_with("HTTP/1.1 409") && refused.contains("wait"), "{refused}");
    assert!(world.admin("GET", "/ready").await.starts_with("HTTP/1.1 200"));
}

/// Asks again until it is so; a test that never ends fails.
async fn until(condition: impl AsyncFn() -> bool) {
    let asking = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stays_for_nothing_does_not_keep_its_place() {
    let short =
        CertManagerConfig { max_connections: 1, connection_age: Duration::from_millis(100), ..config() };
    let world = world_with(short).await;
    // Its connection answers every PING for as long as it is held.
    let mut idle = world.client();
    idle.create_certificate(world.request(&plain_request(), 0)).await.unwrap();
    let others_turn = async { while world.ask(&plain_request(), 0).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(30), others_turn).await.unwrap();
    drop(idle);
}
