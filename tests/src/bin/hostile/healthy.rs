//! Healthy clients: each target has its own, which makes a request at a time and must not notice an attack.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tidegate_proto::ResourceName;
use tidegate_proto::discovery::discovery_request::Message;
use tidegate_proto::discovery::{Ack, Subscribe, Unsubscribe};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Client, Connection};
use tidegate_tests::webhook;
use tokio::runtime::Runtime;

use crate::grpc::{self, DiscoveryStream};
use crate::site::{HostileSite, second};

/// Requests on a connection.
const PER_CONNECTION: usize = 20;
/// How long an answer of the control plane may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long kubelet waits for an answer to a probe by default.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Identities of one client of the CA, as of a node's agent: each gets ten certificates a second.
const IDENTITIES: usize = 64;

/// A client that makes one request after the other.
pub(crate) trait Healthy: Send {
    /// Whether the request was answered as it must be.
    fn request(&mut self) -> bool;
}

/// The ingress controller, over mutual TLS.
struct Ingress {
    client: Client,
    open: Option<(Connection, usize)>,
}

/// kubelet: a connection for each probe.
struct Prober(Client);

/// Gets certificates.
struct Certified {
    runtime: Runtime,
    client: Client,
    open: Option<(H2Connection, usize)>,
    tokens: Vec<String>,
    body: Vec<u8>,
    asked: usize,
}

/// A sidecar that asks for one destination after the other.
struct SubscribingSidecar {
    runtime: Runtime,
    client: Client,
    workload: String,
    open: Option<(H2Connection, DiscoveryStream)>,
    asked: u32,
}

/// The API server, which asks about a Pod.
struct AdmittingApiServer {
    client: Client,
    open: Option<(Connection, usize)>,
}

/// The sidecar's client. Of each kind there may be several, which are told apart by their number.
pub(crate) fn ingress(site: &HostileSite, _: usize) -> Box<dyn Healthy> {
    Box::new(Ingress { client: site.ingress(), open: None })
}

/// kubelet, which probes the sidecar; each probe is a new connection and must be answered within [`PROBE_TIMEOUT`].
pub(crate) fn prober(site: &HostileSite, _: usize) -> Box<dyn Healthy> {
    Box::new(Prober(site.prober()))
}

/// A client of the CA with [`IDENTITIES`] tokens of its own, whose identities include `number`.
pub(crate) fn certified(site: &HostileSite, number: usize) -> Box<dyn Healthy> {
    let mut csr = CertificateParams::default();
    csr.distinguished_name = DistinguishedName::new();
    let csr = csr.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let request = IstioCertificateRequest { csr, validity_duration: 3600, metadata: None };
    let token = |identity| site.mesh.token_key.token("httpbin", &format!("healthy-{number}-{identity}"));
    Box::new(Certified {
        runtime: runtime(),
        client: site.ca(),
        open: None,
        tokens: (0..IDENTITIES).map(token).collect(),
        body: grpc::frame(&request),
        asked: 0,
    })
}

/// The sidecar of a second Pod, which subscribes to a new address with each request and unsubscribes after the
/// answer.
pub(crate) fn resolver(site: &HostileSite, number: usize) -> Box<dyn Healthy> {
    let workload = second(number);
    let client = site.controller(&workload);
    Box::new(SubscribingSidecar { runtime: runtime(), client, workload, open: None, asked: 0 })
}

/// The API server, which sends admission reviews to the injector.
pub(crate) fn reviewed(site: &HostileSite, _: usize) -> Box<dyn Healthy> {
    Box::new(AdmittingApiServer { client: site.webhook(), open: None })
}

/// A runtime on the client's own thread, so that it runs on the processor that the client was given.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// One more request on the connection that is open, or on a new one. It stays open if the request says so.
fn on_connection(
    client: &Client,
    open: &mut Option<(Connection, usize)>,
    request: impl FnOnce(&mut Connection) -> bool,
) -> bool {
    let connection = match open.take() {
        Some((connection, count)) if count < PER_CONNECTION => Ok((connection, count)),
        _ => client.connect().map(|connection| (connection, 0)),
    };
    let Ok((mut connection, count)) = connection else { return false };
    let is_answered = request(&mut connection);
    if is_answered {
        *open = Some((connection, count + 1));
    }
    is_answered
}

impl Healthy for Ingress {
    fn request(&mut self) -> bool {
        on_connection(&self.client, &mut self.open, |connection| {
            connection.get("/get").is_ok_and(|answer| answer.status() == 200)
        })
    }
}

impl Healthy for Prober {
    fn request(&mut self) -> bool {
        let begun = Instant::now();
        let answer = self.0.connect().and_then(|mut connection| connection.get("/probe"));
        answer.is_ok_and(|answer| answer.status() == 200) && begun.elapsed() < PROBE_TIMEOUT
    }
}

impl Healthy for AdmittingApiServer {
    fn request(&mut self) -> bool {
        let pod = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"a"}]}}"#;
        on_connection(&self.client, &mut self.open, |connection| {
            webhook::ask_on(connection, pod).is_ok_and(|answer| answer["patchType"] == "JSONPatch")
        })
    }
}

impl Healthy for Certified {
    fn request(&mut self) -> bool {
        let Self { runtime, client, open, tokens, body, asked } = self;
        let token = &tokens[*asked % tokens.len()];
        *asked += 1;
        let asking = async {
            let (connection, count) = match open.take() {
                Some((connection, count)) if count < PER_CONNECTION => (connection, count),
                _ => (H2Connection::open(client).await.ok()?, 0),
            };
            let is_issued =
                grpc::create_certificate(&connection, client.target, Some(token), body).await.ok()?;
            *open = Some((connection, count + 1));
            is_issued.then_some(())
        };
        within(runtime, asking)
    }
}

impl Healthy for SubscribingSidecar {
    fn request(&mut self) -> bool {
        let Self { runtime, client, workload, open, asked } = self;
        *asked = asked.wrapping_add(1);
        let [_, b, c, d] = asked.to_be_bytes();
        let address = SocketAddr::from((Ipv4Addr::new(11, b, c, d), 80));
        let name = ResourceName::Destination(address.into()).to_string();
        let asking = async {
            let (connection, mut stream) = match open.take() {
                Some(open) => open,
                None => {
                    let connection = H2Connection::open(client).await.ok()?;
                    let workload = format!("httpbin/{workload}");
                    let opened = DiscoveryStream::open(&connection, client.target, &workload).await;
                    (connection, opened.ok()?.0)
                }
            };
            stream.say(Message::Subscribe(Subscribe { names: vec![name.clone()] })).await.ok()?;
            loop {
                let response = stream.next().await.ok()??;
                let ack = Ack { nonce: response.nonce, ..Ack::default() };
                stream.say(Message::Ack(ack)).await.ok()?;
                if response.resources.iter().any(|resource| resource.name == name) {
                    break;
                }
            }
            stream.say(Message::Unsubscribe(Unsubscribe { names: vec![name] })).await.ok()?;
            *open = Some((connection, stream));
            Some(())
        };
        within(runtime, asking)
    }
}

/// Whether it returned a result in time.
fn within(runtime: &Runtime, asking: impl Future<Output = Option<()>>) -> bool {
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, asking).await.is_ok_and(|outcome| outcome.is_some())
    })
}
