//! Two sidecars on loopback: the client's way out to the server's way in.

mod app;
mod by_host;
mod detection;
mod differential;
mod endings;
mod http;
mod interim;
mod limits;
mod mirrors;
mod proxied;
mod proxied_edges;
mod retries;
mod routes;
mod silence;
mod traces;
mod unregistered;

use std::time::{Duration, Instant};

use tidegate_core::backend::{Backend, BackendProtocol, BackendRef, Endpoint, Transport};
use tidegate_core::policy::AppProtocol;
use tidegate_core::{Destination, EgressMode, Identity, ObjectRef, TrustDomain};
use tidegate_proto::ResourceName;
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::destinations::{ANSWER_TIMEOUT, Destinations, Resource};
use crate::http::HttpContext;
use crate::limits::Limits;
use crate::listener::{FixedOutbound, Listener};
use crate::snapshot::{Publisher, channel};
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::DataPlaneMetrics;
use crate::test_mesh::{Mesh, Port, start_app, until};
use crate::test_pki::{Authority, Leaf};
use crate::tls::{PeerTls, ServerTls};
use crate::worker::{RunningWorkers, Workers, WorkersConfig};

const PATIENCE: Duration = Duration::from_secs(20);

/// The sidecar of workload `shop/client`, with one way out.
struct Client {
    destinations: Arc<Destinations>,
    publisher: Publisher,
    workers: RunningWorkers,
    metrics: DataPlaneMetrics,
    dialled: SocketAddr,
}

impl Client {
    fn to(dialled: SocketAddr, limits: Limits) -> Self {
        let metrics = DataPlaneMetrics::default();
        let counted = metrics.clone();
        let telemetry = move || Telemetry::new(&counted, None);
        Self { metrics, ..Self::telling(dialled, limits, Arc::new(telemetry)) }
    }

    /// One whose worker records what it does with this telemetry.
    fn telling(
        dialled: SocketAddr,
        limits: Limits,
        telemetry: Arc<dyn Fn() -> Telemetry + Send + Sync>,
    ) -> Self {
        let (publisher, snapshots) = channel();
        let destinations = Arc::new(Destinations::default());
        destinations.connect();
        destinations.set_egress(EgressMode::AllowAny, &[]);
        let outbound = FixedOutbound { address: "127.0.0.1:0".parse().unwrap(), destination: dialled };
        let workers = Workers::start(WorkersConfig {
            count: 1,
            listeners: vec![Listener::FixedOutbound(outbound)],
            limits,
            snapshots,
            destinations: destinations.clone(),
            http_context: Arc::new(move |limits, snapshots| {
                Rc::new(HttpContext::new(limits, Rc::new(telemetry()), snapshots))
            }),
        })
        .unwrap();
        Self { destinations, publisher, workers, metrics: DataPlaneMetrics::default(), dialled }
    }

    /// A client of a mesh whose sidecar has a certificate but no answers from the controller yet.
    fn of(root: &Authority) -> Self {
        let client = Self::to("10.96.0.10:80".parse().unwrap(), Limits::default());
        client.show(root, &root.workload("shop", "client"));
        client
    }

    fn show(&self, root: &Authority, leaf: &Leaf) {
        let tls = PeerTls::new(&leaf.credentials(), root.bundle()).unwrap();
        self.publisher.update(|snapshot| snapshot.peer_tls = Some(Arc::new(tls)));
    }

    /// The controller's answer, whether or not the sidecar has requested it yet.
    fn learn(&self, answer: Answer) {
        self.destinations.look_up(&self.dialled.into());
        self.answer(answer);
    }

    fn answer(&self, answer: Answer) {
        let set = |name: &ResourceName, resource| {
            self.destinations.set(name, "1".into(), resource, 100).unwrap();
        };
        let dialled = ResourceName::Destination(self.dialled.into());
        match answer {
            Answer::Destination(destination) => set(&dialled, Resource::Destination(destination)),
            Answer::Service(protocol, backend) => {
                let destination = Destination::backend(protocol, backend.name.clone());
                set(&dialled, Resource::Destination(destination));
                set(&ResourceName::Backend(backend.name.clone()), Resource::Backend(*backend));
            }
        }
        self.destinations.settle(true);
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.workers.addresses()[0]).await.unwrap()
    }

    /// Says hello, and what comes back until the end.
    async fn echo(&self) -> std::io::Result<Vec<u8>> {
        // It may be over before the socket is looked at for the first time.
        let mut io = TcpStream::connect(self.workers.addresses()[0]).await?;
        io.write_all(b"hello").await?;
        io.shutdown().await?;
        let mut received = Vec::new();
        tokio::time::timeout(PATIENCE, io.read_to_end(&mut received)).await.expect("no end")?;
        Ok(received)
    }
}

fn identity(account: &str) -> Option<Identity> {
    Some(Identity::new(TrustDomain::default(), "shop", account).unwrap())
}

/// What stands behind the address.
enum Answer {
    Destination(Destination),
    Service(AppProtocol, Box<Backend>),
}

fn service(endpoints: &[(SocketAddr, Option<Identity>)]) -> Answer {
    service_of(AppProtocol::Tcp, BackendProtocol::Tcp, endpoints)
}

/// A service whose connections carry a protocol, and whose endpoints speak one.
fn service_of(
    carried: AppProtocol,
    protocol: BackendProtocol,
    endpoints: &[(SocketAddr, Option<Identity>)],
) -> Answer {
    let endpoint = |(address, identity): &(SocketAddr, Option<Identity>)| {
        let transport = identity.clone().map_or(Transport::Plain, Transport::Mesh);
        Endpoint::new(*address, transport)
    };
    let name = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 };
    let backend = Backend::new(name, protocol, endpoints.iter().map(endpoint).collect());
    Answer::Service(carried, Box::new(backend))
}

/// A server's sidecar that runs as `shop/cart`.
async fn server() -> Mesh {
    server_before(start_app().await)
}

/// One in front of this app.
fn server_before(app: SocketAddr) -> Mesh {
    let mesh = Mesh::before(app, 1, Limits::default());
    be(&mesh, &mesh.root.workload("shop", "cart"));
    mesh
}

fn be(mesh: &Mesh, leaf: &Leaf) {
    let tls = ServerTls::new(leaf.credentials(), mesh.root.bundle()).unwrap();
    mesh.publisher.update(|snapshot| snapshot.tls = Some(Arc::new(tls)));
}

/// An address on which no server listens.
async fn closed_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_meshed_endpoint_is_reached_over_mutual_tls_with_half_closes_and_much_data() {
    let server = server().await;
    let client = Client::of(&server.root);
    client.learn(service(&[(server.address(Port::Mesh), identity("cart"))]));
    assert_eq!(client.echo().await.unwrap(), b"hellobye");

    let mut io = client.dial().await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut reader, mut writer) = io.split();
    let mut received = Vec::new();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    assert_eq!(received.split_off(sent.len()), b"bye");
    assert!(received == sent);
    server.connections(0).await;
    until(|| client.workers.connections() == 0).await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_not_waited_for() {
    let server = server().await;
    let client = Client::of(&server.root);
    client.learn(service(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    let mut greeting = [0; 11];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
}

#[tokio::test]
async fn a_server_other_than_the_expected_workload_gets_no_byte() {
    let server = server().await;
    let client = Client::of(&server.root);
    let address = server.address(Port::Mesh);
    client.learn(service(&[(address, identity("cart"))]));
    let foreign = Authority::root("foreign");
    for impostor in [
        server.root.workload("shop", "other"),
        server.root.workload("elsewhere", "cart"),
        // A DNS name, as in the ingress controller's certificate, does not identify a workload.
        server.root.named("cart.shop.cluster.local"),
        foreign.workload("shop", "cart"),
    ] {
        be(&server, &impostor);
        assert!(client.echo().await.is_err());
    }
    be(&server, &server.root.workload("shop", "cart"));
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
}

#[tokio::test]
async fn a_tls_server_other_than_a_sidecar_gets_no_byte() {
    let root = Authority::root("root");
    let client = Client::of(&root);
    let leaf = root.workload("shop", "cart");
    let config = rustls::ServerConfig::builder_with_provider(tidegate_runtime::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(leaf.chain.clone(), leaf.private_key())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    client.learn(service(&[(listener.local_addr().unwrap(), identity("cart"))]));
    let serve = async {
        let (io, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(io).await else { return Vec::new() };
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received).await;
        received
    };
    let (echo, received) = tokio::join!(client.echo(), serve);
    assert!(echo.is_err());
    assert_eq!(received, b"");
}

#[tokio::test]
async fn an_endpoint_that_is_gone_costs_nothing_while_there_is_another() {
    let server = server().await;
    let client = Client::of(&server.root);
    let gone: Vec<_> =
        [closed_address().await, closed_address().await].map(|address| (address, identity("cart"))).into();
    let good = (server.address(Port::Mesh), identity("cart"));
    client.learn(service(&[gone[0].clone(), good, gone[1].clone()]));
    for _ in 0..20 {
        assert_eq!(client.echo().await.unwrap(), b"hellobye");
    }
    client.learn(service(&gone));
    assert!(client.echo().await.is_err(), "no server listens");
    client.learn(service(&[]));
    assert!(client.echo().await.is_err());
}

#[tokio::test]
async fn destinations_outside_the_mesh_are_dialled_directly() {
    let app = start_app().await;
    let client = Client::to(app, Limits::default());
    client.learn(Answer::Destination(Destination::Passthrough));
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
    // Nor is an endpoint without a sidecar beside those of the mesh.
    let client = Client::of(&Authority::root("root"));
    client.learn(service(&[(app, None)]));
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
}

#[tokio::test]
async fn the_first_connection_waits_for_the_controller_s_answer() {
    let server = server().await;
    let client = Client::of(&server.root);
    let (echo, ()) = tokio::join!(client.echo(), async {
        let subscriptions = client.destinations.subscriptions().await;
        assert_eq!(subscriptions.wanted, [ResourceName::Destination(client.dialled.into())]);
        client.answer(service(&[(server.address(Port::Mesh), identity("cart"))]));
    });
    assert_eq!(echo.unwrap(), b"hellobye");
}

#[tokio::test]
async fn without_a_controller_the_unknown_is_dialled_as_it_is_and_a_sidecar_there_refuses_it() {
    let app = start_app().await;
    let client = Client::to(app, Limits::default());
    client.destinations.disconnect();
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
    let start = Instant::now();
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
    assert!(start.elapsed() < ANSWER_TIMEOUT, "only the first one waits");

    let server = server().await;
    let client = Client::to(server.address(Port::Mesh), Limits::default());
    client.destinations.disconnect();
    assert!(client.echo().await.is_err());
}

async fn echo_byte(io: &mut TcpStream) {
    io.write_all(b"a").await.unwrap();
    assert_eq!(io.read_u8().await.unwrap(), b'a');
}

#[tokio::test]
async fn an_open_connection_outlives_the_certificates_of_both_sides_and_ends_with_the_server_s_root() {
    let server = server().await;
    let end = SystemTime::now() + Duration::from_secs(2);
    be(&server, &server.root.workload_until("shop", "cart", end));
    let client = Client::of(&server.root);
    client.show(&server.root, &server.root.workload_until("shop", "client", end));
    client.learn(service(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut open = client.dial().await;
    while SystemTime::now() < end + Duration::from_secs(2) {
        echo_byte(&mut open).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(client.echo().await.is_err(), "the certificates have ended for every new connection");
    be(&server, &server.root.workload("shop", "cart"));
    client.show(&server.root, &server.root.workload("shop", "client"));
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
    echo_byte(&mut open).await;

    let foreign = Authority::root("foreign");
    let start = Instant::now();
    client.show(&foreign, &foreign.workload("shop", "client"));
    let read = tokio::time::timeout(PATIENCE, open.read_u8()).await.expect("the connection stays open");
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(client.echo().await.is_err(), "the server is not trusted any more");
    server.connections(0).await;
}

#[tokio::test]
async fn a_change_of_the_bundle_spares_what_is_plain_and_what_a_root_of_it_still_vouches_for() {
    let (server, app) = (server().await, start_app().await);
    let client = Client::of(&server.root);
    client.learn(service(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut meshed = client.dial().await;
    echo_byte(&mut meshed).await;
    client.learn(service(&[(app, None)]));
    let mut plain = client.dial().await;
    echo_byte(&mut plain).await;
    let foreign = Authority::root("foreign");
    let both = [&server.root, &foreign].map(|root| root.bundle().roots()[0].clone());
    let both = Arc::new(TrustBundle::from_certificates(both).unwrap());
    let tls = PeerTls::new(&server.root.workload("shop", "client").credentials(), both).unwrap();
    client.publisher.update(|snapshot| snapshot.peer_tls = Some(Arc::new(tls)));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        echo_byte(&mut meshed).await;
    }
    client.show(&foreign, &foreign.workload("shop", "client"));
    assert!(
        tokio::time::timeout(PATIENCE, meshed.read_u8()).await.expect("the connection stays open").is_err()
    );
    echo_byte(&mut plain).await;
}

#[tokio::test]
async fn a_connection_outlives_the_retirement_of_its_endpoint_s_root_but_not_its_revocation() {
    let server = server().await;
    let client = Client::of(&server.root);
    client.learn(service(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut open = client.dial().await;
    echo_byte(&mut open).await;
    let next = Authority::root("next");
    let show = |bundle| {
        let tls = PeerTls::new(&next.workload("shop", "client").credentials(), bundle).unwrap();
        client.publisher.update(|snapshot| snapshot.peer_tls = Some(Arc::new(tls)));
    };
    show(next.bundle_after(&server.root));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        echo_byte(&mut open).await;
    }
    assert!(client.echo().await.is_err(), "no new connection is verified by it");
    show(next.bundle());
    let read = tokio::time::timeout(PATIENCE, open.read_u8()).await.expect("the connection stays open");
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_drain_lets_the_app_s_connections_live_until_the_deadline() {
    let app = start_app().await;
    let client = Client::to(app, Limits::default());
    client.learn(Answer::Destination(Destination::Passthrough));
    let mut io = client.dial().await;
    io.write_all(b"a").await.unwrap();
    assert_eq!(io.read_u8().await.unwrap(), b'a');
    let address = client.workers.addresses()[0];
    let drain = tokio::spawn(client.workers.drain(PATIENCE));
    // New ones are still taken: what is in flight may need them.
    let mut another = TcpStream::connect(address).await.unwrap();
    for io in [&mut io, &mut another] {
        io.write_all(b"b").await.unwrap();
        assert_eq!(io.read_u8().await.unwrap(), b'b');
    }
    drop((io, another));
    assert_eq!(drain.await.unwrap(), tidegate_runtime::drain::DrainOutcome::Complete);
}

#[tokio::test]
async fn a_connection_without_a_byte_for_long_is_ended() {
    let app = start_app().await;
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let client = Client::to(app, limits);
    client.learn(Answer::Destination(Destination::Passthrough));
    let mut io = client.dial().await;
    io.write_all(b"a").await.unwrap();
    assert_eq!(io.read_u8().await.unwrap(), b'a');
    assert!(tokio::time::timeout(PATIENCE, io.read_u8()).await.expect("the connection stays open").is_err());
}
