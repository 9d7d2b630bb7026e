//! A request ends when its client does, through both sidecars, in every pair of versions.

use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};

use super::app::{playing, read_head};
use super::http::{http, http2};
use super::*;
use crate::stream::Abort;

/// What an app has of its requests.
#[derive(Default)]
struct Requests {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// An app that answers no request, or begins to answer and goes on for as long as its client is there.
async fn endless(is_http2: bool, answers: bool) -> (SocketAddr, Arc<Requests>) {
    let requests = Arc::<Requests>::default();
    let shared = requests.clone();
    let app = playing(move |io: TcpStream| {
        let requests = shared.clone();
        async move {
            if is_http2 {
                serve_http2(io, requests, answers).await;
            } else {
                serve_http1(io, requests, answers).await;
            }
        }
    });
    (app.await, requests)
}

async fn serve_http1(mut io: TcpStream, requests: Arc<Requests>, answers: bool) {
    if read_head(&mut io).await.is_none() {
        return;
    }
    requests.begun.fetch_add(1, Ordering::SeqCst);
    if answers {
        let _ = io.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    }
    // The end of the client shows as an end of the stream, or as a reset.
    let _ = io.read_u8().await;
    requests.ended.fetch_add(1, Ordering::SeqCst);
}

async fn serve_http2(io: TcpStream, requests: Arc<Requests>, answers: bool) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    while let Some(Ok((_request, mut respond))) = connection.accept().await {
        requests.begun.fetch_add(1, Ordering::SeqCst);
        let requests = requests.clone();
        tokio::spawn(async move {
            if answers {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"x"), false).unwrap();
                let _ = std::future::poll_fn(|context| body.poll_reset(context)).await;
            } else {
                let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
            }
            requests.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

#[tokio::test]
async fn a_request_ends_at_the_app_when_its_client_does() {
    for (client_is_http2, app_is_http2) in [(false, false), (false, true), (true, false), (true, true)] {
        for answers in [false, true] {
            let what = format!("HTTP/2: client {client_is_http2}, app {app_is_http2}; answers: {answers}");
            let (app, requests) = endless(app_is_http2, answers).await;
            let server = server_before(app);
            let spoken = if app_is_http2 { AppProtocol::H2c } else { AppProtocol::Http };
            server.publish(|policy| {
                policy.ports.get_mut(&(Port::Mesh as u16)).unwrap().protocol = spoken;
            });
            let client = Client::of(&server.root);
            let endpoints = [(server.address(Port::Mesh), identity("cart"))];
            // An app that speaks only HTTP/1.1 declares it.
            client.learn(if client_is_http2 && !app_is_http2 {
                service_of(AppProtocol::Http, BackendProtocol::Http1, &endpoints)
            } else {
                http(&endpoints)
            });
            let start = Instant::now();
            let begun = || requests.begun.load(Ordering::SeqCst) == 1;
            if client_is_http2 {
                let mut sender = http2(&client).await;
                let request = Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
                let sent = tokio::spawn(sender.send_request(request));
                until(begun).await;
                if answers {
                    let mut body = sent.await.unwrap().unwrap().into_body();
                    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "x", "{what}");
                } else {
                    sent.abort();
                }
                until(|| requests.ended.load(Ordering::SeqCst) == 1).await;
                drop(sender);
            } else {
                let mut io = client.dial().await;
                io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                until(begun).await;
                if answers {
                    let head = read_head(&mut io).await.unwrap();
                    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {head}");
                }
                io.abort();
                drop(io);
                until(|| requests.ended.load(Ordering::SeqCst) == 1).await;
            }
            // Sooner than a client is given up that has half-closed and may wait for its answer.
            assert!(start.elapsed() < Limits::default().half_close / 2, "{what}: {:?}", start.elapsed());
            server.connections(usize::from(app_is_http2 && client_is_http2)).await;
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client() {
    let app = playing(async |mut io: TcpStream| {
        let _ = read_head(&mut io).await;
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let _ = io.write_all(head).await;
        io.abort();
    })
    .await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    let endpoints = [(server.address(Port::Mesh), identity("cart"))];
    client.learn(service_of(AppProtocol::Http, BackendProtocol::Http1, &endpoints));
    let mut io = client.dial().await;
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, io.read_to_end(&mut answer)).await.unwrap();
    assert!(end.is_err() && !answer.ends_with(b"0\r\n\r\n"), "{end:?}");
    let request = Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
    let answer = http2(&client).await.send_request(request).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
}
