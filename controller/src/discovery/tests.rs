use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use rustls_pki_types::ServerName;
use tidegate_core::backend::{Backend, BackendRef, Endpoint, Transport};
use tidegate_core::policy::AppProtocol;
use tidegate_core::policy::InboundPolicy;
use tidegate_core::{Destination, EgressMode, ObjectRef};
use tidegate_proto::discovery as wire;
use tidegate_proto::discovery::discovery_client::DiscoveryClient;
use tidegate_proto::discovery::discovery_request::Message;
use tidegate_proto::discovery::{Ack, Hello, Node, Rejection, Resource, Subscribe};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::forward_proxy::ControlPlaneProxyOptions;
use tidegate_runtime::grpc;
use tidegate_runtime::logging::{LogHandle, LogRate};
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use self::ca::Ca;
use super::*;
use crate::metrics::NamespaceGauge;
use crate::object::Change;
use crate::publish::store::Store;
use crate::source::folder::is_workload;
use crate::source::{Batch, ObjectSource};
use crate::testing::{HTTPBIN, backend, ingress_backend};
use crate::{Controller, ControllerConfig, ControllerDependencies, ControllerHandle};

mod ca;

const PATIENCE: Duration = Duration::from_secs(20);
const CONTROLLER: &str = "tidegate-controller.tidegate-system.cluster.local";
const RESOURCE: &str = "listener/httpbin/httpbin-1";

/// Passes on what the test sends.
struct Piped(mpsc::Receiver<Batch>);

impl ObjectSource for Piped {
    fn run(mut self: Box<Self>, batches: mpsc::Sender<Batch>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            while let Some(batch) = self.0.recv().await {
                if batches.send(batch).await.is_err() {
                    return;
                }
            }
        })
    }
}

struct Mesh {
    ca: Ca,
    controller: ControllerHandle,
    source: mpsc::Sender<Batch>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    readiness: Readiness,
}

impl Mesh {
    /// A controller that has no objects yet.
    async fn start() -> Self {
        let (source, batches) = mpsc::channel(1);
        Self::start_with(Box::new(Piped(batches)), source).await
    }

    async fn start_with(objects: Box<dyn ObjectSource>, source: mpsc::Sender<Batch>) -> Self {
        tls::install_provider();
        let ca = Ca::new();
        let (bundle, trust_bundle) = watch::channel(ca.bundle());
        let (credentials, receiver) =
            watch::channel(Some(ca.issue(crate::SERVICE_ACCOUNT, crate::NAMESPACE)));
        let readiness = Readiness::new();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = ControllerConfig {
            listen: loopback,
            admin: loopback,
            trust_domain: TrustDomain::default(),
            max_connections: 100,
            is_workload: is_workload as fn(&Pod) -> bool,
            mesh_name: None,
            health: None,
        };
        let dependencies = ControllerDependencies {
            source: objects,
            credentials: receiver,
            trust_bundle,
            metrics: Metrics::new(),
            readiness: readiness.clone(),
            log: LogHandle::detached(),
            status_writers: Vec::new(),
        };
        let controller = Controller::start(config, dependencies).await.unwrap();
        Self { ca, controller, source, bundle, credentials, readiness }
    }

    async fn with(documents: &[&str]) -> Self {
        let mesh = Self::start().await;
        mesh.apply(documents).await;
        mesh.readiness.ready().await;
        mesh
    }

    async fn apply(&self, documents: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
        self.send(crate::source::folder::FolderSource::new(folder.path()).load().changes).await;
    }

    async fn delete_pod(&self, name: &str) {
        let key = crate::object::ObjectKey {
            kind: crate::object::Kind::Pod,
            name: crate::object::ObjectName::parse(name).unwrap(),
        };
        self.send(vec![Change::Delete(key)]).await;
    }

    async fn send(&self, changes: Vec<Change>) {
        self.source.send(Batch { changes, is_complete: true, problems: Vec::new() }).await.unwrap();
    }

    async fn connect(&self, account: &str, hello: Hello) -> Sidecar {
        let credentials = self.ca.issue(account, "httpbin");
        Sidecar::connect(self.controller.discovery_address, &self.ca.bundle(), &credentials, hello).await
    }

    async fn get(&self, path: &str) -> serde_json::Value {
        let mut stream = tokio::net::TcpStream::connect(self.controller.admin_address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// Waits until `/workloads` shows this of the first workload's sidecar.
    async fn until_shown(&self, holds: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let polled = async {
            loop {
                let shown = self.get("/workloads").await[0]["sidecar"].clone();
                if holds(&shown) {
                    return shown;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, polled).await.unwrap()
    }
}

/// The sidecar's end of a stream.
struct Sidecar {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Result<Streaming<DiscoveryResponse>, Status>,
}

impl Sidecar {
    async fn connect(
        address: SocketAddr,
        bundle: &TrustBundle,
        credentials: &Credentials,
        hello: Hello,
    ) -> Self {
        let sidecar = Self::silent(address, bundle, credentials, Some(hello)).await;
        assert!(sidecar.responses.is_ok(), "{:?}", sidecar.responses.err());
        sidecar
    }

    async fn silent(
        address: SocketAddr,
        bundle: &TrustBundle,
        credentials: &Credentials,
        hello: Option<Hello>,
    ) -> Self {
        let config = grpc::client_config(bundle, Some(credentials)).unwrap();
        let address: grpc::Address = format!("https://{address}").parse().unwrap();
        let channel = grpc::channel(
            &address,
            &ControlPlaneProxyOptions::default(),
            ServerName::try_from(CONTROLLER).unwrap(),
            move || Some(config.clone()),
        );
        let (requests, receiver) = mpsc::channel(8);
        if let Some(hello) = hello {
            requests.send(DiscoveryRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
        }
        let stream = DiscoveryClient::new(channel).stream(ReceiverStream::new(receiver)).await;
        Self { requests, responses: stream.map(Response::into_inner) }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        self.message().await.unwrap().expect("the stream has ended")
    }

    async fn message(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        let responses = self.responses.as_mut().map_err(|status| status.clone())?;
        tokio::time::timeout(PATIENCE, responses.message()).await.expect("nothing came")
    }

    /// How the stream ends; whatever comes before is passed over.
    async fn end(&mut self) -> Status {
        loop {
            match self.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    async fn ack(&self, nonce: u64) {
        self.say(Message::Ack(Ack { nonce, rejections: Vec::new() })).await;
    }

    async fn say(&self, message: Message) {
        self.requests.send(DiscoveryRequest { message: Some(message) }).await.unwrap();
    }
}

fn hello(workload: &str) -> Hello {
    let node =
        Node { workload: workload.to_owned(), version: "0.1.0".to_owned(), instance: "i-1".to_owned() };
    Hello { node: Some(node), known_versions: Default::default() }
}

fn holding(version: &str) -> Hello {
    Hello { known_versions: [(RESOURCE.to_owned(), version.to_owned())].into(), ..hello("httpbin/httpbin-1") }
}

fn only(response: &DiscoveryResponse) -> &Resource {
    match response.resources.as_slice() {
        [resource] => resource,
        other => panic!("{other:?}"),
    }
}

fn policy(resource: &Resource) -> InboundPolicy {
    let Some(wire::resource::Body::Listener(policy)) = resource.body.clone() else { panic!() };
    policy.try_into().unwrap()
}

#[tokio::test]
async fn a_sidecar_gets_its_own_policy_and_then_each_change_of_it() {
    let other = HTTPBIN.replace("httpbin-1", "httpbin-2").replace("namespace: httpbin", "namespace: other");
    let mesh = Mesh::with(&[HTTPBIN, &other]).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    let first = sidecar.next().await;
    assert_eq!((first.nonce, first.removed.len()), (1, 0));
    assert_eq!(only(&first).name, RESOURCE);
    assert_eq!(&*policy(only(&first)).workload, "httpbin/httpbin-1");
    sidecar.ack(1).await;
    let ib = ingress_backend("ib", &backend("http", ""), "");
    mesh.apply(&[&ib.replace("namespace: httpbin", "namespace: other")]).await;
    mesh.apply(&[&ib]).await;
    let second = sidecar.next().await;
    assert_eq!(second.nonce, 2, "another workload's policy is not sent");
    assert_ne!(only(&second).version, only(&first).version);
    assert_eq!(policy(only(&second)).ports[&14001].ingress.len(), 1);
    let shown = mesh.until_shown(|shown| shown["sentVersion"] == only(&second).version).await;
    assert_eq!(shown["ackedVersion"], only(&first).version);
    assert_eq!(shown["connected"], true);
}

#[tokio::test]
async fn another_identity_is_refused() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let mut sidecar = mesh.connect("other", hello("httpbin/httpbin-1")).await;
    assert_eq!(sidecar.end().await.code(), Code::PermissionDenied);
    // So is the right account of another namespace.
    let credentials = mesh.ca.issue("httpbin", "elsewhere");
    let address = mesh.controller.discovery_address;
    let mut sidecar =
        Sidecar::connect(address, &mesh.ca.bundle(), &credentials, hello("httpbin/httpbin-1")).await;
    let status = sidecar.end().await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        status.message(),
        "httpbin.elsewhere.cluster.local is not the identity of workload httpbin/httpbin-1"
    );
    // And a client does not learn which workloads another namespace has.
    let mut sidecar =
        Sidecar::connect(address, &mesh.ca.bundle(), &credentials, hello("httpbin/nobody")).await;
    let status = sidecar.end().await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        status.message(),
        "httpbin.elsewhere.cluster.local is not the identity of workload httpbin/nobody"
    );
}

#[tokio::test]
async fn a_client_of_another_ca_gets_no_connection() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let foreign = Ca::new().issue("httpbin", "httpbin");
    let address = mesh.controller.discovery_address;
    let hello = Some(hello("httpbin/httpbin-1"));
    let mut sidecar = Sidecar::silent(address, &mesh.ca.bundle(), &foreign, hello).await;
    assert_ne!(sidecar.end().await.code(), Code::Ok);
}

#[tokio::test]
async fn a_workload_that_comes_later_is_waited_for() {
    let mesh = Mesh::with(&[]).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    let mut stranger = mesh.connect("other", hello("httpbin/httpbin-1")).await;
    mesh.apply(&[HTTPBIN]).await;
    assert_eq!(only(&sidecar.next().await).name, RESOURCE);
    assert_eq!(stranger.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn on_a_reconnect_only_what_differs_is_sent() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let version =
        only(&mesh.connect("httpbin", hello("httpbin/httpbin-1")).await.next().await).version.clone();

    let mut same = mesh.connect("httpbin", holding(&version)).await;
    mesh.until_shown(|shown| shown["ackedVersion"] == version.as_str()).await;
    mesh.apply(&[&ingress_backend("ib", &backend("http", ""), "")]).await;
    let response = same.next().await;
    assert_eq!(response.nonce, 1, "nothing came before the change");
    assert_ne!(only(&response).version, version);

    let mut outdated = mesh.connect("httpbin", holding("old")).await;
    assert_eq!(only(&outdated.next().await).version, only(&response).version);
}

#[tokio::test]
async fn a_policy_that_is_gone_is_removed_but_not_before_all_objects_are_known() {
    let mesh = Mesh::start().await;
    let mut sidecar = mesh.connect("httpbin", holding("x")).await;
    mesh.source.send(Batch::default()).await.unwrap();
    mesh.apply(&[HTTPBIN]).await;
    let first = sidecar.next().await;
    assert!(first.removed.is_empty(), "a controller that has just started takes nothing away");
    sidecar.ack(first.nonce).await;
    mesh.delete_pod("httpbin/httpbin-1").await;
    assert_eq!(sidecar.next().await.removed, [RESOURCE]);
    let mut again = mesh.connect("httpbin", holding("x")).await;
    assert_eq!(again.next().await.removed, [RESOURCE]);
}

#[tokio::test]
async fn what_a_sidecar_refuses_is_shown_with_its_reason_and_not_sent_again() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    let response = sidecar.next().await;
    let version = only(&response).version.clone();
    let rejection =
        Rejection { name: RESOURCE.to_owned(), version: version.clone(), reason: "ports[0]: odd".to_owned() };
    sidecar.say(Message::Ack(Ack { nonce: response.nonce, rejections: vec![rejection] })).await;
    let shown = mesh.until_shown(|shown| shown["rejected"].is_object()).await;
    assert_eq!(shown["rejected"], serde_json::json!({"version": version, "reason": "ports[0]: odd"}));
    assert_eq!(shown["ackedVersion"], serde_json::Value::Null);
    mesh.apply(&[&ingress_backend("ib", &backend("http", ""), "")]).await;
    let next = sidecar.next().await;
    assert_ne!(only(&next).version, version);
    sidecar.ack(next.nonce).await;
    mesh.until_shown(|shown| shown["rejected"].is_null() && shown["ackedVersion"] == only(&next).version)
        .await;
}

#[tokio::test]
async fn a_sidecar_that_does_not_answer_delays_no_other_and_gets_the_newest_state_when_it_does() {
    let pods = [HTTPBIN, &HTTPBIN.replace("httpbin-1", "httpbin-2").replace("127.0.0.11", "127.0.0.12")];
    let mesh = Mesh::with(&pods).await;
    let mut slow = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    let mut fast = mesh.connect("httpbin", hello("httpbin/httpbin-2")).await;
    let owed = slow.next().await.nonce;
    let mut last = fast.next().await;
    for i in 0..20 {
        fast.ack(last.nonce).await;
        let range = format!("{{kind: IPRange, name: 10.0.{i}.0/24}}");
        mesh.apply(&[&ingress_backend("ib", &backend("http", ""), &range)]).await;
        last = fast.next().await;
    }
    slow.ack(owed).await;
    let response = slow.next().await;
    assert_eq!(response.nonce, owed + 1, "the states between were skipped");
    assert_eq!(policy(only(&response)).ports, policy(only(&last)).ports);
}

#[tokio::test]
async fn a_workload_that_changes_its_service_account_loses_the_stream() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    sidecar.next().await;
    mesh.apply(&[&HTTPBIN.replace("serviceAccountName: httpbin", "serviceAccountName: other")]).await;
    assert_eq!(sidecar.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn messages_out_of_turn_end_the_stream() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let mut twice = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    twice.say(Message::Hello(hello("httpbin/httpbin-1"))).await;
    assert_eq!(twice.end().await.code(), Code::InvalidArgument);
    for workload in ["", "httpbin", "a/b/c", &format!("a/{}", "x".repeat(2000))] {
        let mut nameless = mesh.connect("httpbin", hello(workload)).await;
        assert_eq!(nameless.end().await.code(), Code::InvalidArgument, "{workload}");
    }
    let address = mesh.controller.discovery_address;
    let credentials = mesh.ca.issue("httpbin", "httpbin");
    let mut early = Sidecar::silent(address, &mesh.ca.bundle(), &credentials, None).await;
    early.ack(1).await;
    assert_eq!(early.end().await.code(), Code::InvalidArgument);
    let huge = Hello { known_versions: [(RESOURCE.to_owned(), "x".repeat(100_000))].into(), ..hello("a/b") };
    let mut large = mesh.connect("httpbin", huge).await;
    assert_eq!(large.end().await.code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_or_the_root_that_it_rests_on() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let address = mesh.controller.discovery_address;
    let soon = mesh.ca.issue_until("httpbin", "httpbin", SystemTime::now() + Duration::from_secs(3));
    let mut expiring = Sidecar::connect(address, &mesh.ca.bundle(), &soon, hello("httpbin/httpbin-1")).await;
    assert_eq!(expiring.end().await.code(), Code::Unauthenticated);

    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    sidecar.next().await;
    let other = Ca::new();
    let both = [mesh.ca.0.der().clone(), other.0.der().clone()];
    mesh.bundle.send_replace(Arc::new(TrustBundle::from_certificates(both).unwrap()));
    sidecar.ack(1).await;
    mesh.apply(&[&ingress_backend("ib", &backend("http", ""), "")]).await;
    assert_eq!(sidecar.next().await.nonce, 2, "a root that is added ends no stream");
    mesh.bundle.send_replace(other.bundle());
    assert_eq!(sidecar.end().await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn the_server_shows_its_newest_certificate() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let credentials = mesh.ca.issue("httpbin", "httpbin");
    let both = Ca::new();
    let roots = [mesh.ca.0.der().clone(), both.0.der().clone()];
    let bundle = TrustBundle::from_certificates(roots).unwrap();
    mesh.bundle.send_replace(Arc::new(bundle));
    mesh.credentials.send_replace(Some(both.issue(crate::SERVICE_ACCOUNT, crate::NAMESPACE)));
    let address = mesh.controller.discovery_address;
    // The change reaches the acceptor by itself; until then the old certificate is shown, and this client refuses it.
    let served = async {
        loop {
            let hello = Some(hello("httpbin/httpbin-1"));
            let sidecar = Sidecar::silent(address, &both.bundle(), &credentials, hello).await;
            if sidecar.responses.is_ok() {
                return sidecar;
            }
        }
    };
    let mut sidecar = tokio::time::timeout(PATIENCE, served).await.unwrap();
    assert_eq!(only(&sidecar.next().await).name, RESOURCE);
}

#[tokio::test]
async fn a_file_that_changes_is_at_the_sidecar_within_half_a_second() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("app.yaml"), HTTPBIN).unwrap();
    // Two hundred more workloads, none of which the change is about.
    let others: Vec<_> =
        (0..200).map(|i| HTTPBIN.replace("namespace: httpbin", &format!("namespace: n{i}"))).collect();
    std::fs::write(folder.path().join("others.yaml"), others.join("---\n")).unwrap();
    let source = Box::new(crate::source::folder::FolderSource::new(folder.path()));
    let (unused, _) = mpsc::channel(1);
    let mesh = Mesh::start_with(source, unused).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    let mut nonce = sidecar.next().await.nonce;
    let mut fastest = PATIENCE;
    for i in 0..10 {
        sidecar.ack(nonce).await;
        let range = format!("{{kind: IPRange, name: 10.0.{i}.0/24}}");
        let started = std::time::Instant::now();
        std::fs::write(
            folder.path().join("policy.yaml"),
            ingress_backend("ib", &backend("http", ""), &range),
        )
        .unwrap();
        nonce = sidecar.next().await.nonce;
        fastest = fastest.min(started.elapsed());
    }
    // The fastest of them: what else runs on this machine must not decide.
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
}

/// A service that knows the policy of `httpbin/httpbin-1` and no objects, for one sidecar; the CA that vouches for both, and
/// what must live on meanwhile.
async fn serve_nothing(
    hello_timeout: Duration,
    complaints: Arc<LogThrottle<Identity>>,
    arrivals: Arc<LogThrottle<Identity>>,
) -> (SocketAddr, Ca, impl Sized) {
    tls::install_provider();
    let ca = Ca::new();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (own, credentials) = watch::channel(Some(ca.issue(crate::SERVICE_ACCOUNT, crate::NAMESPACE)));
    let (bundle, trust_bundle) = watch::channel(ca.bundle());
    let (trigger, drain) = drain::channel();
    let store = Arc::<Store>::default();
    let workloads = Arc::new(PolicyStore::new(store.clone()));
    let identity = Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap();
    let workload = crate::object::ObjectName::new("httpbin", "httpbin-1");
    let (shared, ports) = (workload.to_shared(), Default::default());
    let policy = InboundPolicy {
        workload: shared,
        identity,
        locality: None,
        telemetry: Default::default(),
        external_authorization: None,
        egress: EgressMode::AllowAny,
        retries: Vec::new(),
        egress_proxies: Vec::new(),
        ports,
    };
    workloads.publish(&workload, policy);
    workloads.mark_synced();
    let resources =
        OnDemand::new(store, Arc::default(), TrustDomain::default(), is_workload, NamespaceGauge::default());
    let service = DiscoveryService {
        complaints,
        arrivals,
        hello_timeout,
        ..DiscoveryService::new(
            workloads,
            Arc::new(resources),
            TrustDomain::default(),
            trust_bundle.clone(),
            ControllerMetrics::default(),
            drain.clone(),
        )
    };
    let tls = crate::serving::DiscoveryTls { credentials, trust_bundle };
    tokio::spawn(crate::serving::serve(listener, tls, service, 100, Default::default(), drain));
    (address, ca, (own, bundle, trigger))
}

#[tokio::test]
async fn a_stream_that_never_says_what_it_wants_is_ended() {
    let (address, ca, _alive) =
        serve_nothing(Duration::from_millis(10), Arc::default(), Arc::default()).await;
    let credentials = ca.issue("httpbin", "httpbin");
    let mut silent = Sidecar::silent(address, &ca.bundle(), &credentials, None).await;
    assert_eq!(silent.end().await.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn what_one_identity_does_wrong_again_and_again_is_ten_lines_and_a_count() {
    let rate = LogRate { window: Duration::from_secs(3600), ..LogRate::default() };
    let complaints = Arc::new(LogThrottle::new(rate));
    let (address, ca, _alive) = serve_nothing(HELLO_TIMEOUT, complaints.clone(), Arc::default()).await;
    let credentials = ca.issue("httpbin", "httpbin");
    for _ in 0..14 {
        let mut stranger = Sidecar::connect(address, &ca.bundle(), &credentials, hello("bank/vault")).await;
        assert_eq!(stranger.end().await.code(), Code::PermissionDenied);
    }
    let identity = Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap();
    assert_eq!(complaints.take_suppressed().unwrap().by_source, [(identity, 4)]);
}

#[tokio::test]
async fn a_sidecar_that_connects_again_and_again_is_ten_lines_and_a_count() {
    let rate = LogRate { window: Duration::from_secs(3600), ..LogRate::default() };
    let arrivals = Arc::new(LogThrottle::new(rate));
    let (address, ca, _alive) = serve_nothing(HELLO_TIMEOUT, Arc::default(), arrivals.clone()).await;
    let credentials = ca.issue("httpbin", "httpbin");
    for _ in 0..14 {
        let mut sidecar =
            Sidecar::connect(address, &ca.bundle(), &credentials, hello("httpbin/httpbin-1")).await;
        assert_eq!(only(&sidecar.next().await).name, RESOURCE);
    }
    let identity = Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap();
    assert_eq!(arrivals.take_suppressed().unwrap().by_source, [(identity, 4)]);
}

const SERVICE_IP: &str = "destination/10.96.0.10:80";

/// The Service in front of [`HTTPBIN`], with a cluster IP.
fn with_cluster_ip() -> String {
    HTTPBIN.replace("spec:\n  selector", "spec:\n  clusterIP: 10.96.0.10\n  selector")
}

const BACKEND: &str = "backend/Service/httpbin/httpbin:80";
const OUTSIDE: &str = "destination/192.0.2.1:443";

fn destination(resource: &Resource) -> Destination {
    let Some(wire::resource::Body::Destination(destination)) = resource.body.clone() else { panic!() };
    destination.try_into().unwrap()
}

fn endpoints(resource: &Resource) -> Vec<Endpoint> {
    let Some(wire::resource::Body::Backend(backend)) = resource.body.clone() else { panic!("{resource:?}") };
    Backend::try_from(backend).unwrap().endpoints
}

fn names(response: &DiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn unsubscribe(names: &[&str]) -> Message {
    Message::Unsubscribe(wire::Unsubscribe { names: names.iter().map(ToString::to_string).collect() })
}

fn subscribe(names: &[&str]) -> Message {
    Message::Subscribe(Subscribe { names: names.iter().map(ToString::to_string).collect() })
}

#[tokio::test]
async fn a_destination_comes_with_its_backend_and_then_the_backend_alone_with_each_change_of_it() {
    let mesh = Mesh::with(&[&with_cluster_ip()]).await;
    let mut sidecar = mesh.connect("client", hello("httpbin/client-1")).await;
    sidecar.say(subscribe(&[SERVICE_IP, OUTSIDE])).await;
    let mut seen: HashMap<String, Resource> = HashMap::new();
    while seen.len() < 3 {
        let response = sidecar.next().await;
        sidecar.ack(response.nonce).await;
        let names = names(&response);
        assert_eq!(names.contains(&SERVICE_IP), names.contains(&BACKEND), "they come together: {names:?}");
        seen.extend(response.resources.into_iter().map(|resource| (resource.name.clone(), resource)));
    }
    assert_eq!(destination(&seen[OUTSIDE]), Destination::Unknown);
    let name = BackendRef { object: ObjectRef::new("Service", "httpbin", "httpbin"), port: 80 };
    assert_eq!(destination(&seen[SERVICE_IP]), Destination::backend(AppProtocol::Http, name));
    let identity = Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap();
    let endpoint = Endpoint::new("127.0.0.11:14001".parse().unwrap(), Transport::Mesh(identity));
    assert_eq!(endpoints(&seen[BACKEND]), [endpoint]);

    // A Pod of another namespace touches nothing; one more behind the Service does.
    let pod = HTTPBIN.split("---").next().unwrap();
    mesh.apply(&[&pod.replace("namespace: httpbin", "namespace: other").replace("127.0.0.11", "127.0.0.13")])
        .await;
    let second = pod.replace("httpbin-1", "httpbin-2").replace("127.0.0.11", "127.0.0.12");
    mesh.apply(&[&with_cluster_ip(), &second]).await;
    let response = sidecar.next().await;
    assert_eq!((names(&response), response.more), (vec![BACKEND], false), "the destination stays as it is");
    assert_eq!(endpoints(only(&response)).len(), 2);

    // After a reconnect only what differs is sent, also of what a destination refers to.
    let known = |names: &[&str]| {
        let version = |name: &str| (name.to_owned(), seen[name].version.clone());
        Hello {
            known_versions: names.iter().map(|name| version(name)).collect(),
            ..hello("httpbin/client-1")
        }
    };
    let mut again = mesh.connect("client", known(&[SERVICE_IP, BACKEND])).await;
    again.say(subscribe(&[SERVICE_IP])).await;
    let newest = again.next().await;
    assert_eq!(only(&newest).name, BACKEND);
    assert_eq!(only(&newest).version, only(&response).version);
    let mut held = known(&[SERVICE_IP]);
    held.known_versions.insert(BACKEND.to_owned(), only(&newest).version.clone());
    let mut held = mesh.connect("client", held).await;
    held.say(subscribe(&[BACKEND, SERVICE_IP, OUTSIDE])).await;
    assert_eq!(only(&held.next().await).name, OUTSIDE);
}

#[tokio::test]
async fn a_destination_that_a_sidecar_refuses_is_shown_until_one_is_taken_over_or_not_wanted_any_more() {
    let mesh = Mesh::with(&[&with_cluster_ip()]).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    let first = sidecar.next().await;
    sidecar.ack(first.nonce).await;
    sidecar.say(subscribe(&[SERVICE_IP])).await;
    let response = sidecar.next().await;
    let rejection =
        |name: &str| Rejection { name: name.to_owned(), version: "v".to_owned(), reason: "odd".to_owned() };
    let rejections = vec![rejection(SERVICE_IP), rejection(BACKEND)];
    sidecar.say(Message::Ack(Ack { nonce: response.nonce, rejections })).await;
    let shown = mesh.until_shown(|shown| shown["rejectedResources"].is_object()).await;
    assert_eq!(shown["rejectedResources"][SERVICE_IP], serde_json::json!({"version": "v", "reason": "odd"}));
    assert_eq!(
        (&shown["rejected"], &shown["ackedVersion"]),
        (&serde_json::Value::Null, &shown["sentVersion"])
    );
    sidecar.say(unsubscribe(&[SERVICE_IP])).await;
    mesh.until_shown(|shown| shown["rejectedResources"].as_object().is_some_and(|all| all.len() == 1)).await;
    mesh.apply(&[&with_cluster_ip().replace("127.0.0.11", "127.0.0.12")]).await;
    let mut response = sidecar.next().await;
    while !names(&response).contains(&BACKEND) {
        sidecar.ack(response.nonce).await;
        response = sidecar.next().await;
    }
    sidecar.ack(response.nonce).await;
    mesh.until_shown(|shown| shown["rejectedResources"].is_null()).await;
}

#[tokio::test]
async fn addresses_of_one_backend_share_it_and_it_is_followed_until_the_sidecar_drops_it() {
    let dual = HTTPBIN.replace(
        "spec:\n  selector",
        "spec:\n  clusterIP: 10.96.0.10\n  clusterIPs: [10.96.0.10, 10.96.0.11]\n  selector",
    );
    let mesh = Mesh::with(&[&dual]).await;
    let mut sidecar = mesh.connect("client", hello("httpbin/client-1")).await;
    let second = "destination/10.96.0.11:80";
    sidecar.say(subscribe(&[SERVICE_IP])).await;
    let first = sidecar.next().await;
    assert_eq!(names(&first), [SERVICE_IP, BACKEND]);
    sidecar.say(subscribe(&[second])).await;
    sidecar.ack(first.nonce).await;
    let response = sidecar.next().await;
    assert_eq!(names(&response), [second]);

    // The sidecar says itself what it no longer needs.
    sidecar.say(unsubscribe(&[SERVICE_IP, second])).await;
    sidecar.ack(response.nonce).await;
    let gone = dual.replace("127.0.0.11", "127.0.0.12");
    mesh.apply(&[&gone]).await;
    let response = sidecar.next().await;
    assert_eq!(names(&response), [BACKEND]);
    sidecar.say(unsubscribe(&[BACKEND])).await;
    sidecar.ack(response.nonce).await;
    mesh.apply(&[&dual]).await;
    sidecar.say(subscribe(&[OUTSIDE])).await;
    assert_eq!(names(&sidecar.next().await), [OUTSIDE]);
}

#[tokio::test]
async fn what_does_not_exist_is_said_and_comes_once_it_does() {
    let mesh = Mesh::with(&[]).await;
    let mut sidecar = mesh.connect("client", hello("httpbin/client-1")).await;
    sidecar.say(subscribe(&[BACKEND, "routes/none"])).await;
    let mut removed = Vec::new();
    while removed.len() < 2 {
        let response = sidecar.next().await;
        sidecar.ack(response.nonce).await;
        assert!(response.resources.is_empty());
        removed.extend(response.removed);
    }
    assert_eq!(removed, [BACKEND, "routes/none"]);
    mesh.apply(&[HTTPBIN]).await;
    assert_eq!(endpoints(only(&sidecar.next().await)).len(), 1);
}

#[tokio::test]
async fn what_a_sidecar_wants_no_longer_is_forgotten_and_strange_names_end_the_stream() {
    let mesh = Mesh::with(&[&with_cluster_ip()]).await;
    let mut sidecar = mesh.connect("client", hello("httpbin/client-1")).await;
    sidecar.say(subscribe(&[SERVICE_IP])).await;
    let first = sidecar.next().await;
    sidecar.say(unsubscribe(&[SERVICE_IP])).await;
    sidecar.ack(first.nonce).await;
    sidecar.say(subscribe(&[SERVICE_IP])).await;
    let again = sidecar.next().await;
    assert_eq!(names(&again), [SERVICE_IP], "sent again, without the backend, which the sidecar has kept");
    assert_eq!(only(&again).version, first.resources[0].version);
    sidecar.ack(again.nonce).await;
    sidecar.say(subscribe(&[BACKEND])).await;
    assert_eq!(only(&sidecar.next().await).name, BACKEND, "a sidecar that asks again has dropped it");
    sidecar.say(subscribe(&["destination/10.96.0.10"])).await;
    assert_eq!(sidecar.end().await.code(), Code::InvalidArgument);
    // A workload's policy is its own business.
    let mut curious = mesh.connect("client", hello("httpbin/client-1")).await;
    curious.say(subscribe(&[RESOURCE])).await;
    assert_eq!(curious.end().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_sidecar_s_report_is_shown_and_a_malformed_one_ends_the_stream() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    let root = "ab".repeat(32);
    let report = wire::Report {
        trusted_roots: vec![root.clone()],
        certificate_not_after: 1_800_000_000,
        certificate_roots: vec![root.clone()],
    };
    sidecar.say(Message::Report(report.clone())).await;
    let shown = mesh.until_shown(|shown| !shown["trustedRoots"].is_null()).await;
    assert_eq!(shown["trustedRoots"], serde_json::json!([root]));
    assert_eq!(shown["certificateNotAfter"], "2027-01-15T08:00:00Z");
    sidecar.say(Message::Report(wire::Report { certificate_not_after: i64::MAX, ..report })).await;
    assert_eq!(sidecar.end().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_drain_sends_sidecars_elsewhere() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    sidecar.next().await;
    let shutdown = tokio::spawn(mesh.controller.shutdown(PATIENCE));
    assert_eq!(sidecar.end().await.code(), Code::Unavailable);
    drop(sidecar);
    assert_eq!(shutdown.await.unwrap(), drain::DrainOutcome::Complete);
}

#[tokio::test]
async fn the_admin_address_shows_statuses_workloads_and_reasons() {
    let ib = ingress_backend("ib", &backend("http", ""), "{kind: IPRange, name: 127.0.0.0/8}");
    let mesh = Mesh::with(&[HTTPBIN, &ib]).await;
    let policies = mesh.get("/policies").await;
    assert_eq!(policies[0]["name"], "ib");
    assert_eq!(policies[0]["currentStatus"], "committed");
    assert!(policies[0]["file"].as_str().unwrap().starts_with("all.yaml:"), "{policies}");
    assert_eq!(mesh.get("/problems").await, serde_json::json!([]));
    let workloads = mesh.get("/workloads").await;
    assert_eq!(workloads[0]["workload"], "httpbin/httpbin-1");
    let ports = workloads[0]["policy"]["ports"].as_object().unwrap();
    let rule = &ports.values().next().unwrap()["ingress"][0]["state"]["active"];
    assert_eq!(rule["sources"]["ranges"][0], "127.0.0.0/8");
    let explained = mesh.get("/explain?backend=httpbin/httpbin&source=127.0.0.9&tls=false").await;
    assert_eq!(explained["decision"], "allow");
    let refused = mesh
        .get("/explain?backend=httpbin%2Fhttpbin&port=14001&source=10.0.0.9&principal=a.b&principal=c.d")
        .await;
    assert_eq!(refused["decision"], "deny");
}

#[tokio::test]
async fn a_workload_s_newest_streams_are_served_and_its_oldest_ends_with_the_reason() {
    let mesh = Mesh::with(&[HTTPBIN]).await;
    let mut oldest = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
    oldest.next().await;
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut sidecar = mesh.connect("httpbin", hello("httpbin/httpbin-1")).await;
        let first = sidecar.next().await;
        sidecar.ack(first.nonce).await;
        others.push(sidecar);
    }
    let status = oldest.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "the workload has newer streams, and no more than a few at a time");
    let addresses: Vec<String> = (1..200).map(|i| format!("destination/10.9.9.{i}:80")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    others[3].say(subscribe(&addresses)).await;
    assert_eq!(others[3].next().await.resources.len(), 199);
}
