//! Requests of the app, through its sidecar and the server's.

use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{HeaderMap, HeaderValue, Request, Version};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::app::{ask, echo, playing, read_head, read_response, received};
use super::*;

const GET: &str = "GET /a?b HTTP/1.1\r\nhost: cart.shop\r\n\r\n";

pub(super) fn http(endpoints: &[(SocketAddr, Option<Identity>)]) -> Answer {
    service_of(AppProtocol::Http, BackendProtocol::Http, endpoints)
}

#[tokio::test]
async fn requests_of_several_connections_share_one_to_the_server_and_carry_who_sends_them() {
    let (app, log) = echo().await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    for _ in 0..3 {
        let mut io = client.dial().await;
        for _ in 0..3 {
            assert_eq!(ask(&mut io, GET).await, (200, String::new()));
        }
        let post = "POST /p HTTP/1.1\r\nhost: cart.shop\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        assert_eq!(ask(&mut io, post).await, (200, "hello".to_owned()));
    }
    assert_eq!(server.metrics.total(|totals| &totals.handshakes), 1);
    let received = received(&log);
    assert_eq!(received.len(), 12);
    assert_eq!(received[0].line, "GET /a?b HTTP/1.1");
    assert_eq!(received[3].body, "hello");
    for request in received {
        assert_eq!(request.header("host"), "cart.shop");
        assert_eq!(request.header("x-forwarded-for"), "127.0.0.1");
        assert_eq!(request.header("x-forwarded-proto"), "http");
        assert_eq!(request.header("x-request-id").len(), 36);
        let certificate = request.header("x-forwarded-client-cert");
        assert!(
            certificate
                .ends_with("DNS=client.shop.cluster.local;URI=spiffe://cluster.local/ns/shop/sa/client"),
            "{certificate}"
        );
    }
}

#[tokio::test]
async fn what_the_app_says_of_itself_is_judged_by_the_server_s_sidecar() {
    let (app, log) = echo().await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    let request = "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: forged\r\nx-tidegate-a: forged\r\n\
                   x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\nx-request-id: mine\r\n\r\n";
    assert_eq!(ask(&mut client.dial().await, request).await.0, 200);
    let received = received(&log);
    let request = &received[0];
    assert!(!request.header("x-forwarded-client-cert").contains("forged"));
    assert_eq!(request.header("x-tidegate-a"), "");
    assert_eq!(request.header("x-forwarded-for"), "192.0.2.1, 127.0.0.1");
    assert_eq!((request.header("x-forwarded-proto"), request.header("x-request-id")), ("https", "mine"));
}

#[tokio::test]
async fn an_endpoint_without_a_sidecar_gets_the_request_as_the_app_has_sent_it_and_its_id() {
    let app = playing(async |mut io: TcpStream| {
        while let Some(head) = read_head(&mut io).await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            io.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let client = Client::of(&Authority::root("root"));
    client.learn(http(&[(app, None)]));
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX_Forwarded-Client-Cert: b\r\nConnection: c\r\nC: d\r\n";
    let (_, seen) = ask(&mut client.dial().await, &format!("{request}x-request-id: mine\r\n\r\n")).await;
    let expected = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX_Forwarded-Client-Cert: b\r\nx-request-id: mine\r\n\r\n";
    assert_eq!(seen, expected);
    let (_, seen) = ask(&mut client.dial().await, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(seen.starts_with("GET / HTTP/1.1\r\nhost: 10.96.0.10:80\r\nx-request-id: "), "{seen}");
}

/// A client's HTTP/2 connection.
pub(super) async fn http2<B>(client: &Client) -> http2::SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static,
{
    let io = TokioIo::new(client.dial().await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn http2_stays_http2_with_the_trailers_of_both_sides() {
    let (app, log) = echo().await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    client.learn(service_of(
        AppProtocol::H2c,
        BackendProtocol::Http2,
        &[(server.address(Port::Mesh), identity("cart"))],
    ));
    let mut sender = http2(&client).await;
    let calls = (0..20).map(|number: usize| {
        let trailers = HeaderMap::from_iter([(
            ::http::HeaderName::from_static("grpc-status"),
            HeaderValue::from(number),
        )]);
        let frames = [Frame::data(Bytes::from(vec![b'x'; number * 1000])), Frame::trailers(trailers)];
        let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
        let request = Request::post("http://cart.shop/a.B/C")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let sent = sender.send_request(request);
        async move {
            let response = sent.await.unwrap();
            assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], number.to_string());
            assert_eq!(body.to_bytes().len(), number * 1000);
        }
    });
    let calls: Vec<_> = calls.collect();
    futures_util::future::join_all(calls).await;
    assert_eq!(server.metrics.total(|totals| &totals.handshakes), 1);
    for request in received(&log) {
        assert_eq!(request.line, "POST http://cart.shop/a.B/C HTTP/2.0");
        assert!(request.trailers.is_some());
        assert_eq!(request.header("te"), "trailers");
        assert!(
            request.header("x-forwarded-client-cert").contains("spiffe://cluster.local/ns/shop/sa/client")
        );
    }
}

#[tokio::test]
async fn the_version_stays_the_client_s_unless_the_endpoint_speaks_only_one() {
    for (spoken, of_http1, of_http2) in [
        (BackendProtocol::Http, "HTTP/1.1", "HTTP/2.0"),
        (BackendProtocol::Http1, "HTTP/1.1", "HTTP/1.1"),
        (BackendProtocol::Http2, "HTTP/2.0", "HTTP/2.0"),
    ] {
        for is_meshed in [true, false] {
            let (app, log) = echo().await;
            let server = server_before(app);
            let client = Client::of(&server.root);
            let endpoint =
                if is_meshed { (server.address(Port::Mesh), identity("cart")) } else { (app, None) };
            client.learn(service_of(AppProtocol::Http, spoken, &[endpoint]));
            assert_eq!(ask(&mut client.dial().await, GET).await.0, 200);
            let request = Request::get("http://cart.shop/a?b").body(Empty::<Bytes>::new()).unwrap();
            let response = http2(&client).await.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let versions: Vec<_> = received(&log)
                .iter()
                .map(|request| request.line.rsplit(' ').next().unwrap().to_owned())
                .collect();
            assert_eq!(versions, [of_http1, of_http2], "{spoken:?}, in the mesh: {is_meshed}");
        }
    }
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_through_both_sidecars() {
    let app = playing(async |mut io: TcpStream| {
        let head = read_head(&mut io).await.unwrap();
        assert!(head.contains("upgrade: websocket\r\n"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        io.write_all(answer.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = io.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    let request = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly";
    io.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut io).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut echoed = [0; 5];
    io.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"early");
    for size in [1, 1000, 200_000] {
        let sent = vec![b'x'; size];
        let mut echoed = vec![0; size];
        let (mut reader, mut writer) = io.split();
        let (written, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut echoed));
        written.unwrap();
        read.unwrap();
        assert!(sent == echoed);
    }
    drop(io);
    server.connections(0).await;
    until(|| client.workers.connections() == 0).await;
}

#[tokio::test]
async fn interim_and_early_answers_pass_through_both_sidecars() {
    let app = playing(async |mut io: TcpStream| {
        let head = read_head(&mut io).await.unwrap();
        if head.starts_with("PUT ") {
            assert!(head.contains("expect: 100-continue\r\n"), "{head}");
            io.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
                .await
                .unwrap();
            let mut body = [0; 5];
            io.read_exact(&mut body).await.unwrap();
            io.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 5\r\n\r\n").await.unwrap();
            io.write_all(&body).await.unwrap();
        } else {
            io.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
                .await
                .unwrap();
        }
    })
    .await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    io.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await
        .unwrap();
    assert!(read_head(&mut io).await.unwrap().starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n"));
    assert!(read_head(&mut io).await.unwrap().starts_with("HTTP/1.1 100 Continue\r\n"));
    assert_eq!(ask(&mut io, "hello").await, (201, "hello".to_owned()));
    let mut io = client.dial().await;
    io.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
    let (head, body) = read_response(&mut io).await;
    assert!(head.starts_with("HTTP/1.1 413 ") && body == "no", "{head}{body}");
}

#[tokio::test]
async fn without_an_endpoint_the_answer_is_503_and_the_connection_stays_open() {
    let server = server_before(echo().await.0);
    let client = Client::of(&server.root);
    client.learn(http(&[]));
    let mut io = client.dial().await;
    let none = (503, "no healthy upstream".to_owned());
    assert_eq!(ask(&mut io, GET).await, none);
    let gone = [closed_address().await, closed_address().await].map(|address| (address, identity("cart")));
    client.learn(http(&gone));
    let (status, body) = ask(&mut io, GET).await;
    assert!(status == 503 && body.ends_with("reset reason: remote connection failure"), "{status} {body}");
    client.learn(Answer::Destination(Destination::Blocked("no policy".into())));
    assert_eq!(ask(&mut io, GET).await, (503, "destination blocked".to_owned()));
    let request = || Request::get("http://cart.shop/").body(Empty::<Bytes>::new()).unwrap();
    client.learn(http(&gone));
    let mut sender = http2(&client).await;
    assert_eq!(sender.send_request(request()).await.unwrap().status(), 503);
    // The newest endpoints count, also for connections that are open.
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    assert_eq!(ask(&mut io, GET).await.0, 200);
    assert_eq!(sender.send_request(request()).await.unwrap().status(), 200);
    client.learn(http(&[]));
    assert_eq!(ask(&mut io, GET).await, none);
    assert_eq!(sender.send_request(request()).await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_request_goes_elsewhere_if_its_endpoint_is_gone_or_another_workload() {
    let (app, log) = echo().await;
    let server = server_before(app);
    let (other_app, other_log) = echo().await;
    let other = Mesh::before(other_app, 1, Limits::default());
    // Of the same mesh, and not the workload that is expected there.
    let leaf = server.root.workload("shop", "other");
    let tls = ServerTls::new(leaf.credentials(), server.root.bundle()).unwrap();
    other.publisher.update(|snapshot| snapshot.tls = Some(Arc::new(tls)));
    let good = (server.address(Port::Mesh), identity("cart"));
    let wrong = (other.address(Port::Mesh), identity("cart"));
    let gone = (closed_address().await, identity("cart"));
    for bad in [wrong, gone] {
        let client = Client::of(&server.root);
        client.learn(http(&[bad.clone(), good.clone(), bad]));
        let mut sender = http2(&client).await;
        for number in 0..20 {
            let body = format!("number {number}");
            let post = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            assert_eq!(ask(&mut client.dial().await, &post).await, (200, body.clone()));
            let request = Request::post("http://cart.shop/")
                .body(http_body_util::Full::new(Bytes::from(body)))
                .unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
        }
    }
    assert_eq!((received(&log).len(), received(&other_log).len()), (80, 0));
}

#[tokio::test]
async fn a_post_is_never_sent_twice_and_a_get_again_if_its_connection_was_stale() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    // Answers the first request on a connection, and closes at the second.
    let app = playing(move |mut io: TcpStream| {
        let count = counted.clone();
        async move {
            if read_head(&mut io).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
            if read_head(&mut io).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let client = Client::of(&Authority::root("root"));
    client.learn(http(&[(app, None)]));
    let mut io = client.dial().await;
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(ask(&mut io, GET).await.0, 200);
    assert_eq!(ask(&mut io, post).await.0, 503);
    assert_eq!(count.load(Ordering::SeqCst), 2);
    assert_eq!(ask(&mut io, GET).await.0, 200);
    assert_eq!(ask(&mut io, GET).await, (200, "ok".to_owned()));
    assert_eq!(count.load(Ordering::SeqCst), 5, "sent again, to a new connection");
}

#[tokio::test]
async fn tls_of_the_app_s_own_and_a_half_close_are_passed_on() {
    let server = server().await;
    let client = Client::of(&server.root);
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    io.shutdown().await.unwrap();
    let mut received = Vec::new();
    io.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"bye", "the server has closed");
    let mut hello = vec![22, 3, 1, 0, 5];
    hello.extend(b"hello");
    let mut io = client.dial().await;
    io.write_all(&hello).await.unwrap();
    io.shutdown().await.unwrap();
    let mut received = Vec::new();
    io.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, [&hello[..], b"bye"].concat());
    client.learn(http(&[]));
    let mut io = client.dial().await;
    let _ = io.shutdown().await;
    assert!(io.read_u8().await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn requests_of_the_app_are_logged_with_their_endpoint() {
    let (app, _) = echo().await;
    let server = server_before(app);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_owned();
    let telemetry = Arc::new(move || Telemetry::in_file(&path));
    let client = Client::telling("10.96.0.10:80".parse().unwrap(), Limits::default(), telemetry);
    client.show(&server.root, &server.root.workload("shop", "client"));
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    let mut io = client.dial().await;
    ask(&mut io, GET).await;
    let request = Request::get("http://cart.shop/h2").body(Empty::<Bytes>::new()).unwrap();
    http2(&client).await.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    client.learn(http(&[]));
    ask(&mut io, GET).await;
    let lines = || Telemetry::records_in(file.path());
    until(|| lines().len() == 3).await;
    let lines = lines();
    let endpoint = server.address(Port::Mesh).to_string();
    for (line, (path, protocol, host)) in lines.iter().zip([
        ("/a?b", "HTTP/1.1", Some(&endpoint)),
        ("/h2", "HTTP/2", Some(&endpoint)),
        ("/a?b", "HTTP/1.1", None),
    ]) {
        assert_eq!((&line["direction"], &line["method"]), (&"outbound".into(), &"GET".into()), "{line}");
        assert_eq!((&line["path"], &line["protocol"]), (&path.into(), &protocol.into()), "{line}");
        assert_eq!(line["upstream_host"], serde_json::json!(host), "{line}");
        assert_eq!(line["upstream_cluster"], "outbound|80||shop/cart", "{line}");
        assert_eq!(line["downstream_local_address"], "10.96.0.10:80", "{line}");
        let security = if host.is_some() { "mutual_tls" } else { "none" };
        assert_eq!(line["connection_security_policy"], security, "{line}");
        assert_eq!(line["authority"], "cart.shop", "{line}");
    }
    assert_eq!((&lines[2]["response_code"], &lines[2]["response_flags"]), (&503.into(), &"UH".into()));
    assert_eq!(lines[0]["request_id"].as_str().unwrap().len(), 36);
}
