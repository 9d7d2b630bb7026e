//! TLS clients that disconnect or half-close while the app has not responded.

use tokio::net::TcpListener;

use super::*;
use crate::limits::Limits;
use crate::stream::Abort;
use crate::test_pki::GATEWAY;

/// A connection with a request that the app has received and does not respond to.
async fn asked(mesh: &Mesh, apps: &TcpListener) -> (Client, TcpStream) {
    let leaf = mesh.root.named(GATEWAY);
    let mut client = tls(mesh, Port::Https, Some(&leaf), &[]).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: httpbin\r\n\r\n").await.unwrap();
    let (mut app, _) = apps.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(app.read_buf(&mut head).await.unwrap(), 0);
    }
    (client, app)
}

#[tokio::test]
async fn a_client_that_aborts_ends_its_request_at_once_and_one_that_sends_close_notify_may_wait() {
    let apps = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // No deadline passes before the test ends.
    let limits = Limits { half_close: Duration::from_secs(600), ..Limits::default() };
    let mesh = Mesh::before(apps.local_addr().unwrap(), 1, limits);

    let (client, mut app) = asked(&mesh, &apps).await;
    client.get_ref().0.abort();
    drop(client);
    assert_eq!(end(&mut app).await, (End::Fin, vec![]), "RST");

    let (mut client, mut app) = asked(&mesh, &apps).await;
    client.get_mut().0.shutdown().await.unwrap();
    assert_eq!(end(&mut app).await, (End::Fin, vec![]), "FIN without close_notify (RFC 8446 §6.1)");
    drop(client);

    let (mut client, mut app) = asked(&mesh, &apps).await;
    client.shutdown().await.unwrap();
    // Another request shows that the worker has noticed by now.
    let (other, mut other_app) = asked(&mesh, &apps).await;
    drop(other);
    assert!(matches!(app.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock));
    app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"ok"));
    other_app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_client_that_sends_close_notify_and_gets_nothing_is_closed_after_its_time() {
    let apps = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = Limits { half_close: Duration::from_millis(300), ..Limits::default() };
    let mesh = Mesh::before(apps.local_addr().unwrap(), 1, limits);
    let (mut client, mut app) = asked(&mesh, &apps).await;
    client.shutdown().await.unwrap();
    assert_eq!(end(&mut app).await, (End::Fin, vec![]));
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 Request Timeout\r\n"), "{}", answer.escape_ascii());
    mesh.connections(0).await;
}
