//! Workers on loopback with an app behind them, for tests of connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::policy::{
    ActiveIngressRule, AppProtocol, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule,
    PortPolicy, RuleState, Sources,
};
use tidegate_core::{CidrSet, EgressMode, Identity, ObjectRef, Principal, TrustDomain};
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::http::HttpContext;
use crate::limits::Limits;
use crate::listener::{InboundTarget, Listener};
use crate::snapshot::{Publisher, channel};
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::DataPlaneMetrics;
use crate::test_pki::{Authority, GATEWAY, SERVER};
use crate::tls::ServerTls;
use crate::worker::{RunningWorkers, Workers, WorkersConfig};

/// A pod's port for each kind of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Port {
    /// Plaintext HTTP from any address.
    Http = 1000,
    /// Mutual TLS with [`GATEWAY`] as principal.
    Https,
    /// TLS without client certificates.
    Skip,
    /// [`Port::Https`] for `sniHosts` foo.example and *.bar.example.
    Sni,
    /// Plaintext HTTP from an address other than the test's.
    Elsewhere,
    /// Opaque bytes.
    Tcp,
    /// Opaque bytes of an app that speaks first.
    ServerFirst,
    /// Mesh peers in permissive mode only.
    Mesh,
    /// [`Port::Https`] of an app that speaks HTTP/2.
    Grpc,
    /// Not in the policy.
    None,
}

/// In the order of the listeners.
const PORTS: [Port; 10] = [
    Port::Http,
    Port::Https,
    Port::Skip,
    Port::Sni,
    Port::Elsewhere,
    Port::Tcp,
    Port::ServerFirst,
    Port::Mesh,
    Port::Grpc,
    Port::None,
];

/// Running workers.
pub(crate) struct Mesh {
    pub(crate) root: Authority,
    pub(crate) publisher: Publisher,
    pub(crate) workers: RunningWorkers,
    pub(crate) metrics: DataPlaneMetrics,
    pub(crate) app: SocketAddr,
}

impl Mesh {
    /// One worker with the default limits, in front of the app of [`start_app`].
    pub(crate) async fn start() -> Self {
        Self::with(1, Limits::default()).await
    }

    pub(crate) async fn with(count: usize, limits: Limits) -> Self {
        Self::before(start_app().await, count, limits)
    }

    /// Workers in front of an app that runs elsewhere.
    pub(crate) fn before(app: SocketAddr, count: usize, limits: Limits) -> Self {
        let metrics = DataPlaneMetrics::default();
        let counted = metrics.clone();
        let telemetry = move || Telemetry::new(&counted, None);
        Self { metrics, ..Self::telling(app, count, limits, Arc::new(telemetry)) }
    }

    /// The same; each worker records what it does with telemetry of its own.
    pub(crate) fn telling(
        app: SocketAddr,
        count: usize,
        limits: Limits,
        telemetry: Arc<dyn Fn() -> Telemetry + Send + Sync>,
    ) -> Self {
        let root = Authority::root("root");
        let (publisher, snapshots) = channel();
        let listeners = PORTS.map(|port| {
            Listener::Fixed(InboundTarget { address: "127.0.0.1:0".parse().unwrap(), port: port as u16, app })
        });
        let workers = Workers::start(WorkersConfig {
            count,
            listeners: listeners.to_vec(),
            limits,
            snapshots,
            destinations: Arc::default(),
            http_context: Arc::new(move |limits, snapshots| {
                Rc::new(HttpContext::new(limits, Rc::new(telemetry()), snapshots))
            }),
        })
        .unwrap();
        let mesh = Self { root, publisher, workers, metrics: DataPlaneMetrics::default(), app };
        mesh.trust(&mesh.root);
        mesh.publish(|_| {});
        mesh
    }

    /// Publishes a certificate and trust bundle of this root.
    pub(crate) fn trust(&self, root: &Authority) {
        self.trust_bundle(root.bundle());
    }

    /// Publishes a certificate and this trust bundle.
    pub(crate) fn trust_bundle(&self, bundle: Arc<TrustBundle>) {
        let tls = ServerTls::new(self.root.named(SERVER).credentials(), bundle).unwrap();
        self.publisher.update(|snapshot| snapshot.tls = Some(Arc::new(tls)));
    }

    /// Publishes a changed policy.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut InboundPolicy)) {
        let mut policy = policy();
        change(&mut policy);
        self.publisher.update(|snapshot| snapshot.policy = Some(Arc::new(policy)));
    }

    /// Where the listener for a port of the policy is.
    pub(crate) fn address(&self, port: Port) -> SocketAddr {
        let index = PORTS.iter().position(|known| *known == port).unwrap();
        self.workers.addresses()[index]
    }

    pub(crate) async fn connect(&self, port: Port) -> TcpStream {
        TcpStream::connect(self.address(port)).await.unwrap()
    }

    /// Waits until the workers have this many connections.
    pub(crate) async fn connections(&self, count: usize) {
        until(|| self.workers.connections() == count).await;
    }
}

/// Waits for a condition; fails the test if it is not met.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the condition did not come true");
}

/// The policy that [`Port`] describes.
pub(crate) fn policy() -> InboundPolicy {
    let gateway = ClientCheck::Principals([Principal::parse(GATEWAY)].into());
    let https = |sni_hosts: &[&str], client: &ClientCheck| IngressTransport::Https {
        sni_hosts: sni_hosts
            .iter()
            .map(|host| tidegate_core::dns_name::DnsPattern::parse(host).unwrap())
            .collect(),
        client: client.clone(),
    };
    let elsewhere = Sources::Ranges(CidrSet::parse(["10.0.0.0/8"]).unwrap());
    let ports = [
        (Port::Http, AppProtocol::Http, rule(Sources::Any, IngressTransport::Http)),
        (Port::Https, AppProtocol::Http, rule(Sources::Any, https(&[], &gateway))),
        (Port::Skip, AppProtocol::Http, rule(Sources::Any, https(&[], &ClientCheck::Skip))),
        (
            Port::Sni,
            AppProtocol::Http,
            rule(Sources::Any, https(&["foo.example", "*.bar.example"], &gateway)),
        ),
        (Port::Elsewhere, AppProtocol::Http, rule(elsewhere, IngressTransport::Http)),
        (Port::Tcp, AppProtocol::Tcp, rule(Sources::Any, IngressTransport::Tcp)),
        (Port::ServerFirst, AppProtocol::TcpServerFirst, rule(Sources::Any, IngressTransport::Tcp)),
        (Port::Mesh, AppProtocol::Tcp, Vec::new()),
        (Port::Grpc, AppProtocol::H2c, rule(Sources::Any, https(&[], &gateway))),
    ];
    let ports: BTreeMap<_, _> = ports
        .into_iter()
        .map(|(port, protocol, ingress)| {
            let mesh = match port {
                Port::Mesh => MeshRule::AnyPeer,
                _ => MeshRule::Deny("permissive mode is off".into()),
            };
            (
                port as u16,
                PortPolicy {
                    protocol,
                    services: vec!["httpbin/httpbin".into()],
                    mesh,
                    ingress,
                    rate_limits: vec![],
                },
            )
        })
        .collect();
    InboundPolicy {
        workload: "httpbin/httpbin-1".into(),
        identity: Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap(),
        locality: None,
        telemetry: Default::default(),
        external_authorization: None,
        egress: EgressMode::AllowAny,
        retries: Vec::new(),
        egress_proxies: Vec::new(),
        ports,
    }
}

/// The rule of an IngressBackend.
pub(crate) fn rule(sources: Sources, transport: IngressTransport) -> Vec<IngressRule> {
    vec![IngressRule {
        origin: ObjectRef::new("IngressBackend", "httpbin", "httpbin"),
        backend: "httpbin/httpbin".into(),
        state: RuleState::Active(ActiveIngressRule { sources, transport }),
    }]
}

/// Starts an app on loopback; see [`run_app`].
pub(crate) async fn start_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(run_app(listener));
    address
}

/// Greets a connection that sends nothing first, responds to HTTP requests with `ok`, and echoes everything else until
/// the client half-closes; then sends a farewell.
async fn run_app(listener: TcpListener) {
    while let Ok((io, _)) = listener.accept().await {
        tokio::spawn(serve_app(io));
    }
}

async fn serve_app(mut io: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    let mut first = tokio::time::timeout(Duration::from_millis(100), io.read(&mut buffer)).await.ok();
    if first.is_none() {
        let _ = io.write_all(b"220 hello\r\n").await;
    }
    loop {
        let read = match first.take() {
            Some(first) => first,
            None => io.read(&mut buffer).await,
        };
        match read {
            Ok(0) => break,
            Ok(count) => {
                let bytes = &buffer[..count];
                if bytes.starts_with(b"GET /cut ") {
                    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
                    let _ = io.write_all(head).await;
                    return;
                }
                let answer: &[u8] = if bytes.starts_with(b"GET ") {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                } else {
                    bytes
                };
                if io.write_all(answer).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    let _ = io.write_all(b"bye").await;
}
