//! What may be silent for as long as both sides are there: no limit that means something else ends it in either sidecar.

use std::convert::Infallible;
use std::io;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper::service::service_fn;

use super::app::{playing, read_head, serve};
use super::http::{http, http2};
use super::*;

/// Each time that a sidecar waits for something of a connection in use.
const SHORT: Duration = Duration::from_millis(300);

/// All of them short.
fn impatient() -> Limits {
    Limits {
        detect: SHORT,
        outbound_detect: SHORT,
        idle: SHORT,
        body: SHORT,
        stream_idle: SHORT,
        half_close: SHORT,
        upstream_idle: SHORT,
        upstream_max_age: SHORT,
        ..Limits::default()
    }
}

/// A client's sidecar and a server's with these limits, in front of this app.
fn sidecars(app: SocketAddr, limits: &Limits) -> (Mesh, Client) {
    let server = Mesh::before(app, 1, limits.clone());
    be(&server, &server.root.workload("shop", "cart"));
    let client = Client::to("10.96.0.10:80".parse().unwrap(), limits.clone());
    client.show(&server.root, &server.root.workload("shop", "client"));
    (server, client)
}

/// Returns after several times [`SHORT`]: connections that may be silent for so long have ended, one after the other.
async fn silence() {
    let app = start_app().await;
    let client = Client::to(app, impatient());
    client.learn(Answer::Destination(Destination::Passthrough));
    for _ in 0..4 {
        let mut io = client.dial().await;
        echo_byte(&mut io).await;
        assert!(tokio::time::timeout(PATIENCE, io.read_u8()).await.expect("it stays open").is_err());
    }
}

/// Sends bytes that the app returns.
async fn echo_bytes(io: &mut TcpStream, bytes: &[u8]) {
    let exchange = async {
        io.write_all(bytes).await.unwrap();
        let mut echoed = vec![0; bytes.len()];
        io.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, bytes);
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("no answer");
}

/// A request whose body the app returns as it comes, and its answer.
struct Call {
    request: Sender<Bytes, io::Error>,
    answer: Response<Incoming>,
}

impl Call {
    async fn start(client: &Client, content_type: &str) -> Self {
        let (request, body) = Channel::new(1);
        let head = Request::post("http://cart.shop/a.B/C").header("content-type", content_type);
        let sent = http2(client).await.send_request(head.body(body).unwrap());
        Self { request, answer: sent.await.unwrap() }
    }

    /// Sends bytes that the app returns; `None` if the call has ended.
    async fn echo(&mut self, bytes: &'static [u8]) -> Option<()> {
        let exchange = async {
            self.request.send_data(bytes.into()).await.ok()?;
            let frame = self.answer.body_mut().frame().await?.ok()?;
            assert_eq!(frame.into_data().unwrap(), bytes);
            Some(())
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("no answer")
    }
}

#[tokio::test]
async fn a_grpc_call_that_was_silent_for_longer_than_all_limits_but_its_own_carries_messages_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let echo = |request: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(request.into_body()))
            };
            tokio::spawn(serve(io, service_fn(echo)));
        }
    });
    let limits = Limits { stream_idle: Limits::default().stream_idle, ..impatient() };
    let (server, client) = sidecars(app, &limits);
    let endpoint = (server.address(Port::Mesh), identity("cart"));
    client.learn(service_of(AppProtocol::H2c, BackendProtocol::Http2, &[endpoint]));
    let mut call = Call::start(&client, "application/grpc").await;
    let mut other = Call::start(&client, "text/plain").await;
    call.echo(b"before").await.unwrap();
    other.echo(b"before").await.unwrap();
    silence().await;
    assert_eq!(other.echo(b"after").await, None, "a body that stands still");
    call.echo(b"after").await.unwrap();
    silence().await;
    call.echo(b"again").await.unwrap();
}

#[tokio::test]
async fn a_websocket_that_was_silent_for_longer_than_all_limits_carries_bytes_both_ways() {
    let app = playing(async |mut io: TcpStream| {
        read_head(&mut io).await.unwrap();
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        io.write_all(answer.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = io.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let (server, client) = sidecars(app, &impatient());
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    let request = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    io.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut io).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    echo_bytes(&mut io, b"before").await;
    silence().await;
    echo_bytes(&mut io, b"after").await;
    silence().await;
    echo_bytes(&mut io, b"again").await;
}

#[tokio::test]
async fn opaque_bytes_that_were_silent_for_longer_than_all_limits_but_their_own_go_both_ways() {
    let app = playing(async |mut io: TcpStream| {
        let (mut reader, mut writer) = io.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let limits = Limits { idle: Limits::default().idle, ..impatient() };
    let (server, client) = sidecars(app, &limits);
    client.learn(service(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    echo_bytes(&mut io, b"before").await;
    silence().await;
    echo_bytes(&mut io, b"after").await;
    silence().await;
    echo_bytes(&mut io, b"again").await;
}
