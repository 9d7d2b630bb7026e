//! A sidecar's codecs on the thread whose allocations are counted; the app has its own threads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::Response;
use tidegate_core::policy::{
    ActiveIngressRule, AppProtocol, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule,
    PortPolicy, RuleState, Sources, Terms,
};
use tidegate_core::{EgressMode, Identity, ObjectRef, TrustDomain};
use tidegate_sidecar::authorizer::Authorizer;
use tidegate_sidecar::connection_info::ConnectionInfo;
use tidegate_sidecar::http::handler::Handler;
use tidegate_sidecar::http::{HttpContext, h1, h2};
use tidegate_sidecar::lifeline::Registry;
use tidegate_sidecar::snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Maximum wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);
/// Number of checks, a millisecond apart, after which a figure counts as stable.
const STILL: usize = 100;

/// The HTTP version that clients speak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

/// One sidecar.
pub(crate) struct Sidecar {
    pub(crate) address: SocketAddr,
    runtime: Runtime,
    local: LocalSet,
    env: Rc<HttpContext>,
    registry: Rc<Registry<()>>,
    open: Rc<Cell<usize>>,
}

/// What an app has seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// Requests.
    pub(crate) requests: AtomicUsize,
    /// Bytes of responses that the sidecar has read, or granted a window for.
    pub(crate) sent: AtomicUsize,
}

/// An app; ends when dropped.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    /// Its thread ends when this is dropped.
    _ends: oneshot::Sender<()>,
}

impl Sidecar {
    /// A sidecar whose clients speak this version. `tls`: treat them as TLS clients, so that HTTP/2 clients do not need
    /// an HTTP/2 app.
    pub(crate) fn new(speaks: Speaks, app: SocketAddr, protocol: AppProtocol, tls: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let env = Rc::new(HttpContext::new(Rc::default(), Rc::default(), snapshot::channel().1));
        let (local, open) = (LocalSet::new(), Rc::new(Cell::new(0)));
        let registry = Rc::new(Registry::new());
        let (shared, count, lines) = (env.clone(), open.clone(), registry.clone());
        local.spawn_local(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let handler = handler(peer, address, app, protocol, tls);
                let (env, count, line) = (shared.clone(), count.clone(), lines.add(Rc::new(())));
                count.set(count.get() + 1);
                tokio::task::spawn_local(async move {
                    match speaks {
                        Speaks::Http1 => {
                            Box::pin(h1::serve(stream, BytesMut::new(), &handler, &line, &env)).await;
                        }
                        Speaks::Http2 => {
                            Box::pin(h2::serve(stream, BytesMut::new(), handler, line, env)).await;
                        }
                    }
                    count.set(count.get() - 1);
                });
            }
        });
        Self { address, runtime, local, env, registry, open }
    }

    /// Serves until a condition is met.
    pub(crate) fn run_until(&self, mut condition: impl FnMut() -> bool) {
        let wait = async {
            while !condition() {
                self.env.tick();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let wait = async { tokio::time::timeout(PATIENCE, wait).await };
        self.local.block_on(&self.runtime, wait).expect("the condition comes true");
    }

    /// Serves until a figure is stable.
    pub(crate) fn run_until_still(&self, figure: impl Fn() -> usize) {
        let (mut last, mut looks) = (figure(), 0);
        self.run_until(|| {
            let now = figure();
            looks = if now == last { looks + 1 } else { 0 };
            last = now;
            looks == STILL
        });
    }

    /// Serves until no client is left, applying the deadlines of those that wait.
    pub(crate) fn run_until_idle(&self) {
        self.run_until(|| {
            self.registry.expire(Instant::now() + Duration::from_secs(3600));
            self.open.get() == 0 && self.env.streams.is_empty()
        });
    }

    /// Closes connections to the app that have been idle for long.
    pub(crate) fn forget_idle(&self) {
        self.run_until(|| {
            self.env.upstreams.sweep(Instant::now() + Duration::from_secs(3600));
            self.env.upstreams.connections() == Default::default()
        });
        // Wakes the tasks that drive them.
        self.run_until_still(|| 0);
    }

    /// Requests of HTTP/2 clients.
    pub(crate) fn streams(&self) -> usize {
        self.env.streams.len()
    }
}

impl App {
    /// An HTTP/2 app that responds with this many bytes, or never.
    pub(crate) fn http2(answer: Option<usize>) -> Self {
        Self::start(move |stream, seen| async move {
            let mut builder = ::h2::server::Builder::new();
            builder.max_concurrent_streams(1000);
            let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
            let mut held = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                seen.requests.fetch_add(1, Ordering::Relaxed);
                let Some(length) = answer else {
                    held.push((request, respond));
                    continue;
                };
                let seen = seen.clone();
                tokio::spawn(async move {
                    let Ok(mut body) = respond.send_response(Response::new(()), false) else { return };
                    let mut left = length;
                    while left > 0 {
                        body.reserve_capacity(left);
                        let room = std::future::poll_fn(|context| body.poll_capacity(context)).await;
                        let Some(Ok(room)) = room else { return };
                        let piece = room.min(left);
                        left -= piece;
                        if body.send_data(vec![b'x'; piece].into(), left == 0).is_err() {
                            return;
                        }
                        seen.sent.fetch_add(piece, Ordering::Relaxed);
                    }
                });
            }
        })
    }

    /// An HTTP/1 app that responds to each request, which must arrive in one piece, with this many bytes, or never.
    pub(crate) fn http1(answer: Option<usize>) -> Self {
        Self::start(move |mut stream, seen| async move {
            let mut request = [0; 4096];
            while let Ok(1..) = stream.read(&mut request).await {
                seen.requests.fetch_add(1, Ordering::Relaxed);
                let Some(length) = answer else { continue };
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                if stream.write_all(head.as_bytes()).await.is_err() {
                    return;
                }
                let mut left = length;
                while left > 0 {
                    let Ok(count) = stream.write(&[b'x'; 16 * 1024][..left.min(16 * 1024)]).await else {
                        return;
                    };
                    left -= count;
                    seen.sent.fetch_add(count, Ordering::Relaxed);
                }
            }
        })
    }

    fn start<F>(serve: impl Fn(TcpStream, Arc<Seen>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let shared = seen.clone();
        let (ends, ended) = oneshot::channel::<()>();
        let serving = async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        };
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serving => {}
                    _ = ended => {}
                }
            });
        });
        Self { address, seen, _ends: ends }
    }

    /// Number of requests that it has received.
    pub(crate) fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::Relaxed)
    }

    /// See [`Seen::sent`].
    pub(crate) fn sent(&self) -> usize {
        self.seen.sent.load(Ordering::Relaxed)
    }
}

/// The handler of a client's connection; allows every request.
pub(crate) fn handler(
    peer: SocketAddr,
    local: SocketAddr,
    app: SocketAddr,
    protocol: AppProtocol,
    tls: bool,
) -> Handler {
    let transport = if tls {
        IngressTransport::Https { sni_hosts: vec![], client: ClientCheck::Skip }
    } else {
        IngressTransport::Http
    };
    let rule = ActiveIngressRule { sources: Sources::Any, transport };
    let port_policy = PortPolicy {
        protocol,
        services: vec![],
        mesh: MeshRule::Deny("closed".into()),
        ingress: vec![IngressRule {
            origin: ObjectRef::new("IngressBackend", "httpbin", "ingress"),
            backend: "httpbin/httpbin".into(),
            state: RuleState::Active(rule),
        }],
        rate_limits: vec![],
    };
    let policy = InboundPolicy {
        workload: "httpbin/httpbin-1".into(),
        identity: Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap(),
        locality: None,
        telemetry: Default::default(),
        external_authorization: None,
        egress: EgressMode::AllowAny,
        retries: Vec::new(),
        egress_proxies: Vec::new(),
        ports: BTreeMap::from([(local.port(), port_policy)]),
    };
    let (publisher, snapshots) = snapshot::channel();
    publisher.update(|snapshot| snapshot.policy = Some(policy.into()));
    let info = ConnectionInfo {
        peer,
        local,
        port: local.port(),
        app,
        terms: if tls { Terms::IngressTls } else { Terms::IngressPlaintext },
        tls,
        server_name: None,
        client: None,
        identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
        remote: Default::default(),
        accepted: SystemTime::now(),
    };
    Handler::inbound(Rc::new(Authorizer::new(Rc::new(info), snapshots)))
}
