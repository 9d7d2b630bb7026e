//! Policy changes, graceful shutdowns, and connections that end.

use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tidegate_core::policy::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::apps::{App, Speaks};
use super::kit::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, GET, GOAWAY, HEADERS, PING, SETTINGS, Sidecar, block, encode,
    full, get, run, text, until,
};
use crate::http::local_reply;
use crate::lifeline::{Cause, Phase, Wait};
use crate::limits::Limits;
use crate::upstream::{ConnectError, ConnectionCounts, DynBody, ProxyError, UpstreamError, Violation};

/// The payload of h2's ping that checks whether its GOAWAY was read.
const SHUTDOWN_PING: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// An app that waits for the end of its request before it responds.
async fn patient_app(speaks: Speaks) -> App {
    App::with(speaks, async |_, request: Request<hyper::body::Incoming>| {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(full(body))
    })
    .await
}

#[test]
fn a_refused_grpc_call_gets_a_status_of_grpc_without_a_body() {
    run(async {
        let app = App::no_app().await;
        let sidecar = Sidecar::new(app, AppProtocol::H2c);
        let mut client = sidecar.connect().await;
        for (is_allowed, status, message) in
            [(false, "7", "RBAC: access denied"), (true, "14", "upstream connect")]
        {
            sidecar.allow(is_allowed);
            let call =
                Request::post("http://app.example/a.B/C").header("content-type", "application/grpc+proto");
            let response = client.send(call.body(full("hi")).unwrap()).await.unwrap();
            let headers = response.headers();
            assert_eq!(headers["content-type"], "application/grpc");
            assert_eq!(headers["grpc-status"], status);
            assert!(headers["grpc-message"].to_str().unwrap().starts_with(message));
            assert!(!headers.contains_key("content-length") && headers.contains_key("date"));
            assert!(response.body().is_end_stream());
            assert_eq!(text(response).await, (200, String::new()));
        }
    });
}

#[test]
fn a_refused_stream_gets_403_and_the_connection_lives() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect().await;
        for _ in 0..3 {
            sidecar.allow(false);
            let response = client.send(get("/")).await.unwrap();
            assert_eq!(response.headers()["content-length"], "19");
            assert_eq!(response.headers()["content-type"], "text/plain");
            assert!(response.headers().contains_key("date"));
            assert_eq!(response.headers().len(), 3);
            assert_eq!(text(response).await, (403, "RBAC: access denied".to_owned()));

            let mut head = get("/");
            *head.method_mut() = Method::HEAD;
            let response = client.send(head).await.unwrap();
            assert_eq!(response.headers()["content-length"], "19");
            assert_eq!(text(response).await, (403, String::new()));

            sidecar.allow(true);
            assert_eq!(client.get("/").await.0, 200);
        }
        assert_eq!(app.seen.count(), 3, "what was refused never reached the app");
    });
}

#[test]
fn a_refused_upload_is_cut_off_and_the_next_request_is_served() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect().await;
        sidecar.allow(false);
        let body = full(vec![0; 4 * 1024 * 1024]);
        let request = Request::post("http://app.example/").body(body).unwrap();
        assert_eq!(client.send(request).await.unwrap().status(), 403);
        sidecar.allow(true);
        let request = Request::post("http://app.example/").body(full("after")).unwrap();
        assert_eq!(text(client.send(request).await.unwrap()).await, (200, "after".to_owned()));
    });
}

#[test]
fn a_finishing_connection_sends_goaway_and_serves_requests_in_flight() {
    run(async {
        for (speaks, protocol) in [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)] {
            let app = patient_app(speaks).await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect_raw().await;
            let mut post = GET;
            post[0].1 = "POST";
            client.send(HEADERS, END_HEADERS, 1, &block(&post)).await.unwrap();
            client.send(DATA, 0, 1, b"first ").await.unwrap();
            until(|| app.seen.connections.get() == 1).await;

            client.line.finish(Cause::Draining, Duration::from_secs(30));
            client.find(|frame| frame.kind == GOAWAY && frame.payload[4..8] == [0; 4]).await.unwrap();
            client.send(DATA, END_STREAM, 1, b"last").await.unwrap();
            let head = client.find(|frame| frame.kind == HEADERS && frame.stream == 1).await.unwrap();
            assert_eq!(head.payload[0], 0x88, ":status: 200");
            let body = client.find(|frame| frame.kind == DATA && frame.stream == 1).await.unwrap();
            assert_eq!(body.payload, b"first last");
            // The client has read the GOAWAY, which the sidecar checks by a ping.
            client.send(PING, ACK, 0, &SHUTDOWN_PING).await.unwrap();
            assert!(client.find(|_| false).await.is_none(), "the end");
            client.server.await.unwrap();
        }
    });
}

#[test]
fn goaway_comes_twice_so_that_a_request_on_its_way_is_served() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect_raw().await;
        client.request(1, &GET).await.unwrap();
        client.find(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await.unwrap();

        client.line.close_gracefully(Cause::Draining, Duration::from_secs(2), Duration::from_secs(30));
        let last_stream = |frame: &Frame| u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
        let first = client.find(|frame| frame.kind == GOAWAY).await.unwrap();
        assert_eq!(last_stream(&first), u32::MAX >> 1, "nothing is turned away yet");
        client.find(|frame| frame.kind == PING && frame.payload == SHUTDOWN_PING).await.unwrap();
        // This request has crossed the GOAWAY.
        client.request(3, &GET).await.unwrap();
        let head = client.find(|frame| frame.kind == HEADERS && frame.stream == 3).await.unwrap();
        assert_eq!(head.payload[0], 0x88, ":status: 200");
        client.send(PING, ACK, 0, &SHUTDOWN_PING).await.unwrap();
        let second = client.find(|frame| frame.kind == GOAWAY).await.unwrap();
        assert_eq!(last_stream(&second), 3);
        assert!(client.find(|_| false).await.is_none(), "the end");
        client.server.await.unwrap();
    });
}

#[test]
fn an_idle_finishing_connection_ends_at_once() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect().await;
        client.get("/").await;
        client.line.finish(Cause::PolicyChanged, Duration::from_secs(30));
        client.client.await.unwrap().expect("an orderly end");
        client.server.await.unwrap();
    });
}

#[test]
fn requests_that_outlive_the_grace_period_are_cut_off_on_both_sides() {
    run(async {
        let app_saw_the_end = Rc::new(Cell::new(false));
        let seen = app_saw_the_end.clone();
        let app = App::raw(async move |_, mut socket: tokio::net::TcpStream| {
            while socket.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
            seen.set(true);
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect_raw().await;
        client.request(1, &GET).await.unwrap();
        until(|| app.seen.connections.get() == 1).await;
        client.line.finish(Cause::PolicyChanged, Duration::from_millis(500));
        client.find(|frame| frame.kind == GOAWAY).await.unwrap();
        sidecar.expire_after(Duration::from_secs(1));
        assert!(client.find(|frame| frame.kind == HEADERS).await.is_none(), "the end, without an answer");
        client.server.await.unwrap();
        until(|| app_saw_the_end.get()).await;
    });
}

#[test]
fn an_idle_connection_gets_goaway_when_its_time_is_up() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let limits = Limits::default();
        let mut client = sidecar.connect_raw().await;
        client.request(1, &GET).await.unwrap();
        client.find(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await.unwrap();
        // The stream's task has dropped its log once the next stream's response is here; but the deadline counts from
        // the last of them.
        sidecar.expire_after(limits.idle - Duration::from_secs(60));
        assert_eq!(client.line.phase(), Phase::Open);
        sidecar.expire_after(limits.idle + Duration::from_secs(60));
        assert_eq!(client.line.phase(), Phase::Closed(Cause::Deadline(Wait::Idle)));
        let goaway = client.find(|frame| frame.kind == GOAWAY).await.unwrap();
        assert_eq!(goaway.payload[4..8], [0; 4], "NO_ERROR");
        // The sidecar does not wait long for a client that does not respond.
        client.server.await.unwrap();
    });
}

#[test]
fn a_client_without_a_preface_is_cut_off() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let raw = sidecar.connect_silent();
        tokio::task::yield_now().await;
        sidecar.expire_after(Limits::default().headers);
        raw.server.await.unwrap();
    });
}

#[test]
fn a_client_that_disconnects_cancels_its_requests() {
    run(async {
        for (speaks, protocol) in [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)] {
            let dropped = Rc::new(Cell::new(0));
            let counter = dropped.clone();
            let started = Rc::new(Cell::new(0));
            let starts = started.clone();
            struct OnDrop(Rc<Cell<usize>>);
            impl Drop for OnDrop {
                fn drop(&mut self) {
                    self.0.set(self.0.get() + 1);
                }
            }
            let app = App::with(speaks, async move |_, _| {
                let _guard = OnDrop(counter.clone());
                starts.set(starts.get() + 1);
                std::future::pending::<Response<DynBody>>().await
            })
            .await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect().await;
            // One stream is reset, the other's connection is cut.
            let reset = tokio::task::spawn_local(client.sender.send_request(get("/")));
            until(|| started.get() == 1).await;
            reset.abort();
            until(|| dropped.get() == 1).await;
            let mut cut = sidecar.connect_raw().await;
            cut.request(1, &GET).await.unwrap();
            until(|| started.get() == 2).await;
            drop(cut.stream);
            until(|| dropped.get() == 2).await;
            cut.server.await.unwrap();
            assert!(!client.server.is_finished());
        }
    });
}

#[test]
fn a_connection_to_the_app_that_ended_is_dialled_again() {
    run(async {
        for (speaks, protocol) in [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)] {
            // Serves one request per connection.
            let app = App::raw(async move |_, socket: tokio::net::TcpStream| {
                let served = Rc::new(Cell::new(false));
                let flag = served.clone();
                let service = hyper::service::service_fn(move |_| {
                    flag.set(true);
                    async { Ok::<_, std::convert::Infallible>(Response::new(full("once"))) }
                });
                let io = hyper_util::rt::TokioIo::new(socket);
                match speaks {
                    Speaks::Http1 => {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
                        tokio::select! {
                            _ = connection.as_mut() => {}
                            () = until(|| served.get()) => {
                                connection.as_mut().graceful_shutdown();
                                let _ = connection.await;
                            }
                        }
                    }
                    Speaks::Http2 => {
                        let builder =
                            hyper::server::conn::http2::Builder::new(crate::http::h2::LocalExecutor);
                        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
                        tokio::select! {
                            _ = connection.as_mut() => {}
                            () = until(|| served.get()) => {
                                connection.as_mut().graceful_shutdown();
                                let _ = connection.await;
                            }
                        }
                    }
                }
            })
            .await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect().await;
            for served in 1..=20 {
                assert_eq!(client.get("/").await, (200, "once".to_owned()));
                // The app's GOAWAY arrives.
                until(|| {
                    sidecar.env.upstreams.sweep(Instant::now());
                    sidecar.env.upstreams.connections() == ConnectionCounts::default()
                })
                .await;
                assert_eq!(app.seen.connections.get(), served);
            }
        }
    });
}

#[test]
fn many_requests_share_few_connections_and_a_burst_dials_once() {
    run(async {
        let app = App::echo(Speaks::Http2).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect().await;
        let burst = (0..50).map(|_| client.sender.send_request(get("/"))).collect::<Vec<_>>();
        for answer in futures_util::future::join_all(burst).await {
            assert_eq!(answer.unwrap().status(), 200);
        }
        assert_eq!(app.seen.connections.get(), 1);
        sidecar.env.upstreams.sweep(Instant::now() + Duration::from_secs(61));
        assert_eq!(sidecar.env.upstreams.connections(), ConnectionCounts::default());
        assert_eq!(client.get("/").await.0, 200);
        assert_eq!(app.seen.connections.get(), 2);
    });
}

#[test]
fn an_http1_connection_waits_no_longer_than_its_limit() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect().await;
        client.get("/").await;
        assert_eq!(sidecar.env.upstreams.connections().http1, 1);
        sidecar.env.upstreams.sweep(Instant::now() + Limits::default().upstream_idle);
        assert_eq!(sidecar.env.upstreams.connections().http1, 0);
    });
}

#[test]
fn an_error_says_how_to_tell_the_client() {
    let cases = [
        (ConnectError::Refused(ErrorKind::ConnectionRefused.into()).into(), 503, "UF"),
        (ConnectError::Timeout.into(), 504, "UT"),
        (ConnectError::OtherIdentity("another".to_owned()).into(), 503, "UF"),
        (ConnectError::TlsTimeout.into(), 504, "UT"),
        (ConnectError::Proxy(ProxyError::TwoLayers).into(), 503, "UF"),
        (ConnectError::Proxy(ProxyError::NoAnswer).into(), 504, "UT"),
        (UpstreamError::Protocol(Violation::Header), 502, "UPE"),
        (UpstreamError::Closed, 503, "UC"),
        (UpstreamError::Reset(h2::Reason::CANCEL), 503, "UC"),
    ];
    for (error, status, flag) in cases {
        assert_eq!(
            (local_reply::upstream_failed(&error).status, local_reply::upstream_failed(&error).flag.code()),
            (status, flag),
            "{error}"
        );
    }
}

#[test]
fn a_connection_with_a_stream_in_flight_is_not_idle() {
    run(async {
        let app =
            App::with(Speaks::Http1, async |_, _| std::future::pending::<Response<DynBody>>().await).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect_raw().await;
        client.request(1, &GET).await.unwrap();
        until(|| app.seen.connections.get() == 1).await;
        sidecar.expire_after(Limits::default().idle * 2);
        assert_eq!(client.line.phase(), Phase::Open);
        assert!(client.find(|frame| frame.kind == HEADERS || frame.kind != GOAWAY).await.is_some());
    });
}

#[test]
fn bytes_that_were_read_before_are_part_of_the_connection() {
    run(async {
        let app = App::echo(Speaks::Http2).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http).plaintext();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(encode(SETTINGS, 0, 0, &[]));
        bytes.extend(encode(HEADERS, END_HEADERS | END_STREAM, 1, &block(&GET)));
        for cut in [1, 24, 33, 40, bytes.len()] {
            let mut client = sidecar.connect_after(&bytes[..cut]);
            client.stream.write_all(&bytes[cut..]).await.unwrap();
            let head = client.find(|frame| frame.kind == HEADERS && frame.stream == 1).await.unwrap();
            assert_eq!(head.payload[0], 0x88, ":status: 200");
        }
    });
}
