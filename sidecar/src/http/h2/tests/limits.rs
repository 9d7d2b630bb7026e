//! Limits of one stream, one client and one app, and the responses beyond them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use tidegate_core::policy::AppProtocol;
use tokio::sync::Semaphore;

use super::abuse::{Fate, fate};
use super::apps::{App, Speaks};
use super::kit::{
    DATA, END_STREAM, Frame, GET, HEADERS, POST, RST_STREAM, Raw, SETTINGS, Sidecar, full, get, run, text,
    until,
};
use crate::limits::Limits;
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::{AccessLog, AccessLogFormat, AccessLogSink, AccessLogTarget};
use crate::telemetry::metrics::DataPlaneMetrics;
use crate::upstream::{BoxError, DynBody};

const APPS: [(Speaks, AppProtocol); 2] =
    [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)];

/// An app that responds to each request on command, and counts the requests that it holds.
async fn held_app(speaks: Speaks, leave: &Rc<Semaphore>) -> App {
    let leave = leave.clone();
    App::with(speaks, async move |seen, _request| {
        seen.held.set(seen.held.get() + 1);
        leave.acquire().await.unwrap().forget();
        seen.held.set(seen.held.get() - 1);
        Response::new(full("served"))
    })
    .await
}

/// Telemetry whose log lines can be read.
struct Log {
    folder: tempfile::TempDir,
    metrics: DataPlaneMetrics,
}

impl Log {
    fn new() -> (Self, Telemetry) {
        let folder = tempfile::tempdir().unwrap();
        let target = AccessLogTarget::File(folder.path().join("log"));
        let sink = AccessLogSink::open(&target).unwrap();
        let metrics = DataPlaneMetrics::new(None);
        let telemetry = Telemetry::new(&metrics, Some(AccessLog::new(AccessLogFormat::Json, sink)));
        (Self { folder, metrics }, telemetry)
    }

    fn lines(&self, sidecar: &Sidecar) -> Vec<Value> {
        sidecar.env.telemetry.flush();
        Telemetry::records_in(&self.folder.path().join("log"))
    }

    /// The log line of the request for this path, once it is written.
    async fn line(&self, sidecar: &Sidecar, path: &str) -> Value {
        let mut found = None;
        until(|| {
            found = self.lines(sidecar).into_iter().find(|line| line["path"] == path);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    fn page(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(self.metrics.clone()));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        page
    }
}

fn with_path(
    fields: [(&'static str, &'static str); 4],
    path: &'static str,
) -> [(&'static str, &'static str); 4] {
    let mut fields = fields;
    fields[3].1 = path;
    fields
}

/// Answers more than a client without a window takes, nothing behind a head, nothing at all, or what it was sent.
async fn slow_app(speaks: Speaks) -> App {
    App::with(speaks, async |_, request: Request<hyper::body::Incoming>| match request.uri().path() {
        "/large" => Response::new(full(vec![b'x'; 100 * 1024])),
        "/silent" => {
            let frames = futures_util::stream::pending::<Result<_, BoxError>>();
            Response::new(Box::pin(StreamBody::new(frames)) as DynBody)
        }
        "/never" => std::future::pending().await,
        _ => {
            let body = request.into_body().collect().await;
            Response::new(full(body.map(|body| body.to_bytes()).unwrap_or_default()))
        }
    })
    .await
}

/// Four requests: one whose body does not come, one whose client does not read, and two whose app is silent. The heads
/// of two answers have arrived, but no data.
async fn open_stalled(client: &mut Raw) {
    // SETTINGS_INITIAL_WINDOW_SIZE 0: the sidecar may send no data.
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await.unwrap();
    client.open(1, &with_path(POST, "/stalled")).await.unwrap();
    client.send(DATA, 0, 1, b"some of it").await.unwrap();
    client.request(3, &with_path(GET, "/large")).await.unwrap();
    client.request(5, &with_path(GET, "/silent")).await.unwrap();
    client.request(7, &with_path(GET, "/never")).await.unwrap();
    // The heads of both responses have arrived, but no data.
    for _ in 0..2 {
        let head = client.find(|frame| frame.kind == HEADERS).await.unwrap();
        assert!([3, 5].contains(&head.stream) && head.flags & END_STREAM == 0);
    }
}

#[test]
fn a_stalled_stream_ends_and_the_others_continue() {
    run(async {
        for (speaks, protocol) in APPS {
            let app = slow_app(speaks).await;
            let (log, telemetry) = Log::new();
            let limits = Limits { body: Duration::from_secs(20), ..Limits::default() };
            let sidecar = Sidecar::telling(app.address, protocol, limits.clone(), telemetry);
            let mut client = sidecar.connect_raw().await;
            open_stalled(&mut client).await;
            until(|| sidecar.env.streams.len() == 4).await;
            sidecar.expire_after(limits.body - Duration::from_secs(1));
            sidecar.expire_after(limits.body);
            let mut ends = Vec::new();
            while ends.len() < 3 {
                let is_end = |frame: &Frame| {
                    frame.kind == RST_STREAM || (frame.kind == HEADERS && frame.flags & END_STREAM == 0)
                };
                let frame = client.find(is_end).await.unwrap();
                ends.push((frame.stream, frame.kind, frame.payload.last().copied()));
            }
            ends.sort_unstable();
            assert_eq!(ends[0].0, 1, "408 for the body that did not come");
            assert_eq!(ends[1], (3, RST_STREAM, Some(8)), "CANCEL: the client does not read");
            assert_eq!(ends[2], (5, RST_STREAM, Some(2)), "INTERNAL_ERROR: the app fell silent");
            let of = async |path: &str| {
                let line = log.line(&sidecar, path).await;
                (
                    line["response_code"].as_u64().unwrap(),
                    line["response_flags"].as_str().unwrap().to_owned(),
                    line["response_code_details"].as_str().unwrap().to_owned(),
                )
            };
            let told = |code, flag: &str, details: &str| (code, flag.to_owned(), details.to_owned());
            assert_eq!(of("/large").await, told(200, "DT", "stream_idle_timeout"));
            assert_eq!(of("/silent").await, told(200, "UT", "stream_idle_timeout"));

            // The window opens: the response arrives, and the connection still works.
            client.send(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).await.unwrap();
            client.find(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await.unwrap();
            assert_eq!(of("/stalled").await, told(408, "DT", "request_body_timeout"));
            client.open(9, &POST).await.unwrap();
            client.send(DATA, END_STREAM, 9, b"whole").await.unwrap();
            assert_eq!(fate(&mut client, 9).await, Fate::Status(200));
            sidecar.expire_after(Duration::ZERO);
            assert_eq!(sidecar.env.streams.len(), 1, "the one whose app thinks lives on");
        }
    });
}

#[test]
fn an_upload_that_outlives_its_answer_has_its_deadline_and_keeps_its_place() {
    run(async {
        let app = App::raw(async |_, mut socket: tokio::net::TcpStream| {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut buffer = vec![0; 16 * 1024];
            let mut is_answered = false;
            while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                if !std::mem::replace(&mut is_answered, true) {
                    let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno";
                    socket.write_all(answer).await.unwrap();
                }
            }
        })
        .await;
        let limits = Limits { upstream_requests: 1, ..Limits::default() };
        let sidecar = Sidecar::with_limits(app.address, AppProtocol::Http, limits.clone());
        let mut client = sidecar.connect_raw().await;
        client.open(1, &POST).await.unwrap();
        assert_eq!(fate(&mut client, 1).await, Fate::Status(404));
        client.find(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await.unwrap();
        client.request(3, &GET).await.unwrap();
        assert_eq!(fate(&mut client, 3).await, Fate::Status(503), "the app still has the first one");
        sidecar.expire_after(limits.body);
        let reset = client.find(|frame| frame.kind == RST_STREAM && frame.stream == 1).await.unwrap();
        assert_eq!(reset.payload, [0; 4], "NO_ERROR: there is an answer");
        let mut stream = 5;
        loop {
            client.request(stream, &GET).await.unwrap();
            match fate(&mut client, stream).await {
                Fate::Status(503) => stream += 2,
                fate => break assert_eq!(fate, Fate::Status(404)),
            }
        }
    });
}

#[test]
fn one_client_leaves_room_for_others_and_is_refused_at_once() {
    run(async {
        for (speaks, protocol) in APPS {
            let leave = Rc::new(Semaphore::new(0));
            let app = held_app(speaks, &leave).await;
            let (log, telemetry) = Log::new();
            let limits = Limits { upstream_requests: 16, ..Limits::default() };
            let sidecar = Sidecar::telling(app.address, protocol, limits, telemetry);
            let mut greedy = sidecar.connect().await;
            let held: Vec<_> =
                (0..12).map(|_| tokio::task::spawn_local(greedy.sender.send_request(get("/held")))).collect();
            until(|| app.seen.held.get() == 12).await;
            // The client has three quarters, shared with its next connection.
            for mut client in [sidecar.connect().await, greedy] {
                let (status, body) = client.get("/greedy").await;
                assert_eq!((status, body.ends_with("reset reason: overflow")), (503, true));
            }
            let line = log.line(&sidecar, "/greedy").await;
            assert_eq!(line["response_flags"], "UO");
            assert_eq!(
                line["response_code_details"],
                "upstream_reset_before_response_started{client_overflow}"
            );
            assert!(
                log.page()
                    .contains("tidegate_requests_limited_total{limit=\"upstream_requests_of_client\"} 2\n")
            );

            sidecar.set_host(8);
            let mut other = sidecar.connect().await;
            let served = tokio::task::spawn_local(other.sender.send_request(get("/")));
            until(|| app.seen.held.get() == 13).await;
            leave.add_permits(13);
            assert_eq!(text(served.await.unwrap().unwrap()).await, (200, "served".to_owned()));
            for request in held {
                // The connection was dropped after the last response to it.
                drop(request.await.unwrap());
            }
            if speaks == Speaks::Http1 {
                assert!(app.seen.connections.get() <= 13, "{} connections", app.seen.connections.get());
            }
        }
    });
}

/// An app that allows this many requests on a connection, and responds to each on command.
async fn narrow_app(most: u32, leave: &Rc<Semaphore>) -> App {
    let leave = leave.clone();
    App::raw(async move |seen, socket: tokio::net::TcpStream| {
        let mut builder = h2::server::Builder::new();
        let mut connection =
            builder.max_concurrent_streams(most).handshake::<_, bytes::Bytes>(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let (seen, leave) = (seen.clone(), leave.clone());
            tokio::task::spawn_local(async move {
                let _request = request;
                seen.held.set(seen.held.get() + 1);
                leave.acquire().await.unwrap().forget();
                seen.held.set(seen.held.get() - 1);
                respond.send_response(Response::new(()), true).unwrap();
            });
        }
    })
    .await
}

#[test]
fn requests_beyond_an_app_s_limit_are_queued_and_refused_after_their_time() {
    run(async {
        let leave = Rc::new(Semaphore::new(0));
        let app = narrow_app(2, &leave).await;
        let limits = Limits {
            upstream_connections: 4,
            upstream_queue: Duration::from_millis(300),
            ..Limits::default()
        };
        let (log, telemetry) = Log::new();
        let sidecar = Sidecar::telling(app.address, AppProtocol::H2c, limits, telemetry);
        // Eight places; six are one client's share.
        let mut greedy = sidecar.connect().await;
        let mut requests: Vec<_> =
            (0..7).map(|_| tokio::task::spawn_local(greedy.sender.send_request(get("/greedy")))).collect();
        until(|| app.seen.held.get() == 6).await;
        sidecar.set_host(8);
        let mut other = sidecar.connect().await;
        let served = tokio::task::spawn_local(other.sender.send_request(get("/other")));
        // It overtakes the waiting request.
        until(|| app.seen.held.get() == 7).await;
        assert!(app.seen.connections.get() <= 4);
        let line = log.line(&sidecar, "/greedy").await;
        assert_eq!(line["response_code"], 503);
        assert_eq!(line["response_flags"], "UO");
        assert_eq!(line["response_code_details"], "upstream_reset_before_response_started{queue_timeout}");
        assert!(log.page().contains("tidegate_requests_limited_total{limit=\"upstream_queue_timeout\"} 1\n"));
        assert_eq!(requests.pop().unwrap().await.unwrap().unwrap().status(), 503);

        // The waiting request gets the room that is freed.
        let waits = tokio::task::spawn_local(greedy.sender.send_request(get("/waits")));
        until(|| sidecar.env.streams.len() >= 8).await;
        leave.add_permits(7);
        assert_eq!(served.await.unwrap().unwrap().status(), 200);
        for request in requests {
            assert_eq!(request.await.unwrap().unwrap().status(), 200);
        }
        leave.add_permits(1);
        assert_eq!(waits.await.unwrap().unwrap().status(), 200);
    });
}

#[test]
fn a_refused_stream_is_tried_on_a_new_connection_although_an_older_one_has_room() {
    run(async {
        let leave = Rc::new(Semaphore::new(0));
        let is_free = Rc::new(Cell::new(false));
        let (app_leave, first_is_free) = (leave.clone(), is_free.clone());
        let app = App::raw(async move |seen, socket: tokio::net::TcpStream| {
            let number = seen.connections.get();
            let mut builder = h2::server::Builder::new();
            let mut connection =
                builder.max_concurrent_streams(1).handshake::<_, bytes::Bytes>(socket).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let (seen, leave, is_free) = (seen.clone(), app_leave.clone(), first_is_free.clone());
                tokio::task::spawn_local(async move {
                    match number {
                        1 => {
                            seen.held.set(1);
                            leave.acquire().await.unwrap().forget();
                        }
                        2 => {
                            leave.add_permits(1);
                            until(|| is_free.get()).await;
                            return respond.send_reset(h2::Reason::REFUSED_STREAM);
                        }
                        _ => {}
                    }
                    respond.send_response(Response::new(()), true).unwrap();
                });
            }
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect().await;
        let first = tokio::task::spawn_local(client.sender.send_request(get("/")));
        until(|| app.seen.held.get() == 1).await;
        let refused = tokio::task::spawn_local(client.sender.send_request(get("/")));
        assert_eq!(first.await.unwrap().unwrap().status(), 200);
        is_free.set(true);
        assert_eq!(refused.await.unwrap().unwrap().status(), 200);
        assert_eq!(app.seen.connections.get(), 3);
    });
}

#[test]
fn an_app_that_accepts_no_requests_is_not_waited_for_and_not_dialled_for_each() {
    run(async {
        let leave = Rc::new(Semaphore::new(0));
        let app = narrow_app(0, &leave).await;
        let limits = Limits { upstream_queue: Duration::from_millis(50), ..Limits::default() };
        let sidecar = Sidecar::with_limits(app.address, AppProtocol::H2c, limits);
        let mut client = sidecar.connect().await;
        for _ in 0..3 {
            let calls: Vec<_> = (0..20).map(|_| client.sender.send_request(get("/"))).collect();
            for answer in futures_util::future::join_all(calls).await {
                assert_eq!(answer.unwrap().status(), 503);
            }
        }
        assert_eq!(app.seen.connections.get(), 1);
    });
}

#[test]
fn an_app_gets_more_connections_than_a_few_when_its_requests_last() {
    run(async {
        let leave = Rc::new(Semaphore::new(0));
        let app = held_app(Speaks::Http2, &leave).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(sidecar.connect().await);
        }
        let calls = clients.iter_mut().flat_map(|client| {
            (0..100)
                .map(|_| tokio::task::spawn_local(client.sender.send_request(get("/"))))
                .collect::<Vec<_>>()
        });
        let calls: Vec<_> = calls.collect();
        until(|| app.seen.held.get() == 1000).await;
        assert_eq!(app.seen.connections.get(), 10);
        leave.add_permits(1000);
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().status(), 200);
        }
    });
}
