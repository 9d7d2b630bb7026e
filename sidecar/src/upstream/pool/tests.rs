use tidegate_core::{Identity, TrustDomain};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::stream::MaybeTls;
use crate::upstream::UpstreamTls;

async fn pair(listener: &TcpListener) -> (MaybeTls<UpstreamTls>, TcpStream) {
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (MaybeTls::Plain(near), listener.accept().await.unwrap().0)
}

fn endpoint(listener: &TcpListener) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(listener.local_addr().unwrap(), Transport::Plain))
}

fn port(connection: &MaybeTls<UpstreamTls>) -> u16 {
    let MaybeTls::Plain(io) = connection else { panic!("TLS") };
    io.local_addr().unwrap().port()
}

#[tokio::test]
async fn the_connection_used_last_is_used_first_and_no_more_than_the_limit_are_kept() {
    let pool = Pool::new(&Limits { upstream_idle_connections: 2, ..Limits::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = endpoint(&listener);
    let mut far = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..3 {
        let (near, end) = pair(&listener).await;
        ports.push(port(&near));
        far.push(end);
        pool.put(&app, near);
    }
    assert_eq!(pool.len(), 2);
    assert_eq!(port(&pool.checkout(&app).unwrap()), ports[1]);
    assert_eq!(port(&pool.checkout(&app).unwrap()), ports[0]);
    assert!(pool.checkout(&app).is_none());
}

#[tokio::test]
async fn a_connection_that_the_app_closed_or_wrote_to_or_that_is_too_old_is_not_used() {
    let pool = Pool::new(&Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = endpoint(&listener);
    let (closed, far) = pair(&listener).await;
    drop(far);
    let MaybeTls::Plain(io) = &closed else { panic!("TLS") };
    io.readable().await.unwrap();
    pool.put(&app, closed);
    assert_eq!(pool.len(), 0);

    let (near, mut far) = pair(&listener).await;
    pool.put(&app, near);
    far.write_all(b"surprise").await.unwrap();
    while pool.len() > 0 {
        tokio::task::yield_now().await;
        pool.sweep(Instant::now());
    }

    let (near, _far) = pair(&listener).await;
    pool.put(&app, near);
    pool.sweep(Instant::now() + Limits::default().upstream_idle);
    assert!(pool.checkout(&app).is_none());
}

#[tokio::test]
async fn endpoints_that_differ_by_transport_alone_share_nothing() {
    let pool = Pool::new(&Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = endpoint(&listener);
    let identity = |account| Identity::new(TrustDomain::default(), "shop", account).unwrap();
    let mesh = |account| Arc::new(Endpoint::new(plain.address, Transport::Mesh(identity(account))));
    let (near, _far) = pair(&listener).await;
    pool.put(&mesh("a"), near);
    assert!(pool.checkout(&plain).is_none() && pool.checkout(&mesh("b")).is_none());
    assert!(pool.checkout(&mesh("a")).is_some(), "equal, and not the same");
}
