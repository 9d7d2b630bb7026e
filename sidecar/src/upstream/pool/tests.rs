use tidegate_core::{Identity, TrustDomain};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::stream::MaybeTls;
use crate::upstream::Http1Upstream;

mod naive;

async fn pair(listener: &TcpListener) -> (Http1Upstream, TcpStream) {
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (Http1Upstream::new(MaybeTls::Plain(near), None), listener.accept().await.unwrap().0)
}

fn endpoint(listener: &TcpListener) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(listener.local_addr().unwrap(), Transport::Plain))
}

fn checkout(pool: &Pool<Http1Upstream>, endpoint: &Arc<Endpoint>) -> Option<Http1Upstream> {
    pool.checkout(endpoint).unwrap()
}

fn port(connection: &Http1Upstream) -> u16 {
    let MaybeTls::Plain(io) = &connection.io else { panic!("TLS") };
    io.local_addr().unwrap().port()
}

#[tokio::test]
async fn the_connection_used_last_is_used_first_and_an_endpoint_has_no_more_than_half_of_the_limit() {
    let pool = Pool::new(&Limits { upstream_idle_connections: 4, ..Limits::default() });
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
    assert_eq!(port(&checkout(&pool, &app).unwrap()), ports[1]);
    assert_eq!(port(&checkout(&pool, &app).unwrap()), ports[0]);
    assert!(checkout(&pool, &app).is_none());
}

#[tokio::test]
async fn a_full_pool_has_room_for_an_endpoint_that_has_fewer_than_another() {
    let pool = Pool::new(&Limits { upstream_idle_connections: 6, ..Limits::default() });
    let mut far = Vec::new();
    let mut put = async |listener: &TcpListener| {
        let (near, end) = pair(listener).await;
        far.push(end);
        let port = port(&near);
        pool.put(&endpoint(listener), near);
        port
    };
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let [one, other, third] = &listeners[..] else { unreachable!() };
    for _ in 0..3 {
        put(one).await;
    }
    for _ in 0..3 {
        put(other).await;
    }
    let first = put(third).await;
    put(third).await;
    assert_eq!(pool.len(), 6);
    put(third).await;
    let mut counts = Vec::new();
    for listener in [one, other, third] {
        let app = endpoint(listener);
        counts.push(std::iter::from_fn(|| checkout(&pool, &app)).map(|held| port(&held)).collect::<Vec<_>>());
    }
    assert_eq!(counts.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(counts[2].last(), Some(&first), "its own were not closed for one more");
}

#[tokio::test]
async fn a_connection_that_the_app_closed_or_wrote_to_or_that_is_too_old_is_not_used() {
    let pool = Pool::new(&Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = endpoint(&listener);
    let (closed, far) = pair(&listener).await;
    drop(far);
    let MaybeTls::Plain(io) = &closed.io else { panic!("TLS") };
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
    assert!(checkout(&pool, &app).is_none());
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
    assert!(checkout(&pool, &plain).is_none() && checkout(&pool, &mesh("b")).is_none());
    assert!(checkout(&pool, &mesh("a")).is_some(), "equal, and not the same");
}
