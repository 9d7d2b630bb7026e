//! What the app receives, and what its client receives back.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Channel, StreamBody};
use tidegate_core::policy::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::apps::{App, Speaks};
use super::kit::{Sidecar, full, get, run, text, until};
use crate::upstream::{BoxError, DynBody};

const APPS: [(Speaks, AppProtocol); 2] =
    [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)];

fn channel() -> (http_body_util::channel::Sender<Bytes, BoxError>, DynBody) {
    let (sender, body) = Channel::new(1);
    (sender, Box::pin(body))
}

#[test]
fn a_request_and_its_answer_pass_to_either_kind_of_app() {
    run(async {
        for (speaks, protocol) in APPS {
            let app = App::echo(speaks).await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect().await;
            assert_eq!(client.get("/a?b=c").await, (200, String::new()));
            let post = Request::post("http://app.example/up").body(full("hello")).unwrap();
            assert_eq!(text(client.send(post).await.unwrap()).await, (200, "hello".to_owned()));
            let seen = app.seen.requests.borrow();
            let lines: Vec<&str> = seen.iter().map(|received| received.line.as_str()).collect();
            match speaks {
                Speaks::Http1 => assert_eq!(lines, ["GET /a?b=c HTTP/1.1", "POST /up HTTP/1.1"]),
                Speaks::Http2 => {
                    assert_eq!(
                        lines,
                        ["GET http://app.example/a?b=c HTTP/2.0", "POST http://app.example/up HTTP/2.0"]
                    );
                }
            }
            assert_eq!(app.seen.connections.get(), 1, "connections to the app are used again");
        }
    });
}

#[test]
fn the_app_gets_the_headers_of_the_mesh_and_not_those_of_the_client() {
    run(async {
        for (speaks, protocol) in APPS {
            let app = App::echo(speaks).await;
            let sidecar = Sidecar::new(app.address, protocol).with_certificate("Hash=00;DNS=gw.example");
            let mut client = sidecar.connect().await;
            let request = Request::get("http://app.example/")
                .header("x-forwarded-client-cert", "By=liar")
                .header("x_forwarded_client_cert", "By=liar")
                .header("x-forwarded_for", "10.0.0.1")
                .header("x.forwarded.proto", "gopher")
                .header("x-tidegate-principal", "liar")
                .header("x-tidegate_principal", "liar")
                .header("x-forwarded-for", "198.51.100.1")
                .header("x-forwarded-for", "198.51.100.2, 198.51.100.3")
                .header("x-forwarded-proto", "gopher")
                .header("x-request-id", "two words")
                .header("x-forwarded-host", "shop.example")
                .header("x-other", "kept")
                .body(full(""))
                .unwrap();
            client.send(request).await.unwrap();
            let seen = &app.seen;
            assert_eq!(
                seen.last("x-forwarded-client-cert"),
                ["By=spiffe://cluster.local/ns/a/sa/app;Hash=00;DNS=gw.example"]
            );
            assert_eq!(seen.last("x-forwarded-for"), ["198.51.100.1, 198.51.100.2, 198.51.100.3, 192.0.2.7"]);
            assert_eq!(seen.last("x-forwarded-proto"), ["https"]);
            assert_eq!(seen.last("x-forwarded-host"), ["shop.example"]);
            assert_eq!(seen.last("x-other"), ["kept"]);
            for name in [
                "x_forwarded_client_cert",
                "x-forwarded_for",
                "x.forwarded.proto",
                "x-tidegate-principal",
                "x-tidegate_principal",
            ] {
                assert!(seen.last(name).is_empty(), "{name}");
            }
            let id = seen.last("x-request-id").remove(0);
            assert_eq!((id.len(), &id[14..15]), (36, "4"), "{id}");
            assert!("89ab".contains(&id[19..20]), "{id}");
        }
    });
}

#[test]
fn a_proxy_s_headers_about_its_client_are_kept() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect().await;
        let request = Request::get("http://app.example/")
            .header("x-forwarded-proto", "http")
            .header("x-request-id", "abc-123")
            .header("te", "trailers")
            .body(full(""))
            .unwrap();
        client.send(request).await.unwrap();
        assert_eq!(app.seen.last("x-forwarded-proto"), ["http"]);
        assert_eq!(app.seen.last("x-request-id"), ["abc-123"]);
        assert_eq!(app.seen.last("te"), ["trailers"]);
        assert_eq!(app.seen.last("host"), ["app.example"]);
        assert!(app.seen.last("x-forwarded-client-cert").is_empty());
    });
}

#[test]
fn cookie_crumbs_become_one_cookie() {
    run(async {
        for (speaks, protocol) in APPS {
            let app = App::echo(speaks).await;
            let mut client = Sidecar::new(app.address, protocol).connect().await;
            let mut request = get("/");
            for crumb in ["a=1", "b=2", "", "c=3", ""] {
                request.headers_mut().append("cookie", HeaderValue::from_static(crumb));
            }
            client.send(request).await.unwrap();
            assert_eq!(app.seen.last("cookie"), ["a=1; b=2; ; c=3;"]);
        }
    });
}

#[test]
fn a_get_with_a_body_is_framed() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let mut client = Sidecar::new(app.address, AppProtocol::Http).connect().await;
        let (mut sender, body) = channel();
        let request = Request::get("http://app.example/").body(body).unwrap();
        let (response, ()) = tokio::join!(client.send(request), async move {
            sender.send_data("GET /smuggled HTTP/1.1\r\n\r\n".into()).await.unwrap();
        });
        let (status, body) = text(response.unwrap()).await;
        assert_eq!((status, body.as_str()), (200, "GET /smuggled HTTP/1.1\r\n\r\n"));
        assert_eq!(app.seen.last("transfer-encoding"), ["chunked"]);
        assert_eq!(app.seen.count(), 1);
    });
}

#[test]
fn trailers_pass_both_ways() {
    run(async {
        for (speaks, protocol) in APPS {
            let app = App::with(speaks, async |seen, request: Request<hyper::body::Incoming>| {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap();
                let trailers = body.trailers().cloned();
                seen.requests.borrow_mut().push(super::apps::Received {
                    line: head.uri.to_string(),
                    headers: head.headers,
                    body: body.to_bytes(),
                    trailers,
                });
                let trailers =
                    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("5"))]);
                let frames = [Frame::data(Bytes::from_static(b"answer")), Frame::trailers(trailers)];
                let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, BoxError>)));
                let mut response = Response::new(Box::pin(body) as DynBody);
                response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status"));
                response
            })
            .await;
            let mut client = Sidecar::new(app.address, protocol).connect().await;
            let (mut sender, body) = channel();
            let mut request = Request::post("http://app.example/").body(body).unwrap();
            request.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
            request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
            let (response, ()) = tokio::join!(client.send(request), async move {
                sender.send_data("question".into()).await.unwrap();
                let trailers =
                    HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("7"))]);
                sender.send_trailers(trailers).await.unwrap();
            });
            let answer = response.unwrap().into_body().collect().await.unwrap();
            assert_eq!(answer.trailers().unwrap()["grpc-status"], "5");
            assert_eq!(answer.to_bytes(), "answer");
            let requests = app.seen.requests.borrow();
            assert_eq!(requests[0].body, "question");
            assert_eq!(requests[0].trailers.as_ref().unwrap()["x-sum"], "7");
        }
    });
}

#[test]
fn bodies_at_the_edges_of_a_window_keep_their_trailers() {
    run(async {
        let app = App::with(Speaks::Http2, async |_, request: Request<hyper::body::Incoming>| {
            let size: usize = request.uri().path()[1..].parse().unwrap();
            let trailers = HeaderMap::from_iter([
                ("grpc-status".parse().unwrap(), HeaderValue::from_static("0")),
                ("x-details".parse().unwrap(), HeaderValue::try_from("d".repeat(30 * 1024)).unwrap()),
            ]);
            let frames = [Frame::data(Bytes::from(vec![b'x'; size])), Frame::trailers(trailers)];
            let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, BoxError>)));
            Response::new(Box::pin(body) as DynBody)
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect_with(|builder| builder.max_header_list_size(128 * 1024)).await;
        for size in (16_383..=16_385).chain(65_534..=65_537) {
            let answer = client.send(get(&format!("/{size}"))).await.unwrap();
            let answer = answer.into_body().collect().await.unwrap();
            assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(answer.to_bytes().len(), size);
        }
    });
}

#[test]
fn grpc_goes_as_http2_even_where_the_port_says_http() {
    run(async {
        let app = App::echo(Speaks::Http2).await;
        let mut client = Sidecar::new(app.address, AppProtocol::Http).connect().await;
        let (mut sender, body) = channel();
        let request = Request::post("http://app.example/svc/Chat")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let (response, ()) = tokio::join!(client.send(request), async move {
            sender.send_data("ping".into()).await.unwrap();
        });
        assert_eq!(text(response.unwrap()).await, (200, "ping".to_owned()));
        assert!(app.seen.requests.borrow()[0].line.ends_with("HTTP/2.0"));
    });
}

#[test]
fn a_stream_carries_both_directions_at_once() {
    run(async {
        let app = App::with(Speaks::Http2, async |_, request: Request<hyper::body::Incoming>| {
            let body = request.into_body().map_err(BoxError::from);
            Response::new(Box::pin(body) as DynBody)
        })
        .await;
        let mut client = Sidecar::new(app.address, AppProtocol::H2c).connect().await;
        let (mut sender, body) = channel();
        let request = Request::post("http://app.example/svc/Chat").body(body).unwrap();
        let mut answer = client.send(request).await.unwrap().into_body();
        for message in 0..100 {
            let message = Bytes::from(format!("message {message}"));
            sender.send_data(message.clone()).await.unwrap();
            let frame = answer.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), message, "before the next one is sent");
        }
        drop(sender);
        assert!(answer.collect().await.unwrap().to_bytes().is_empty());
    });
}

#[test]
fn a_plaintext_client_with_prior_knowledge_gets_http2_or_a_protocol_error() {
    run(async {
        let app = App::echo(Speaks::Http2).await;
        let mut client = Sidecar::new(app.address, AppProtocol::Http).plaintext().connect().await;
        assert_eq!(client.get("/").await.0, 200);
        assert_eq!(app.seen.last("x-forwarded-proto"), ["http"]);

        let says_400 = App::raw(async |_, mut socket: tokio::net::TcpStream| {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        })
        .await;
        let hangs_up = App::echo(Speaks::Http1).await;
        for address in [says_400.address, hangs_up.address] {
            let mut client = Sidecar::new(address, AppProtocol::Http).plaintext().connect().await;
            let (status, body) = client.get("/").await;
            assert_eq!(status, 502);
            assert_eq!(
                body,
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error"
            );
            assert_eq!(body.len(), 87);
        }
    });
}

#[test]
fn an_answer_may_come_before_the_request_is_whole() {
    run(async {
        for (speaks, protocol) in APPS {
            let app = App::with(speaks, async |_, _| {
                Response::builder().status(413).body(full("too much")).unwrap()
            })
            .await;
            let mut client = Sidecar::new(app.address, protocol).connect().await;
            let (mut sender, body) = channel();
            let request = Request::post("http://app.example/").body(body).unwrap();
            let (response, _) = tokio::join!(client.send(request), sender.send_data("part".into()));
            assert_eq!(text(response.unwrap()).await, (413, "too much".to_owned()));
        }
    });
}

#[test]
fn hop_by_hop_fields_of_an_http1_answer_are_removed() {
    run(async {
        let app = App::raw(async |_, mut socket: tokio::net::TcpStream| {
            let _ = socket.read(&mut [0; 4096]).await;
            let answer =
                b"HTTP/1.1 200 OK\r\nconnection: x-secret, close\r\nx-secret: 1\r\nkeep-alive: 5\r\n\
                proxy-connection: x\r\nupgrade: h2c\r\nx-kept: 1\r\ncontent-length: 2\r\n\r\nok";
            let _ = socket.write_all(answer).await;
        })
        .await;
        let mut client = Sidecar::new(app.address, AppProtocol::Http).connect().await;
        let response = client.send(get("/")).await.unwrap();
        let names: Vec<&str> = response.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-kept", "content-length", "date"]);
    });
}

#[test]
fn large_bodies_pass_whole_both_ways() {
    run(async {
        for (speaks, protocol) in APPS {
            let app = App::echo(speaks).await;
            let mut client = Sidecar::new(app.address, protocol).connect().await;
            let body: Bytes = (0..8 * 1024 * 1024_u32).map(|byte| byte.to_le_bytes()[1]).collect();
            let request = Request::post("http://app.example/").body(full(body.clone())).unwrap();
            let answer = client.send(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert!(answer == body);
        }
    });
}

#[test]
fn a_slow_app_slows_its_client_and_a_slow_client_its_app() {
    run(async {
        for (speaks, protocol) in APPS {
            let sent = Rc::new(std::cell::Cell::new(0_usize));
            let counter = sent.clone();
            // Never reads the request, and sends an endless response.
            let app = App::with(speaks, async move |_, request: Request<hyper::body::Incoming>| {
                let counter = counter.clone();
                let endless = futures_util::stream::repeat_with(move || {
                    counter.set(counter.get() + 16 * 1024);
                    Ok::<_, BoxError>(Frame::data(Bytes::from_static(&[0; 16 * 1024])))
                });
                tokio::task::spawn_local(async move {
                    let _held = request;
                    std::future::pending::<()>().await;
                });
                Response::new(Box::pin(StreamBody::new(endless)) as DynBody)
            })
            .await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect_with(|builder| builder.initial_stream_window_size(65_535)).await;
            let uploaded = Rc::new(std::cell::Cell::new(0_usize));
            let counter = uploaded.clone();
            let endless = futures_util::stream::repeat_with(move || {
                counter.set(counter.get() + 16 * 1024);
                Ok::<_, BoxError>(Frame::data(Bytes::from_static(&[0; 16 * 1024])))
            });
            let request = Request::post("http://app.example/")
                .body(Box::pin(StreamBody::new(endless)) as DynBody)
                .unwrap();
            let _unread = client.send(request).await.unwrap();

            // Once nothing moves any more, the data in between is what buffers hold: mostly the kernel's, and far less
            // than there is to send.
            let mut before = (usize::MAX, usize::MAX);
            until(|| {
                let now = (sent.get(), uploaded.get());
                std::mem::replace(&mut before, now) == now && now.0 > 0 && now.1 > 0
            })
            .await;
            assert!(uploaded.get() < 16 * 1024 * 1024, "{} bytes were taken from the client", uploaded.get());
            assert!(sent.get() < 16 * 1024 * 1024, "{} bytes were taken from the app", sent.get());
        }
    });
}

#[test]
fn an_app_that_dies_amid_its_answer_resets_the_stream_and_nothing_else() {
    run(async {
        let head = "HTTP/1.1 200 OK\r\n";
        for framing in ["content-length: 100\r\n\r\npart", "transfer-encoding: chunked\r\n\r\n4\r\npart\r\n"]
        {
            let app = App::raw(async move |_, mut socket: tokio::net::TcpStream| {
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(format!("{head}{framing}").as_bytes()).await;
            })
            .await;
            let mut client = Sidecar::new(app.address, AppProtocol::Http).connect().await;
            for _ in 0..2 {
                let mut answer = client.send(get("/")).await.unwrap().into_body();
                assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
                let error = answer.frame().await.unwrap().unwrap_err();
                let cause: &h2::Error = std::error::Error::source(&error).unwrap().downcast_ref().unwrap();
                assert!(cause.is_reset() && cause.is_remote(), "{cause}");
                assert_eq!(cause.reason(), Some(h2::Reason::INTERNAL_ERROR));
            }
        }
    });
}

#[test]
fn an_app_that_does_not_answer_is_logged() {
    const CLOSED: &str =
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    const REFUSED: &str =
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
    run(async {
        let closes = App::raw(async |_, mut socket: tokio::net::TcpStream| {
            let _ = socket.read(&mut [0; 4096]).await;
        })
        .await;
        let garbage = App::raw(async |_, mut socket: tokio::net::TcpStream| {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(b"garbage\r\n\r\n").await;
        })
        .await;
        let no_app = App::no_app().await;
        for (address, protocol, status, body) in [
            (no_app, AppProtocol::Http, 503, REFUSED),
            (no_app, AppProtocol::H2c, 503, REFUSED),
            (closes.address, AppProtocol::Http, 503, CLOSED),
        ] {
            let mut client = Sidecar::new(address, protocol).connect().await;
            assert_eq!(client.get("/").await, (status, body.to_owned()));
        }
        let mut client = Sidecar::new(garbage.address, AppProtocol::Http).connect().await;
        assert_eq!(client.get("/").await.0, 502);
    });
}
