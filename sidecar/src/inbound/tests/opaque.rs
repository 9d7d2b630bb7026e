use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use bytes::BytesMut;
use tidegate_core::policy::Terms;
use tokio::net::TcpListener;

use super::*;
use crate::authorizer::Authorizer;
use crate::connection_info::ConnectionInfo;
use crate::http::HttpContext;
use crate::lifeline::{Cause, Registry};
use crate::limits::Limits;
use crate::stream::{Abort, MaybeTls};
use crate::telemetry::Telemetry;
use crate::test_mesh::until;

#[tokio::test]
async fn bytes_pass_both_ways_and_each_half_closes_on_its_own() {
    let mesh = Mesh::start().await;
    let mut client = mesh.connect(Port::Tcp).await;
    let sent: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut reader, mut writer) = client.split();
    let mut received = Vec::new();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    assert_eq!(received.split_off(sent.len()), b"bye");
    assert!(received == sent);
    mesh.connections(0).await;
}

#[tokio::test]
async fn an_app_that_speaks_first_is_not_waited_for() {
    let mesh = Mesh::start().await;
    let mut client = mesh.connect(Port::ServerFirst).await;
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    client.write_all(b"ehlo").await.unwrap();
    let mut echo = [0; 4];
    client.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ehlo");
}

#[tokio::test]
async fn the_apps_own_tls_passes_as_it_is() {
    let mesh = Mesh::start().await;
    let mut client = mesh.connect(Port::Tcp).await;
    let config = client_config(&mesh.root.bundle(), None, &VERSIONS, &["h2"]);
    let name = ServerName::try_from(SERVER).unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    client.write_all(&hello).await.unwrap();
    let mut echo = vec![0; hello.len()];
    client.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, hello);
}

#[tokio::test]
async fn a_mesh_peer_gets_through_to_the_app_and_an_ingress_certificate_does_not() {
    let mesh = Mesh::start().await;
    let peer = mesh.root.workload("curl", "curl");
    let mut client = tls(&mesh, Port::Mesh, Some(&peer), &["tidegate/tcp"]).await.unwrap();
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"tidegate/tcp"[..]));
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"hellobye");

    let gateway = mesh.root.named(crate::test_pki::GATEWAY);
    let mut client = tls(&mesh, Port::Mesh, Some(&gateway), &["tidegate/tcp"]).await.unwrap();
    assert_eq!(end(&mut client).await, (End::Reset, vec![]));

    let old =
        tls_as(&mesh, Port::Mesh, Some(&peer), &[&rustls::version::TLS12], &["tidegate/tcp"], SERVER).await;
    assert!(old.unwrap_err().to_string().contains("ProtocolVersion"));
}

#[tokio::test]
async fn the_client_is_reset_if_the_app_does_not_listen() {
    let mesh = Mesh::start().await;
    let nobody = TcpStream::connect(mesh.app).await.unwrap().local_addr().unwrap();
    let target = crate::listener::InboundTarget {
        address: "127.0.0.1:0".parse().unwrap(),
        port: Port::Tcp as u16,
        app: nobody,
    };
    let (publisher, snapshots) = crate::snapshot::channel();
    publisher.update(|snapshot| *snapshot = (*mesh.publisher.current()).clone());
    let workers = crate::worker::Workers::start(crate::worker::WorkersConfig {
        count: 1,
        listeners: vec![crate::listener::Listener::Fixed(target)],
        limits: Limits::default(),
        snapshots,
        destinations: Default::default(),
        http_context: std::sync::Arc::new(|limits, snapshots| {
            Rc::new(HttpContext::new(limits, Default::default(), snapshots))
        }),
    })
    .unwrap();
    assert_eq!(end_after(workers.addresses()[0], b"hello").await, (End::Reset, vec![]));
}

/// An app that does not accept, with a full queue; it is there as long as its sockets are.
fn app_that_does_not_accept() -> (SocketAddr, Vec<socket2::Socket>) {
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let app = socket();
    app.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    app.listen(0).unwrap();
    let address = app.local_addr().unwrap();
    let queue = [(); 8].map(|()| {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&address);
        client
    });
    (address.as_socket().unwrap(), queue.into_iter().chain([app]).collect())
}

/// A connection of opaque bytes.
fn opaque(peer: SocketAddr, local: SocketAddr, app: SocketAddr) -> ConnectionInfo {
    ConnectionInfo {
        peer,
        local,
        port: Port::Tcp as u16,
        app,
        terms: Terms::Opaque,
        tls: false,
        server_name: None,
        client: None,
        identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
        remote: Default::default(),
        accepted: SystemTime::now(),
    }
}

#[tokio::test]
async fn the_cause_of_an_end_while_the_app_is_dialled_is_logged() {
    let (mesh, folder) = (Mesh::start().await, tempfile::tempdir().unwrap());
    let path = folder.path().join("access.log");
    let (publisher, snapshots) = crate::snapshot::channel();
    publisher.update(|snapshot| *snapshot = (*mesh.publisher.current()).clone());
    let env = Rc::new(HttpContext::new(Rc::default(), Rc::new(Telemetry::in_file(&path)), snapshots.clone()));
    let (app, _sockets) = app_that_does_not_accept();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for is_drained in [true, false] {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (io, peer) = listener.accept().await.unwrap();
        let info = opaque(peer, listener.local_addr().unwrap(), app);
        let authorizer = Rc::new(Authorizer::new(Rc::new(info), snapshots.clone()));
        let lines = Registry::new();
        let line = lines.add(Rc::new(()));
        let served =
            crate::inbound::opaque::serve(MaybeTls::Plain(io), BytesMut::new(), &authorizer, &line, &env);
        let mut served = Box::pin(served);
        assert!(futures_util::poll!(&mut served).is_pending(), "the app took the connection");
        if is_drained {
            line.close(Cause::Draining);
        } else {
            lines.expire(Instant::now() + 2 * Limits::default().connect);
        }
        served.await;
        assert_eq!(end(&mut client).await, (End::Reset, vec![]));
    }
    let log = || {
        env.telemetry.flush();
        std::fs::read_to_string(&path).unwrap()
    };
    until(|| log().lines().count() == 2).await;
    let told: Vec<_> = log()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| {
            [&line["response_flags"], &line["response_code_details"]]
                .map(|word| word.as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(told, [["-", "drained"], ["UF", "upstream_connection_timeout"]]);
}

#[tokio::test]
async fn a_receiver_that_does_not_read_is_disconnected() {
    let limits = Limits { body: Duration::from_millis(500), ..Limits::default() };
    let mesh = Mesh::with(1, limits).await;
    let mut client = mesh.connect(Port::Tcp).await;
    let chunk = vec![1; 64 * 1024];
    // The echo is never read: the kernel's buffers fill up, then ours, then the client's.
    let write = async { while client.write_all(&chunk).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), write).await.expect("the client was not given up");
    mesh.connections(0).await;
}

#[tokio::test]
async fn a_half_closed_side_that_disconnects_ends_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::before(listener.local_addr().unwrap(), 1, Limits::default());
    for is_client in [true, false] {
        let mut client = mesh.connect(Port::Tcp).await;
        client.write_all(b"hello").await.unwrap();
        let (mut app, _) = listener.accept().await.unwrap();
        app.read_exact(&mut [0; 5]).await.unwrap();
        let (mut leaving, mut staying) = if is_client { (client, app) } else { (app, client) };
        leaving.shutdown().await.unwrap();
        assert_eq!(end(&mut staying).await, (End::Fin, vec![]));
        // The other direction continues.
        staying.write_all(b"more").await.unwrap();
        leaving.read_exact(&mut [0; 4]).await.unwrap();
        leaving.abort();
        drop(leaving);
        mesh.connections(0).await;
    }
}
