//! Clients of HTTP/1 and an app that speaks only HTTP/2.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate_core::policy::{AppProtocol, Sources};
use tokio::io::AsyncWriteExt;

use super::departures::pass;
use super::records::Log;
use super::world::{World, local, read_head, read_rest, read_until, reset};
use crate::limits::Limits;
use crate::stream::LOOK_AT_PEER;

/// Runs hyper's tasks on the test's thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

async fn h2c() -> World {
    before_h2c(World::new().await)
}

fn before_h2c(mut world: World) -> World {
    world.protocol.set(AppProtocol::H2c);
    world.allow(Sources::Any);
    let listener = world.app.take_listener();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
                // The client checks how it ends.
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
            });
        }
    });
    world
}

/// Reports the request that it received, and sends a trailer.
async fn echo(
    request: Request<Incoming>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let value = |name: &str| head.headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    let told = format!(
        "{} {} te={} for={} expect={}",
        head.method,
        head.uri,
        value("te"),
        value("x-forwarded-for"),
        value("expect")
    );
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // The length is not known beforehand.
    let (mut sender, answer) = Channel::<Bytes>::new(2);
    tokio::task::spawn_local(async move {
        sender.send_data(body).await.unwrap();
        sender.send_trailers(trailers).await.unwrap();
    });
    let mut response = Response::new(answer);
    response.headers_mut().insert("x-told", told.parse().unwrap());
    let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    response.headers_mut().insert("x-names", names.join(",").parse().unwrap());
    Ok(response)
}

#[tokio::test]
async fn a_request_reaches_an_app_that_speaks_http_2_and_its_trailers_come_back() {
    local(async {
        let world = h2c().await;
        let mut client = world.connect();
        for _ in 0..2 {
            client
                .write_all(b"POST /x?y HTTP/1.1\r\nHost: a:1\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
                .await
                .unwrap();
            client.write_all(b"5;a=b\r\nworld\r\n0\r\n\r\n").await.unwrap();
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(head.contains("x-told: POST http://a:1/x?y te=trailers for=10.0.0.7 expect=-\r\n"), "{head}");
            assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
            assert!(!head.contains("connection"), "{head}");
            let body = read_until(&mut client, "grpc-status: 0\r\n\r\n").await;
            assert_eq!(body, "a\r\nhelloworld\r\n0\r\ngrpc-status: 0\r\n\r\n");
        }
    })
    .await;
}

#[tokio::test]
async fn an_unusual_target_and_an_empty_host_reach_it_unchanged() {
    local(async {
        let world = h2c().await;
        for (host, authority) in [("", ""), ("a.test:", "http://a.test:")] {
            let path = "/<a\"`>|\\^{}?q=<b\"`>|\\^{}";
            let mut client = world.connect();
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(head.contains(&format!("x-told: GET {authority}{path} te=-")), "{head}");
        }
    })
    .await;
}

#[tokio::test]
async fn fields_of_the_clients_connection_end_there_and_those_that_it_may_not_set_too() {
    local(async {
        let log = Log::new();
        let world = before_h2c(log.world().await);
        let mut client = world.connect();
        let head = "POST /x?y HTTP/1.1\r\nHost: a\r\nUser-Agent: test/1\r\nConnection: keep-alive, x-hop\r\n\
            X-Hop: 1\r\nKeep-Alive: 5\r\nX-Forwarded-For: \r\nX-Forwarded-For: 1.2.3.4\r\nX-Request-Id: id-1\r\n\
            X-Forwarded-Client-Cert: forged\r\nContent-Length: 2, 2\r\n\r\nhi";
        client.write_all(head.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.contains("for=1.2.3.4, 10.0.0.7 expect=-\r\n"), "{head}");
        let names = "content-length,user-agent,x-forwarded-for,x-forwarded-proto,x-request-id";
        assert!(head.contains(&format!("x-names: {names}\r\n")), "{head}");
        read_until(&mut client, "\r\nhi\r\n0\r\ngrpc-status: 0\r\n\r\n").await;
        let line = &log.lines(&world, 1).await[0];
        let logged = ["method", "path", "authority", "user_agent", "x_forwarded_for", "request_id"];
        let logged = logged.map(|key| line[key].as_str().unwrap());
        assert_eq!(logged, ["POST", "/x?y", "a", "test/1", "1.2.3.4, 10.0.0.7", "id-1"]);
        assert_eq!((&line["protocol"], &line["bytes_received"]), (&"HTTP/1.1".into(), &2.into()), "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    local(async {
        let world = h2c().await;
        let mut client = world.connect();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        client.write_all(head).await.unwrap();
        assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"hi").await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
        read_until(&mut client, "0\r\ngrpc-status: 0\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn http_1_0_gets_its_answer_until_the_connection_ends() {
    local(async {
        let world = h2c().await;
        let answer = world.answers(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi").await;
        let text = String::from_utf8(answer).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nhi"), "{text}");
        assert!(text.contains("x-told: POST http://10.0.0.1:14001/ "), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_bad_body_is_400_and_a_missing_app_503() {
    local(async {
        let mut world = h2c().await;
        let mut client = world.connect();
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello")
            .await
            .unwrap();
        let text = String::from_utf8(read_rest(&mut client).await).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");

        let gone = World::new().await;
        world.app = gone.app;
        world.app.stop();
        let text = String::from_utf8(world.answers(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 ") && text.ends_with("remote connection failure"), "{text}");
    })
    .await;
}

/// An event stream of one event, which counts as long as it is held.
struct Events {
    count: Rc<Cell<usize>>,
    is_sent: bool,
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.is_sent, true) {
            Poll::Pending
        } else {
            Poll::Ready(Some(Ok(http_body::Frame::data(":\n\n".into()))))
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
    }
}

/// An app that speaks HTTP/2 and is silent, from the start or after an event; and the number of requests that it holds.
async fn silent(begins: bool) -> (World, Rc<Cell<usize>>) {
    let mut world = World::new().await;
    world.protocol.set(AppProtocol::H2c);
    world.allow(Sources::Any);
    let listener = world.app.take_listener();
    let held = Rc::new(Cell::new(0));
    let count = held.clone();
    let answer = move |_: Request<Incoming>| {
        count.set(count.get() + 1);
        let events = Events { count: count.clone(), is_sent: false };
        async move {
            if !begins {
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(events);
            let stream = HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert(::http::header::CONTENT_TYPE, stream);
            Ok::<_, Infallible>(response)
        }
    };
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                let builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
                // The client checks how it ends.
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    (world, held)
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_an_app_that_speaks_http_2() {
    local(async {
        let limits = Limits::default();
        for begins in [false, true] {
            let (world, held) = silent(begins).await;
            let mut client = world.dial().await;
            client.write_all(GET).await.unwrap();
            until(|| held.get() == 1).await;
            if begins {
                read_until(&mut client, ":\n\n\r\n").await;
            }
            reset(client);
            until(|| held.get() == 0).await;

            let mut client = world.dial().await;
            client.write_all(GET).await.unwrap();
            until(|| held.get() == 1).await;
            if begins {
                read_until(&mut client, ":\n\n\r\n").await;
            }
            pass(&world, limits.body * 2).await;
            assert_eq!(held.get(), 1, "a client that stays waits, and an event stream may be silent");
            client.shutdown().await.unwrap();
            pass(&world, limits.half_close - LOOK_AT_PEER).await;
            assert_eq!(held.get(), 1);
            pass(&world, limits.half_close * 2).await;
            until(|| held.get() == 0).await;
            let text = String::from_utf8(read_rest(&mut client).await).unwrap();
            assert_eq!(text.starts_with("HTTP/1.1 408 "), !begins, "{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_its_answer_from_an_app_that_speaks_http_2() {
    local(async {
        let world = h2c().await;
        let answer = world.answers(GET).await;
        let text = String::from_utf8(answer).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.ends_with("0\r\ngrpc-status: 0\r\n\r\n"), "{text}");
    })
    .await;
}
