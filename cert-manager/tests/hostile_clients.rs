//! The `tidegate-cert-manager` program within the memory that the chart gives it, while clients without a token send what
//! they can. Another client is served meanwhile.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_kubernetes::fake_api::{FakeApi, memory_limit};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tidegate_runtime::forward_proxy::ControlPlaneProxyOptions;
use tidegate_runtime::grpc::{Address, channel, client_config};
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate-cert-manager");
const SOON: Duration = Duration::from_secs(60);

/// A certificate authority of its own.
struct Program {
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
    dir: TempDir,
    key: KeyPair,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Program {
    fn start() -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("keys.pem"), key.public_key_pem()).unwrap();
        let arguments = ["--jwt-keys-file", &path("keys.pem"), "--store-dir", &path("ca")];
        Self::with(&[&arguments[..], &["--bundle-file", &path("bundle.pem")]].concat(), dir, key)
    }

    /// On Kubernetes, where the API server judges tokens and everything is kept.
    fn on(api: &FakeApi) -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        let kubeconfig = kubeconfig.display().to_string();
        let place = ["--namespace", "tidegate-system", "--pod-name", "ca-1"];
        Self::with(&[&["--kubernetes", "--kubeconfig", &kubeconfig][..], &place].concat(), dir, key)
    }

    fn with(arguments: &[&str], dir: TempDir, key: KeyPair) -> Self {
        raise_file_limit();
        let mut process = Command::new(PROGRAM)
            .args(["--listen", "127.0.0.1:0", "--admin-address", "127.0.0.1:0", "--log-format", "json"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let memory = Some(memory_limit("certManager"));
        let limit = Rlimit { current: memory, maximum: memory };
        prlimit(Some(Pid::from_child(&process)), Resource::Data, limit).unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        let up = lines.find(|line| line.contains("certificate authority listens")).unwrap();
        let up: Value = serde_json::from_str(&up).unwrap();
        let address = up["grpc_address"].as_str().unwrap().parse().unwrap();
        let admin = up["admin_address"].as_str().unwrap();
        let admin = admin.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        std::thread::spawn(move || lines.for_each(|line| sink.lock().unwrap().push(line)));
        Self { process, log, dir, key, address, admin }
    }

    fn client(&self) -> IstioCertificateServiceClient<Channel> {
        let bundle = TrustBundle::read_file(&self.dir.path().join("bundle.pem")).unwrap();
        let bundle = Arc::new(bundle);
        let address = Address::new(ServerName::try_from("127.0.0.1").unwrap(), self.address.port());
        let name = ServerName::try_from("localhost").unwrap();
        IstioCertificateServiceClient::new(channel(
            &address,
            &ControlPlaneProxyOptions::default(),
            name,
            move || client_config(&bundle, None).ok(),
        ))
    }

    fn token(&self) -> String {
        let claims = serde_json::json!({
            "aud": "tidegate-ca", "exp": u32::MAX, "sub": "system:serviceaccount:httpbin:httpbin",
        });
        let key = EncodingKey::from_ec_pem(self.key.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap()
    }

    /// A certificate for an authorized client.
    async fn serve_another_client(&self) {
        let mut csr = CertificateParams::default();
        csr.distinguished_name = DistinguishedName::new();
        let csr = csr.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token()).parse().unwrap());
        let mut client = self.client();
        let answer = client.create_certificate(request);
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap();
        assert_eq!(answer.unwrap().into_inner().cert_chain.len(), 2);
    }

    /// The most memory that it has held, as the kernel has counted it.
    fn peak(&self) -> u64 {
        let status =
            std::fs::read_to_string(Path::new("/proc").join(self.process.id().to_string()).join("status"));
        let status = status.unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }

    fn lines_with(&self, text: &str) -> Vec<Value> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|line| line.contains(text))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    prlimit(None, Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// A number on a page of metrics.
fn value(page: &str, sample: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(sample));
    line.unwrap_or_else(|| panic!("{sample} in {page}")).trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_token_are_refused_before_their_bodies_are_read() {
    let program = Program::start();
    let fresh = program.peak();
    let call = async |mut client: IstioCertificateServiceClient<Channel>| -> Status {
        let csr = "A".repeat(261 << 10);
        let request = IstioCertificateRequest { csr, validity_duration: 0, metadata: None };
        client.create_certificate(request).await.unwrap_err()
    };
    let connections = (0..68).map(|_| {
        let client = program.client();
        async move { join_all((0..15).map(|_| call(client.clone()))).await }
    });
    let attack = async { tokio::time::timeout(SOON, join_all(connections)).await.unwrap() };
    let (statuses, ()) = tokio::join!(attack, program.serve_another_client());
    // All of them were judged by their heads; a client that goes on to send may see its call reset instead.
    let refused = statuses.iter().flatten().filter(|status| status.code() == Code::Unauthenticated).count();
    assert!(refused > 0, "{:?}", statuses[0]);
    program.serve_another_client().await;
    let page = program.metrics().await;
    assert!(
        value(&page, "tidegate_certificate_requests_refused_total{reason=\"no-token\"}") >= refused as u64
    );
    let grown = program.peak() - fresh;
    assert!(grown < 48 << 20, "{grown} bytes for {} calls", 68 * 15);

    // A thousand refusals of one address are ten lines, and one that counts the rest.
    assert!(program.lines_with("certificate refused").len() <= 20, "{:?}", program.log);
    let counted = async {
        while program.lines_with("more certificates were refused").is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, counted).await.unwrap();
    let line = &program.lines_with("more certificates were refused")[0];
    let by_source = line["by_source"].as_str().unwrap();
    let (source, count) = by_source.split_once(": ").unwrap();
    assert_eq!(source, "127.0.0.1");
    assert!(count.parse::<u64>().unwrap() > 100, "{by_source}");
}

/// The beginning of a ClientHello of 64 KiB, which never ends.
fn unfinished_hello() -> Vec<u8> {
    let mut handshake = vec![1, 0, 0xff, 0xff];
    handshake.resize(64_000, 0);
    let records = handshake.chunks(16_000).flat_map(|part| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[0x16, 3, 1], &length[..], part].concat()
    });
    records.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_hold_a_bounded_memory_and_keep_no_client_out() {
    let program = Program::start();
    let (fresh, hello) = (program.peak(), unfinished_hello());
    let mut held = Vec::new();
    for number in 0..3800 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("127.0.0.{}:0", 2 + number % 4).parse().unwrap()).unwrap();
        let mut stream = socket.connect(program.address).await.unwrap();
        // Beyond a limit it is closed in the midst of it.
        let _ = stream.write_all(&hello).await;
        held.push(stream);
        if number % 950 == 949 {
            program.serve_another_client().await;
        }
    }
    let page = program.metrics().await;
    let refused = |limit: &str| {
        let sample = format!("tidegate_grpc_connections_refused_total{{limit=\"{limit}\"}}");
        page.lines()
            .find_map(|line| line.strip_prefix(&sample))
            .map_or(0, |count| count.trim().parse().unwrap())
    };
    let refused: u64 = ["address-bytes", "all-bytes"].map(refused).iter().sum();
    assert!(refused > 3000, "{refused} refused in {page}");
    assert!(!program.lines_with("connection closed: too many bytes").is_empty());
    let grown = program.peak() - fresh;
    assert!(grown < 64 << 20, "{grown} bytes");
    drop(held);
    program.serve_another_client().await;
}

const TRUST_BUNDLE: &str = "tidegate-trust-bundle";

/// The trust bundle in a namespace.
fn published(api: &FakeApi, namespace: &str) -> Option<String> {
    let map = api.get("v1/configmaps", namespace, TRUST_BUNDLE)?;
    map["data"]["ca.crt"].as_str().map(str::to_owned)
}

/// An API server with two namespaces, that accepts every token.
async fn api_server() -> FakeApi {
    let api = FakeApi::start().await;
    for name in ["tidegate-system", "httpbin"] {
        let labels = json!({"tidegate.io/injection": "enabled"});
        api.apply("v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    api.answer(|request, review| {
        let mut review = review.clone();
        let pod = json!({
            "authentication.kubernetes.io/pod-name": ["httpbin-1"],
            "authentication.kubernetes.io/pod-uid": ["8f0c"],
        });
        let user = json!({"username": "system:serviceaccount:httpbin:httpbin", "extra": pod});
        review["status"] = json!({"authenticated": true, "audiences": ["tidegate-ca"], "user": user});
        (request.resource == "tokenreviews").then_some((201, review))
    });
    api
}

/// Namespaces of the mesh, full of labels, and their trust bundles' ConfigMaps, full of entries: decoded whole they
/// would take 3 MB each.
fn fill_up(api: &FakeApi, tenants: &[String]) {
    let many = |count: usize| (0..count).map(|i| (format!("k{i:05}"), Value::from(""))).collect::<Value>();
    let (entries, mut labels) = (many(20_000), many(5_000));
    labels["tidegate.io/injection"] = "enabled".into();
    for tenant in tenants {
        let metadata =
            json!({"name": tenant, "labels": labels, "annotations": {"note": "x".repeat(100_000)}});
        api.apply("v1/namespaces", json!({ "metadata": metadata }));
        let metadata = json!({"name": TRUST_BUNDLE, "namespace": tenant});
        api.apply("v1/configmaps", json!({"metadata": metadata, "data": entries}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_tenants_fill_up_hold_little_memory_and_do_not_delay_certificates() {
    let api = api_server().await;
    let program = Program::on(&api);
    api.wait_for(|api| published(api, "httpbin").is_some()).await;
    std::fs::write(program.dir.path().join("bundle.pem"), published(&api, "httpbin").unwrap()).unwrap();
    program.serve_another_client().await;
    let fresh = program.peak();

    // As events, and in the answers to what is written: eight namespaces at a time are written to.
    let tenants: Vec<String> = (0..8).map(|number| format!("tenant-{number}")).collect();
    for _ in 0..2 {
        fill_up(&api, &tenants);
        program.serve_another_client().await;
        api.wait_for(|api| tenants.iter().all(|tenant| published(api, tenant).is_some())).await;
        program.serve_another_client().await;
    }
    let grown = program.peak() - fresh;
    assert!(grown < 12 << 20, "{grown} bytes");

    // And in lists.
    fill_up(&api, &tenants);
    let another = Program::on(&api);
    api.wait_for(|api| tenants.iter().all(|tenant| published(api, tenant).is_some())).await;
    let grown = another.peak().saturating_sub(fresh);
    assert!(grown < 12 << 20, "{grown} bytes");
}
