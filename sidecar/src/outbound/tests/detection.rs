//! Ports without a declared protocol.

use super::app::{ask, echo, received};
use super::http::http2;
use super::*;
use ::http::Request;
use bytes::Bytes;
use http_body_util::Empty;

fn undeclared(endpoints: &[(SocketAddr, Option<Identity>)]) -> Answer {
    service_of(AppProtocol::Undeclared, BackendProtocol::Http, endpoints)
}

#[tokio::test]
async fn http_is_detected_in_both_versions() {
    let (app, log) = echo().await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    client.learn(undeclared(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    // In pieces: a method may come alone.
    io.write_all(b"GE").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(ask(&mut io, "T / HTTP/1.1\r\nhost: a\r\n\r\n").await.0, 200);
    let request = Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(http2(&client).await.send_request(request).await.unwrap().status(), 200);
    let received = received(&log);
    let lines: Vec<_> = received.iter().map(|request| &*request.line).collect();
    assert_eq!(lines, ["GET / HTTP/1.1", "GET http://a/ HTTP/2.0"]);
    assert!(received.iter().all(|request| request.header("x-forwarded-client-cert").contains("client")));
}

#[tokio::test]
async fn other_bytes_are_passed_on_and_a_server_that_speaks_first_is_reached_in_time() {
    let server = server().await;
    let client = Client::of(&server.root);
    client.learn(undeclared(&[(server.address(Port::Mesh), identity("cart"))]));
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
    let mut io = client.dial().await;
    let (start, mut greeting) = (Instant::now(), [0; 11]);
    tokio::time::timeout(PATIENCE, io.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    assert!(start.elapsed() >= Limits::default().outbound_detect);
    // What comes late is not looked at.
    io.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let mut io = client.dial().await;
    io.shutdown().await.unwrap();
    let mut received = Vec::new();
    io.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"bye");
}
