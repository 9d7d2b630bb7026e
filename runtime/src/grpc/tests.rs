use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{ClientConfig, ServerConfig};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tonic::Code;

use super::*;
use crate::forward_proxy::ControlPlaneProxyOptions;
use crate::forward_proxy::tests::TestProxy;
use crate::metrics::Metrics;
use crate::test_ca::{Flaw, TestCa};
use crate::test_pki::{DAY, TestAuthority, bundle, identity};
use crate::tls;

const LONG: Duration = Duration::from_secs(60);

struct Server {
    root: TestAuthority,
    address: SocketAddr,
    tls: watch::Sender<Arc<ServerConfig>>,
    incoming: IncomingConnections,
}

impl Server {
    async fn start(max_connections: usize, handshake_timeout: Duration) -> Self {
        Self::with_limits(ConnectionLimits::of(max_connections), handshake_timeout).await
    }

    async fn with_limits(limits: ConnectionLimits, handshake_timeout: Duration) -> Self {
        Self::accepting(limits, handshake_timeout, |stream| stream).await
    }

    async fn accepting(
        limits: ConnectionLimits,
        handshake_timeout: Duration,
        configure: impl FnOnce(ServerStream) -> ServerStream,
    ) -> Self {
        tls::install_provider();
        let root = TestAuthority::root("root");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tls, configs) = watch::channel(server_tls(&root));
        let stream = ServerStream::new(listener, configs, limits, handshake_timeout);
        let incoming = configure(stream).start();
        Self { root, address, tls, incoming }
    }

    async fn connect(&self, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_from("127.0.0.1", config).await
    }

    async fn connect_from(
        &self,
        source: &str,
        config: Arc<ClientConfig>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
        let tcp = socket.connect(self.address).await?;
        TlsConnector::from(config).connect("localhost".try_into().unwrap(), tcp).await
    }

    fn client(&self, account: &str) -> Arc<ClientConfig> {
        let credentials = self.root.credentials(&identity(account));
        client_config(&self.root.bundle(), Some(&credentials)).unwrap()
    }

    async fn next(&mut self) -> AcceptedConnection {
        self.incoming.next().await.unwrap().unwrap()
    }
}

fn server_tls(root: &TestAuthority) -> Arc<ServerConfig> {
    server_config(&root.credentials(&identity("server")), &root.bundle(), ClientCertificates::Required)
        .unwrap()
}

async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // An alert, an end or a reset: each says that the server is done with it.
    let _ = stream.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn a_connection_carries_the_clients_address_and_certificates_and_its_bytes() {
    let mut server = Server::start(10, LONG).await;
    let credentials = server.root.credentials(&identity("cart"));
    let config = client_config(&server.root.bundle(), Some(&credentials)).unwrap();
    let mut client = server.connect(config).await.unwrap();
    let mut connection = server.next().await;
    assert_eq!(connection.peer().address, client.get_ref().0.local_addr().unwrap());
    assert_eq!(*connection.peer().certificates, credentials.chain);
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    client.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    connection.read_exact(&mut bytes).await.unwrap();
    connection.write_all(&bytes).await.unwrap();
    connection.flush().await.unwrap();
    client.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test]
async fn garbage_and_silent_clients_delay_no_other() {
    let mut server = Server::start(1000, LONG).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
        let mut garbage = TcpStream::connect(server.address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        closed(garbage).await;
    }
    let _client = server.connect(server.client("cart")).await.unwrap();
    server.next().await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_ends() {
    let server = Server::start(10, Duration::from_millis(10)).await;
    closed(TcpStream::connect(server.address).await.unwrap()).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_until_one_ends() {
    let mut server = Server::start(1, LONG).await;
    let _first_client = server.connect(server.client("cart")).await.unwrap();
    let first = server.next().await;
    closed(TcpStream::connect(server.address).await.unwrap()).await;
    assert!(server.connect(server.client("cart")).await.is_err());
    drop(first);
    let _second_client = server.connect(server.client("cart")).await.unwrap();
    server.next().await;
}

#[tokio::test]
async fn one_address_with_all_that_it_may_have_keeps_no_other_out() {
    let limits = ConnectionLimits { all: 100, per_address: 2 };
    let mut server = Server::with_limits(limits, LONG).await;
    let greedy = server.connect(server.client("cart")).await.unwrap();
    let first = server.next().await;
    // One that does not even begin its handshake counts as well.
    let silent = TcpStream::connect(server.address).await.unwrap();
    assert!(server.connect(server.client("cart")).await.is_err());
    let _other = server.connect_from("127.0.0.2", server.client("cart")).await.unwrap();
    assert_eq!(server.next().await.peer().address.ip().to_string(), "127.0.0.2");
    drop((greedy, first));
    let _again = server.connect(server.client("cart")).await.unwrap();
    drop(silent);
}

const INTAKE: IntakeLimits = IntakeLimits { per_connection: 8_000, per_address: 12_000, all: 100_000 };

#[tokio::test]
async fn a_handshake_that_sends_too_much_is_closed_and_counted_and_no_other() {
    let metrics = Metrics::new();
    let refused = RefusedConnections::register(&metrics);
    let limits = ConnectionLimits::of(10);
    let mut server =
        Server::accepting(limits, LONG, |stream| stream.with_intake(INTAKE).counted(refused)).await;
    // A ClientHello that says it has 64 KiB.
    let mut endless = TcpStream::connect(server.address).await.unwrap();
    let hello = [&[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff][..], &[0; 16_379]].concat();
    let _ = endless.write_all(&hello).await;
    closed(endless).await;
    let _client = server.connect(server.client("cart")).await.unwrap();
    server.next().await;
    let page = metrics.encode();
    let counted = "tidegate_grpc_connections_refused_total{limit=\"connection-bytes\"} 1";
    assert!(page.contains(counted), "{page}");
}

#[tokio::test]
async fn who_is_to_prove_itself_by_calls_is_counted_until_it_has() {
    let metrics = Metrics::new();
    let refused = RefusedConnections::register(&metrics);
    let limits = ConnectionLimits::of(10);
    let configure = |stream: ServerStream| stream.with_intake(INTAKE).proven_by_calls().counted(refused);
    let mut server = Server::accepting(limits, LONG, configure).await;
    let mut client = server.connect(server.client("cart")).await.unwrap();
    let mut connection = server.next().await;
    let mut bytes = [0; 6000];
    for _ in 0..3 {
        client.write_all(&bytes).await.unwrap();
        connection.read_exact(&mut bytes).await.unwrap();
        connection.peer().has_proven();
    }
    for expected in [true, false] {
        client.write_all(&bytes).await.unwrap();
        assert_eq!(connection.read_exact(&mut bytes).await.is_ok(), expected);
    }
    let counted = "tidegate_grpc_connections_refused_total{limit=\"connection-bytes\"} 1";
    assert!(metrics.encode().contains(counted));
    // What it has held is free again with its end.
    drop((client, connection));
    let _again = server.connect(server.client("cart")).await.unwrap();
    server.next().await;
}

#[tokio::test]
async fn clients_without_a_certificate_of_the_mesh_get_no_connection() {
    let mut server = Server::start(10, LONG).await;
    let stranger = TestAuthority::root("other").credentials(&identity("cart"));
    for credentials in [None, Some(&stranger)] {
        let config = client_config(&server.root.bundle(), credentials).unwrap();
        // A TLS 1.3 client learns of it with its first read.
        if let Ok(mut stream) = server.connect(config).await {
            assert!(stream.read_u8().await.is_err());
        }
    }
    let client = server.connect(server.client("cart")).await.unwrap();
    assert_eq!(server.next().await.peer().address, client.get_ref().0.local_addr().unwrap());
}

#[tokio::test]
async fn a_new_certificate_and_trust_bundle_hold_for_the_next_connection() {
    let mut server = Server::start(10, LONG).await;
    let new = TestAuthority::root("new");
    let mut old_client = server.connect(server.client("cart")).await.unwrap();
    let mut old_connection = server.next().await;
    server.tls.send_replace(server_tls(&new));
    assert!(
        server.connect(server.client("cart")).await.is_err(),
        "the old root does not know the new certificate"
    );
    let config = client_config(&new.bundle(), Some(&new.credentials(&identity("cart")))).unwrap();
    let _new_client = server.connect(config).await.unwrap();
    server.next().await;
    old_client.write_all(b"x").await.unwrap();
    assert_eq!(old_connection.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn dropping_the_stream_closes_the_listener() {
    let server = Server::start(10, LONG).await;
    let (address, waiting) = (server.address, TcpStream::connect(server.address).await.unwrap());
    drop(server);
    closed(waiting).await;
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

/// The test CA serves as the gRPC service: it refuses each call, after having noted who made it.
async fn refusing_service(root: Arc<TestAuthority>) -> TestCa {
    let ca = TestCa::start(root, identity("cart"), DAY, Arc::new(SystemTime::now)).await;
    ca.behaviour().flaw = Some(Flaw::Refuses);
    ca
}

async fn call(channel: tonic::transport::Channel) -> Code {
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    let request = IstioCertificateRequest { csr, ..Default::default() };
    IstioCertificateServiceClient::new(channel).create_certificate(request).await.unwrap_err().code()
}

#[tokio::test]
async fn a_channel_takes_the_newest_credentials_at_each_connect_and_survives_the_servers_restart() {
    let root = Arc::new(TestAuthority::root("root"));
    let mut service = refusing_service(root.clone()).await;
    let (tls, configs) = watch::channel(None);
    let address: Address = format!("https://{}", service.address).parse().unwrap();
    let channel =
        channel(&address, &ControlPlaneProxyOptions::default(), "localhost".try_into().unwrap(), move || {
            configs.borrow().clone()
        });
    assert_eq!(call(channel.clone()).await, Code::Unavailable, "no credentials yet");

    for account in ["cart", "checkout"] {
        let credentials = root.credentials(&identity(account));
        tls.send_replace(Some(client_config(&bundle(&[&root]), Some(&credentials)).unwrap()));
        // The first call after a restart may still find the connection that is gone.
        while call(channel.clone()).await != Code::PermissionDenied {}
        let peer = service.calls().pop().unwrap().peer.unwrap();
        assert_eq!(*peer.certificates, credentials.chain, "{account}");
        service.go_down().await;
        assert_ne!(call(channel.clone()).await, Code::PermissionDenied);
        service.come_back().await;
    }
}

#[tokio::test]
async fn a_channel_goes_through_the_control_plane_s_proxy_with_its_tls_end_to_end() {
    let root = Arc::new(TestAuthority::root("root"));
    let service = refusing_service(root.clone()).await;
    let mut squid = TestProxy::forwarding_to(service.address, None).await;
    let tls = client_config(&bundle(&[&root]), Some(&root.credentials(&identity("cart")))).unwrap();
    let proxy = ControlPlaneProxyOptions {
        control_plane_proxy: Some(format!("http://{}", squid.address).parse().unwrap()),
        control_plane_proxy_ca: None,
    };
    // A name that nothing here can resolve.
    let address: Address = "https://ca.outside.invalid:15012".parse().unwrap();
    let channel = channel(&address, &proxy, "localhost".try_into().unwrap(), move || Some(tls.clone()));
    assert_eq!(call(channel).await, Code::PermissionDenied);
    assert!(squid.head().await.starts_with("CONNECT ca.outside.invalid:15012 HTTP/1.1\r\n"));
    assert_eq!(service.calls().pop().unwrap().peer.unwrap().certificates.len(), 1);
}

#[test]
fn an_address_is_https_with_a_host_and_a_port_and_nothing_more() {
    for (text, shown) in [
        ("https://ca.mesh:8443", "https://ca.mesh:8443"),
        ("https://ca.mesh", "https://ca.mesh:443"),
        ("https://127.0.0.1:1/", "https://127.0.0.1:1"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://[::1]", "https://[::1]:443"),
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
    }
    for text in [
        "",
        "ca.mesh:8443",
        "http://ca.mesh:80",
        "https://",
        "https://:8443",
        "https://ca.mesh:",
        "https://ca.mesh:0",
        "https://ca.mesh:65536",
        "https://ca.mesh:x",
        "https://a@ca.mesh",
        "https://ca.mesh/path",
        "https://ca.mesh/?query",
        "https://ca mesh",
    ] {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
}
