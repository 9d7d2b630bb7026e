use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Empty;
use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::{AppProtocol, MeshProtocol, Terms};
use tidegate_core::{Identity, TrustDomain};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::connection_info::{ConnectionInfo, ServedConnection};
use crate::detect::client_hello::Alpn;
use crate::http::HttpContext;
use crate::limits::Limits;
use crate::listener::{InboundTarget, Listener};
use crate::snapshot::channel;
use crate::telemetry::Telemetry;
use crate::test_mesh::{Port, policy};
use crate::test_pki::Authority;
use crate::worker::{Workers, WorkersConfig};

fn client() -> ServedConnection {
    let address: SocketAddr = "192.0.2.7:4444".parse().unwrap();
    ServedConnection::Inbound(Rc::new(ConnectionInfo {
        peer: address,
        local: address,
        port: address.port(),
        app: address,
        terms: Terms::IngressPlaintext,
        tls: false,
        server_name: None,
        client: None,
        identity: "spiffe://cluster.local/ns/shop/sa/client".into(),
        remote: Default::default(),
        accepted: SystemTime::now(),
    }))
}

/// A sidecar of shop/cart that takes a request on each connection and never answers; a message for each.
async fn silent_sidecar(root: &Authority) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let tls = ServerTls::new(root.workload("shop", "cart").credentials(), root.bundle()).unwrap();
    let terms = Terms::MeshTls(MeshProtocol::Http1);
    let config = tls.config(terms, Alpn::default(), AppProtocol::Http).unwrap().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let mut stream = TlsAcceptor::from(config.clone()).accept(io).await.unwrap();
            stream.read_u8().await.unwrap();
            sender.send(()).unwrap();
            tokio::spawn(async move { while stream.read_u8().await.is_ok() {} });
        }
    });
    (address, received)
}

#[tokio::test]
async fn a_revoked_root_ends_a_request_in_flight_to_a_sidecar_that_it_vouched_for_and_a_retired_one_does_not()
{
    let (root, next) = (Authority::root("root"), Authority::root("next"));
    let (address, mut received) = silent_sidecar(&root).await;
    let (publisher, snapshots) = channel();
    let publish = |bundle| {
        let tls = PeerTls::new(&root.workload("shop", "client").credentials(), bundle).unwrap();
        publisher.update(|snapshot| snapshot.peer_tls = Some(Arc::new(tls)));
    };
    publish(root.bundle());
    publisher.update(|snapshot| snapshot.policy = Some(Arc::new(policy())));
    let identity = Identity::new(TrustDomain::default(), "shop", "cart").unwrap();
    let endpoint = Arc::new(Endpoint::new(address, Transport::Mesh(identity)));
    let (sender, mut ended) = mpsc::unbounded_channel();
    let listener =
        InboundTarget { address: "127.0.0.1:0".parse().unwrap(), port: Port::Http as u16, app: address };
    let workers = Workers::start(WorkersConfig {
        count: 1,
        listeners: vec![Listener::Fixed(listener)],
        limits: Limits::default(),
        snapshots,
        destinations: Arc::default(),
        http_context: Arc::new(move |limits, snapshots| {
            let context = Rc::new(HttpContext::new(limits, Rc::new(Telemetry::default()), snapshots));
            let request = ::http::Request::get("/").header("host", "a").body(Empty::<Bytes>::new()).unwrap();
            let sending = context.upstreams.send_http1(&client(), &endpoint, request, None);
            let sender = sender.clone();
            tokio::task::spawn_local(async move {
                let answer = sending.ok().unwrap().await;
                sender.send(answer.map(|_| ()).map_err(|failure| failure.error)).unwrap();
            });
            context
        }),
    })
    .unwrap();
    received.recv().await.unwrap();
    // The worker's clock ticks while it has a connection.
    let _client = TcpStream::connect(workers.addresses()[0]).await.unwrap();

    publish(next.bundle_after(&root));
    let early = tokio::time::timeout(2 * Limits::default().revocation, ended.recv()).await;
    assert!(early.is_err(), "{early:?}");
    publish(next.bundle());
    let answer = tokio::time::timeout(Duration::from_secs(20), ended.recv()).await.unwrap().unwrap();
    assert!(answer.is_err());
}
