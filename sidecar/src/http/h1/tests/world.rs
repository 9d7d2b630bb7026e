//! A connection of the sidecar between a client and an app that the test plays.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tidegate_core::policy::{
    ActiveIngressRule, AppProtocol, InboundPolicy, IngressRule, IngressTransport, MeshRule, PortPolicy,
    RuleState, Sources, Terms,
};
use tidegate_core::{CidrSet, EgressMode, Identity, ObjectRef, TrustDomain};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use crate::authorizer::Authorizer;
use crate::connection_info::{ConnectionInfo, VerifiedCertificate};
use crate::http::handler::Handler;
use crate::http::{HttpContext, h1};
use crate::lifeline::{Lifeline, Registry};
use crate::limits::Limits;
use crate::snapshot::{self, Publisher};
use crate::stream::Abort;
use crate::telemetry::Telemetry;

pub(super) const PORT: u16 = 14001;

pub(super) struct World {
    pub(super) env: Rc<HttpContext>,
    pub(super) lines: Registry<()>,
    pub(super) line: Lifeline,
    pub(super) app: App,
    pub(super) client: Option<Rc<VerifiedCertificate>>,
    pub(super) protocol: Cell<AppProtocol>,
    publisher: Publisher,
    snapshots: snapshot::Snapshots,
    tls: bool,
}

pub(super) struct App {
    pub(super) address: SocketAddr,
    listener: Option<TcpListener>,
    /// The bytes that each connection has seen.
    seen: Rc<RefCell<Vec<Vec<u8>>>>,
}

/// Runs a test whose tasks all run on its own thread. A test that hangs fails.
pub(super) async fn local(test: impl Future<Output = ()>) {
    let tasks = LocalSet::new();
    let test = tasks.run_until(test);
    tokio::time::timeout(Duration::from_secs(30), Box::pin(test)).await.expect("the test hangs");
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(super) async fn with(limits: Limits) -> Self {
        Self::telling(limits, Telemetry::default()).await
    }

    pub(super) async fn telling(limits: Limits, telemetry: Telemetry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app =
            App { address: listener.local_addr().unwrap(), listener: Some(listener), seen: Rc::default() };
        let (publisher, snapshots) = snapshot::channel();
        let lines = Registry::new();
        let line = lines.add(Rc::new(()));
        let env = Rc::new(HttpContext::new(Rc::new(limits), Rc::new(telemetry), snapshots.clone()));
        let protocol = Cell::new(AppProtocol::Http);
        let world = Self { env, lines, line, app, client: None, protocol, publisher, snapshots, tls: false };
        world.allow(Sources::Any);
        world
    }

    /// Allows clients from these addresses; the test's is 10.0.0.7.
    pub(super) fn allow(&self, sources: Sources) {
        let rule = ActiveIngressRule { sources, transport: IngressTransport::Http };
        let port = PortPolicy {
            protocol: self.protocol.get(),
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
            ports: BTreeMap::from([(PORT, port)]),
        };
        self.publisher.update(|snapshot| snapshot.policy = Some(policy.into()));
    }

    /// Refuses the test's client.
    pub(super) fn deny(&self) {
        self.allow(Sources::Ranges(CidrSet::parse(["192.0.2.0/24"]).unwrap()));
    }

    pub(super) fn handler(&self) -> Handler {
        let info = ConnectionInfo {
            peer: "10.0.0.7:4321".parse().unwrap(),
            local: "10.0.0.1:14001".parse().unwrap(),
            port: PORT,
            app: self.app.address,
            terms: Terms::IngressPlaintext,
            tls: self.tls,
            server_name: None,
            client: self.client.clone(),
            identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
            remote: Default::default(),
            accepted: SystemTime::now(),
        };
        Handler::inbound(Rc::new(Authorizer::new(Rc::new(info), self.snapshots.clone())))
    }

    /// A client's end of a new connection.
    pub(super) fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (handler, line, env) = (self.handler(), self.line.clone(), self.env.clone());
        tokio::task::spawn_local(async move {
            h1::serve(far, BytesMut::new(), &handler, &line, &env).await;
        });
        near
    }

    /// A client's end of a new connection over TCP, which can end by RST.
    pub(super) async fn dial(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let (handler, line, env) = (self.handler(), self.line.clone(), self.env.clone());
        tokio::task::spawn_local(async move {
            h1::serve(far, BytesMut::new(), &handler, &line, &env).await;
        });
        near
    }

    /// Everything that a client receives for these bytes, after which it half-closes.
    pub(super) async fn answers(&self, input: &[u8]) -> Vec<u8> {
        let mut client = self.connect();
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    }
}

impl App {
    /// The next connection, on which the test plays the app.
    pub(super) async fn accept(&self) -> TcpStream {
        self.listener.as_ref().unwrap().accept().await.unwrap().0
    }

    /// The listener, for a test that plays the app on all connections.
    pub(super) fn take_listener(&mut self) -> TcpListener {
        self.listener.take().unwrap()
    }

    /// Stops listening.
    pub(super) fn stop(&mut self) {
        self.listener = None;
    }

    /// Responds to every request on every connection with these bytes, and records what it receives.
    pub(super) fn answer(&mut self, answer: &'static [u8]) {
        let listener = self.listener.take().unwrap();
        let seen = self.seen.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, place) = (seen.clone(), seen.borrow().len());
                seen.borrow_mut().push(Vec::new());
                tokio::task::spawn_local(async move {
                    let mut answered = 0;
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                        seen.borrow_mut()[place].extend_from_slice(&bytes[..count]);
                        loop {
                            let next = requests_end(&seen.borrow()[place][answered..]);
                            let Some(length) = next else { break };
                            answered += length;
                            if stream.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
    }

    /// The bytes that all connections have received, in order.
    pub(super) fn seen(&self) -> Vec<u8> {
        self.seen.borrow().concat()
    }

    /// Number of connections so far.
    pub(super) fn connections(&self) -> usize {
        self.seen.borrow().len()
    }
}

/// Ends a connection by RST.
pub(super) fn reset(stream: TcpStream) {
    stream.abort();
}

/// Reads up to and including this text.
pub(super) async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => panic!("ended after {:?}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8(text).unwrap()
}

/// Reads the head of a request or response.
pub(super) async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    read_until(stream, "\r\n\r\n").await
}

/// Reads until the stream ends.
pub(super) async fn read_rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset ends it too.
    let _ = stream.read_to_end(&mut rest).await;
    rest
}

/// Removes the fields that the sidecar adds to every request.
pub(super) fn own_fields(head: &str) -> String {
    let is_ours = |line: &str| line.starts_with("x-forwarded-") || line.starts_with("x-request-id");
    head.split_inclusive("\r\n").filter(|line| !is_ours(line)).collect()
}

/// The length of the first request in these bytes, if it is complete.
fn requests_end(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    if text.contains("\r\ntransfer-encoding: chunked\r\n") {
        let last = bytes[head - 2..].windows(5).position(|line| line == b"\r\n0\r\n")? + head + 1;
        let end = bytes[last..].windows(4).position(|end| end == b"\r\n\r\n")?;
        return Some(last + end + 4);
    }
    let length = text
        .split("\r\ncontent-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
    (bytes.len() >= head + length).then_some(head + length)
}
