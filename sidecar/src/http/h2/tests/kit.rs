//! A sidecar's codec in its own thread, policies, a client, and handwritten frames.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tidegate_core::policy::{
    ActiveIngressRule, AppProtocol, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule,
    PortPolicy, RuleState, Sources, Terms,
};
use tidegate_core::{EgressMode, Identity, ObjectRef, Principal};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use crate::authorizer::Authorizer;
use crate::connection_info::{ConnectionInfo, VerifiedCertificate};
use crate::http::HttpContext;
use crate::http::h2::{LocalExecutor, serve};
use crate::http::handler::Handler;
use crate::lifeline::{Lifeline, Registry};
use crate::limits::Limits;
use crate::snapshot::{self, Publisher};
use crate::telemetry::Telemetry;
use crate::upstream::DynBody;

const PORT: u16 = 14001;

/// Long enough for every test on a busy machine; no test waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// One sidecar, one app.
pub(super) struct Sidecar {
    pub(super) env: Rc<HttpContext>,
    pub(super) registry: Registry<()>,
    publisher: Publisher,
    snapshots: snapshot::Snapshots,
    app: SocketAddr,
    tls: bool,
    client: Option<Rc<VerifiedCertificate>>,
    peer: Cell<SocketAddr>,
}

/// A client's connection.
pub(super) struct Connection {
    pub(super) sender: SendRequest<DynBody>,
    pub(super) line: Lifeline,
    /// The sidecar's side.
    pub(super) server: JoinHandle<()>,
    /// The client's side: `Ok` if the sidecar closed gracefully.
    pub(super) client: JoinHandle<hyper::Result<()>>,
}

/// A client that writes frames itself.
pub(super) struct Raw {
    pub(super) stream: DuplexStream,
    pub(super) line: Lifeline,
    pub(super) server: JoinHandle<()>,
}

/// A frame as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) const DATA: u8 = 0x0;
pub(super) const HEADERS: u8 = 0x1;
pub(super) const RST_STREAM: u8 = 0x3;
pub(super) const SETTINGS: u8 = 0x4;
pub(super) const PING: u8 = 0x6;
pub(super) const GOAWAY: u8 = 0x7;
pub(super) const WINDOW_UPDATE: u8 = 0x8;
pub(super) const CONTINUATION: u8 = 0x9;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;

/// Runs a test on one thread, as a worker does.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        tokio::time::timeout(PATIENCE, test).await.expect("the test ends in time");
    }));
}

/// Waits for a condition; other tasks run meanwhile.
pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(super) fn full(bytes: impl Into<Bytes>) -> DynBody {
    Box::pin(Full::new(bytes.into()).map_err(|never| match never {}))
}

pub(super) fn get(path: &str) -> Request<DynBody> {
    Request::get(format!("http://app.example{path}")).body(full("")).unwrap()
}

pub(super) async fn text(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

impl Sidecar {
    /// A sidecar for TLS clients, and for an app that speaks this protocol.
    pub(super) fn new(app: SocketAddr, protocol: AppProtocol) -> Self {
        Self::with_limits(app, protocol, Limits::default())
    }

    pub(super) fn with_limits(app: SocketAddr, protocol: AppProtocol, limits: Limits) -> Self {
        Self::telling(app, protocol, limits, Telemetry::default())
    }

    /// One that records its requests with this telemetry.
    pub(super) fn telling(
        app: SocketAddr,
        protocol: AppProtocol,
        limits: Limits,
        telemetry: Telemetry,
    ) -> Self {
        let (publisher, snapshots) = snapshot::channel();
        let env = Rc::new(HttpContext::new(Rc::new(limits), Rc::new(telemetry), snapshots.clone()));
        let peer = Cell::new(SocketAddr::from(([192, 0, 2, 7], 4444)));
        let sidecar =
            Self { env, registry: Registry::new(), publisher, snapshots, app, tls: true, client: None, peer };
        sidecar.set_policy(protocol, ClientCheck::Skip);
        sidecar
    }

    /// Serves clients that speak plaintext HTTP/2.
    pub(super) fn plaintext(mut self) -> Self {
        self.tls = false;
        self.set_policy(AppProtocol::Http, ClientCheck::Skip);
        self
    }

    /// Serves clients with a certificate, whose element of `x-forwarded-client-cert` is this.
    pub(super) fn with_certificate(mut self, forwarded: &str) -> Self {
        let leaf = tidegate_core::PeerCertificate {
            serial: "01".to_owned(),
            sans: vec![],
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::now() + PATIENCE,
        };
        self.client = Some(Rc::new(VerifiedCertificate {
            leaf,
            chain: vec![],
            forwarded: forwarded.into(),
            names: "".into(),
        }));
        self
    }

    /// Makes further connections come from this host of 192.0.2.0/24.
    pub(super) fn set_host(&self, host: u8) {
        self.peer.set(SocketAddr::from(([192, 0, 2, host], 4444)));
    }

    /// Changes the policy: every client is allowed, or only a principal that no client has.
    pub(super) fn allow(&self, is_allowed: bool) {
        let no_client = ClientCheck::Principals([Principal::parse("stranger.nowhere.cluster.local")].into());
        self.set_policy(AppProtocol::Http, if is_allowed { ClientCheck::Skip } else { no_client });
    }

    fn set_policy(&self, protocol: AppProtocol, client: ClientCheck) {
        let transport = if self.tls {
            IngressTransport::Https { sni_hosts: vec![], client }
        } else {
            IngressTransport::Http
        };
        let rule = ActiveIngressRule { sources: Sources::Any, transport };
        let ingress = IngressRule {
            origin: ObjectRef::new("IngressBackend", "a", "b"),
            backend: "a/c".into(),
            state: RuleState::Active(rule),
        };
        let mesh = MeshRule::Deny("tests have no mesh".into());
        let port =
            PortPolicy { protocol, services: vec![], mesh, ingress: vec![ingress], rate_limits: vec![] };
        let policy = InboundPolicy {
            workload: "a/pod".into(),
            identity: Identity::from_spiffe_uri("spiffe://cluster.local/ns/a/sa/app").unwrap(),
            locality: None,
            telemetry: Default::default(),
            external_authorization: None,
            egress: EgressMode::AllowAny,
            retries: Vec::new(),
            egress_proxies: Vec::new(),
            ports: [(PORT, port)].into(),
        };
        self.publisher.update(|snapshot| snapshot.policy = Some(Arc::new(policy.clone())));
    }

    fn start(&self, first: &[u8]) -> (DuplexStream, Lifeline, JoinHandle<()>) {
        let info = ConnectionInfo {
            peer: self.peer.get(),
            local: "192.0.2.1:14001".parse().unwrap(),
            port: PORT,
            app: self.app,
            terms: if self.tls { Terms::IngressTls } else { Terms::IngressPlaintext },
            tls: self.tls,
            server_name: None,
            client: self.client.clone(),
            identity: "spiffe://cluster.local/ns/a/sa/app".into(),
            remote: Default::default(),
            accepted: SystemTime::now(),
        };
        let authorizer = Rc::new(Authorizer::new(Rc::new(info), self.snapshots.clone()));
        let handler = Handler::inbound(authorizer);
        let line = self.registry.add(Rc::new(()));
        let (ours, theirs) = duplex(64 * 1024);
        let served = serve(theirs, BytesMut::from(first), handler, line.clone(), self.env.clone());
        (ours, line, tokio::task::spawn_local(served))
    }

    /// A client's connection, made by hyper.
    pub(super) async fn connect(&self) -> Connection {
        self.connect_with(|builder| builder).await
    }

    /// The same, with changes to the client.
    pub(super) async fn connect_with(
        &self,
        set_up: impl FnOnce(&mut Builder<LocalExecutor>) -> &mut Builder<LocalExecutor>,
    ) -> Connection {
        let (stream, line, server) = self.start(&[]);
        let mut builder = Builder::new(LocalExecutor);
        let (sender, connection) = set_up(&mut builder).handshake(TokioIo::new(stream)).await.unwrap();
        Connection { sender, line, server, client: tokio::task::spawn_local(connection) }
    }

    /// A client's connection with handwritten frames, after its preface.
    pub(super) async fn connect_raw(&self) -> Raw {
        let (stream, line, server) = self.start(&[]);
        let mut raw = Raw { stream, line, server };
        raw.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        raw.send(SETTINGS, 0, 0, &[]).await.unwrap();
        raw
    }

    /// A client of which these bytes were already read.
    pub(super) fn connect_after(&self, first: &[u8]) -> Raw {
        let (stream, line, server) = self.start(first);
        Raw { stream, line, server }
    }

    /// A client that sends nothing.
    pub(super) fn connect_silent(&self) -> Raw {
        self.connect_after(&[])
    }

    /// Applies deadlines as if this much time had passed.
    pub(super) fn expire_after(&self, time: Duration) {
        self.registry.expire(Instant::now() + time);
        self.env.streams.expire(Instant::now() + time);
    }
}

impl Connection {
    pub(super) async fn send(&mut self, request: Request<DynBody>) -> hyper::Result<Response<Incoming>> {
        self.sender.send_request(request).await
    }

    pub(super) async fn get(&mut self, path: &str) -> (u16, String) {
        text(self.send(get(path)).await.unwrap()).await
    }
}

impl Raw {
    /// Writes one frame; fails once the sidecar has closed the connection.
    pub(super) async fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        self.stream.write_all(&encode(kind, flags, stream, payload)).await
    }

    /// Opens a stream with these fields, and ends it.
    pub(super) async fn request(&mut self, stream: u32, fields: &[(&str, &str)]) -> std::io::Result<()> {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields)).await
    }

    /// Opens a stream with these fields, without ending it.
    pub(super) async fn open(&mut self, stream: u32, fields: &[(&str, &str)]) -> std::io::Result<()> {
        self.send(HEADERS, END_HEADERS, stream, &block(fields)).await
    }

    /// The next frame; `None` once the sidecar has closed the connection.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.stream.read_exact(&mut header).await.ok()?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        Some(Frame { kind: header[3], flags: header[4], stream, payload })
    }

    /// The first frame that matches; `None` if the sidecar closed the connection without it.
    pub(super) async fn find(&mut self, mut is_it: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if is_it(&frame) {
                return Some(frame);
            }
        }
    }
}

/// The bytes of a frame, RFC 9113 §4.1.
pub(super) fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Literal fields without indexing or Huffman, RFC 7541 §6.2.2.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(0x00, name.as_bytes(), value.as_bytes())).collect()
}

/// A literal field with indexing, RFC 7541 §6.2.1.
pub(super) fn indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    literal(0x40, name, value)
}

/// A literal field of this kind: 0x00 leaves the dynamic table unchanged.
pub(super) fn literal(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![kind];
    for text in [name, value] {
        string_length(&mut field, text.len());
        field.extend_from_slice(text);
    }
    field
}

/// RFC 7541 §5.1, with a prefix of seven bits.
fn string_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else { return block.push(u8::try_from(length).unwrap()) };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The same with another method.
pub(super) const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "https"), (":authority", "app.example"), (":path", "/")];
/// The fields of every request.
pub(super) const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "app.example"), (":path", "/")];
