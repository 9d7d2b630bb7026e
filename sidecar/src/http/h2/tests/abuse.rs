//! Attacks end with the attacker's connection or stream; legitimate clients with similar habits are served.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http2::Builder;
use tidegate_core::policy::AppProtocol;
use tokio::sync::Notify;

use super::apps::{App, Speaks};
use super::kit::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS,
    Sidecar, WINDOW_UPDATE, block, full, get, run, until,
};
use crate::http::h2::LocalExecutor;
use crate::limits::Limits;
use crate::upstream::{BoxError, DynBody};

async fn sidecar() -> (Sidecar, App) {
    let app = App::echo(Speaks::Http1).await;
    (Sidecar::new(app.address, AppProtocol::Http), app)
}

/// Raises the client's own limit for small frames, which is not under test.
fn wide(builder: &mut Builder<LocalExecutor>) -> &mut Builder<LocalExecutor> {
    builder.initial_stream_window_size(32 * 1024).initial_connection_window_size(64 * 1024 * 1024)
}

/// Status of a stream's response, or the code of its reset or of the connection's end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}

pub(super) async fn fate(client: &mut Raw, stream: u32) -> Fate {
    let code = |payload: &[u8]| u32::from_be_bytes(payload.try_into().unwrap());
    loop {
        let Some(frame) = client.frame().await else { return Fate::Closed };
        match frame.kind {
            HEADERS if frame.stream == stream => {
                // The status comes first: from the static table (RFC 7541, appendix A), or as text of three digits.
                let indexed = [(0x88, 200), (0x8c, 400), (0x8d, 404), (0x8e, 500)];
                let known = indexed.iter().find(|(byte, _)| *byte == frame.payload[0]);
                return Fate::Status(
                    known.map_or_else(|| literal_status(&frame.payload), |(_, status)| *status),
                );
            }
            RST_STREAM if frame.stream == stream => return Fate::Reset(code(&frame.payload)),
            GOAWAY => return Fate::GoAway(code(&frame.payload[4..8])),
            _ => {}
        }
    }
}

fn literal_status(block: &[u8]) -> u16 {
    let mut decoder = Decoder(block);
    decoder.status()
}

/// Decodes a status in HPACK: a literal with an indexed name, its value Huffman-coded or not.
struct Decoder<'a>(&'a [u8]);

impl Decoder<'_> {
    fn status(&mut self) -> u16 {
        let length = self.0[1];
        let value = &self.0[2..2 + usize::from(length & 0x7f)];
        if length & 0x80 == 0 {
            return std::str::from_utf8(value).unwrap().parse().unwrap();
        }
        // Digits have codes of five (0, 1, 2) or six bits (3 to 9): RFC 7541, appendix B.
        let bits =
            value.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)) << (64 - 8 * value.len());
        let (mut at, mut status) = (0, 0);
        for _ in 0..3 {
            let five = (bits << at >> 59) as u16;
            let digit = if five <= 2 {
                at += 5;
                five
            } else {
                let six = (bits << at >> 58) as u16;
                at += 6;
                six - 0b01_1001 + 3
            };
            status = status * 10 + digit;
        }
        status
    }
}

fn with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut fields = GET.to_vec();
    match fields.iter_mut().find(|field| field.0 == name) {
        Some(field) => field.1 = value,
        None => fields.push((name, value)),
    }
    fields
}

/// The fields of requests, and what happens to each.
fn invalid_and_valid() -> Vec<(Vec<(&'static str, &'static str)>, Fate)> {
    const PROTOCOL_ERROR: Fate = Fate::Reset(1);
    // What HTTP/1 also refuses gets the same response as there.
    const BAD_REQUEST: Fate = Fate::Status(400);
    let mut connect = with(":method", "CONNECT");
    connect.retain(|(name, _)| !matches!(*name, ":path" | ":scheme"));
    let mut extended = with(":method", "CONNECT");
    extended.insert(4, (":protocol", "websocket"));
    let no_authority: Vec<_> = GET.into_iter().filter(|(name, _)| *name != ":authority").collect();
    vec![
        (with(":path", "svc/Method"), BAD_REQUEST),
        (with(":path", "*"), BAD_REQUEST),
        (with(":path", ""), PROTOCOL_ERROR),
        (with(":path", "http://other.example/"), BAD_REQUEST),
        (with(":path", "/a b"), BAD_REQUEST),
        (with(":path", "#a"), BAD_REQUEST),
        (with(":path", "/a#b"), BAD_REQUEST),
        (with(":path", "?a"), BAD_REQUEST),
        (with(":path", "/<\"`>?<\"`>"), Fate::Status(200)),
        (connect, Fate::Status(405)),
        (extended, PROTOCOL_ERROR),
        (with("host", "other.example"), BAD_REQUEST),
        (with("host", "app.example"), Fate::Status(200)),
        (with(":authority", "user@app.example"), BAD_REQUEST),
        (with(":authority", "a b"), BAD_REQUEST),
        (with(":authority", "a:x"), BAD_REQUEST),
        (with(":authority", "a:99999"), BAD_REQUEST),
        (with(":authority", "a:"), Fate::Status(200)),
        (with(":authority", ""), Fate::Status(200)),
        (no_authority, BAD_REQUEST),
        (with("te", "gzip"), PROTOCOL_ERROR),
        (with("te", "trailers"), Fate::Status(200)),
        (with("connection", "x-forwarded-client-cert"), PROTOCOL_ERROR),
        (with("transfer-encoding", "chunked"), PROTOCOL_ERROR),
        (with("upgrade", "websocket"), PROTOCOL_ERROR),
        (with("Upper-Case", "x"), PROTOCOL_ERROR),
        (with("with space", "x"), BAD_REQUEST),
        (with("a\"", "x"), BAD_REQUEST),
        (with("", "x"), BAD_REQUEST),
        (with("x-value", "a\r\nb: c"), BAD_REQUEST),
        (with("content-length", "5"), PROTOCOL_ERROR),
        (with("content-length", "x"), BAD_REQUEST),
        (with("content-length", ""), BAD_REQUEST),
        (GET.to_vec(), Fate::Status(200)),
    ]
}

#[test]
fn invalid_requests_never_reach_the_app() {
    run(async {
        let (sidecar, app) = sidecar().await;
        let mut served = 0;
        let mut client = sidecar.connect_raw().await;
        for (number, (fields, expected)) in invalid_and_valid().into_iter().enumerate() {
            let stream = 1 + 4 * u32::try_from(number).unwrap();
            client.request(stream, &fields).await.unwrap();
            let outcome = fate(&mut client, stream).await;
            assert_eq!(outcome, expected, "{fields:?}");
            served += usize::from(outcome == Fate::Status(200));
            client.request(stream + 2, &GET).await.unwrap();
            assert_eq!(fate(&mut client, stream + 2).await, Fate::Status(200), "after {fields:?}");
            served += 1;
        }
        assert_eq!(app.seen.count(), served);
    });
}

#[test]
fn a_rapid_reset_is_cut_off_while_others_are_served() {
    run(async {
        let (sidecar, app) = sidecar().await;
        let mut honest = sidecar.connect().await;
        for paced in [false, true] {
            let mut hostile = sidecar.connect_raw().await;
            let mut sent = 0;
            for number in 0..10_000_u32 {
                let stream = 1 + 2 * number;
                let opened = hostile.request(stream, &GET).await;
                if paced {
                    // Each request is accepted before it is reset.
                    tokio::task::yield_now().await;
                }
                if opened.is_err() || hostile.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await.is_err() {
                    break;
                }
                sent = number;
                if number % 100 == 0 {
                    assert_eq!(honest.get("/").await.0, 200);
                }
            }
            assert!(sent < 2_000, "cut off after {sent} resets");
            hostile.server.await.unwrap();
            assert_eq!(honest.get("/").await.0, 200);
        }
        assert!(app.seen.count() < 2_000, "{} requests reached the app", app.seen.count());
    });
}

#[test]
fn requests_that_make_us_reset_them_are_cut_off() {
    run(async {
        let (sidecar, _app) = sidecar().await;
        let mut hostile = sidecar.connect_raw().await;
        let malformed = with("te", "gzip");
        let mut sent = 0;
        for number in 0..10_000_u32 {
            if hostile.request(1 + 2 * number, &malformed).await.is_err() {
                break;
            }
            sent = number;
        }
        assert!(sent < 5_000, "cut off after {sent}");
        hostile.server.await.unwrap();
    });
}

#[test]
fn floods_of_frames_that_carry_nothing_are_cut_off() {
    run(async {
        let (sidecar, _app) = sidecar().await;
        for (kind, payload) in [
            (PING, &[0; 8][..]),
            (SETTINGS, &[]),
            (0x2, &[0, 0, 0, 0, 7]),
            (WINDOW_UPDATE, &[0, 0, 0, 1]),
            (0xbe, b"unknown kind of frame"),
        ] {
            // A client that reads the responses that it provokes, and one that does not.
            for reads in [true, false] {
                let mut hostile = sidecar.connect_raw().await;
                let stream = u32::from(kind == 0x2);
                let flood = async {
                    let mut sent = 0;
                    while sent < 100_000 && hostile.send(kind, 0, stream, payload).await.is_ok() {
                        sent += 1;
                        if reads {
                            let mut scratch = [0; 4096];
                            let read = tokio::io::AsyncReadExt::read(&mut hostile.stream, &mut scratch);
                            let _ = futures_util::FutureExt::now_or_never(read);
                        }
                    }
                    sent
                };
                let sent = flood.await;
                assert!(sent < 20_000, "frames of kind {kind:#x}: cut off after {sent}");
                hostile.server.await.unwrap();
            }
        }
    });
}

#[test]
fn a_flood_of_empty_data_is_cut_off() {
    run(async {
        let app = App::with(Speaks::Http1, async |_, request: Request<hyper::body::Incoming>| {
            let _held = request;
            std::future::pending::<Response<DynBody>>().await
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut hostile = sidecar.connect_raw().await;
        hostile.send(HEADERS, END_HEADERS, 1, &block(&with(":method", "POST"))).await.unwrap();
        let mut sent = 0;
        while sent < 100_000 && hostile.send(DATA, 0, 1, &[]).await.is_ok() {
            sent += 1;
        }
        assert!(sent < 20_000, "cut off after {sent}");
        hostile.server.await.unwrap();
    });
}

#[test]
fn a_head_without_end_is_cut_off() {
    run(async {
        let (sidecar, _app) = sidecar().await;
        let mut hostile = sidecar.connect_raw().await;
        hostile.send(HEADERS, END_STREAM, 1, &block(&GET)).await.unwrap();
        let filler = "v".repeat(1000);
        let piece = block(&[("x-filler", filler.as_str())]);
        let mut sent = 0;
        while hostile.send(CONTINUATION, 0, 1, &piece).await.is_ok() {
            sent += piece.len();
            assert!(sent < 10 * Limits::default().head_bytes, "{sent} bytes were taken");
        }
        hostile.server.await.unwrap();
    });
}

#[test]
fn heads_that_are_too_large_get_431_or_end_the_connection() {
    run(async {
        let (sidecar, app) = sidecar().await;
        let mut client = sidecar.connect().await;
        // More than the limit in decoded bytes.
        let mut large = get("/");
        for number in 0..70 {
            large.headers_mut().insert(
                http::HeaderName::try_from(format!("x-{number}")).unwrap(),
                http::HeaderValue::try_from("v".repeat(1024)).unwrap(),
            );
        }
        assert_eq!(client.send(large).await.unwrap().status(), 431);
        // Few bytes, too many fields.
        let mut many = get("/");
        for number in 0..Limits::default().header_count {
            let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
            many.headers_mut().insert(name, http::HeaderValue::from_static("v"));
        }
        assert_eq!(client.send(many).await.unwrap().status(), 431);
        assert_eq!(client.get("/").await.0, 200, "the connection lives");
        assert_eq!(app.seen.count(), 1);
    });
}

#[test]
fn ten_thousand_crumbs_of_a_large_cookie_are_refused() {
    run(async {
        let (sidecar, app) = sidecar().await;
        let mut hostile = sidecar.connect_raw().await;
        // One cookie of 3 KiB enters the dynamic table; then each repetition takes one byte.
        let cookie = "c".repeat(3 * 1024);
        let mut head = block(&GET);
        let mut literal = block(&[("cookie", cookie.as_str())]);
        literal[0] = 0x40;
        head.extend(literal);
        head.extend(std::iter::repeat_n(0xbe, 10_000));
        for (number, piece) in head.chunks(16 * 1024).enumerate() {
            let flags = if (number + 1) * 16 * 1024 >= head.len() { END_HEADERS } else { 0 };
            let (kind, flags) =
                if number == 0 { (HEADERS, flags | END_STREAM) } else { (CONTINUATION, flags) };
            if hostile.send(kind, flags, 1, piece).await.is_err() {
                break;
            }
        }
        let fate = fate(&mut hostile, 1).await;
        assert!(
            matches!(fate, Fate::Status(431) | Fate::Reset(_) | Fate::GoAway(_) | Fate::Closed),
            "{fate:?}"
        );
        assert_eq!(app.seen.count(), 0);
    });
}

#[test]
fn thirty_bytes_that_stand_for_a_whole_head_are_refused() {
    run(async {
        let (sidecar, app) = sidecar().await;
        for (times, expected) in [(18, 431), (2, 200), (3, 431)] {
            let mut hostile = sidecar.connect_raw().await;
            // A request puts a field of 3 KiB into the dynamic table; then each repetition takes one byte.
            let value = "v".repeat(3 * 1024);
            let mut head = block(&GET);
            let mut literal = block(&[("x-a", value.as_str())]);
            literal[0] = 0x40;
            head.extend(literal);
            hostile.send(HEADERS, END_HEADERS | END_STREAM, 1, &head).await.unwrap();
            assert_eq!(fate(&mut hostile, 1).await, Fate::Status(200), "named once");
            let mut head = block(&GET);
            head.extend(std::iter::repeat_n(0xbe, times));
            hostile.send(HEADERS, END_HEADERS | END_STREAM, 3, &head).await.unwrap();
            assert_eq!(fate(&mut hostile, 3).await, Fate::Status(expected), "named {times} times");
        }
        assert_eq!(app.seen.count(), 4);
    });
}

#[test]
fn more_streams_than_are_allowed_wait_or_are_refused() {
    run(async {
        let app = App::with(Speaks::Http1, async |seen, _| {
            seen.requests.borrow_mut().push(super::apps::Received {
                line: String::new(),
                headers: http::HeaderMap::new(),
                body: Bytes::new(),
                trailers: None,
            });
            std::future::pending::<Response<DynBody>>().await
        })
        .await;
        let limits = Limits { streams: 8, ..Limits::default() };
        let sidecar = Sidecar::with_limits(app.address, AppProtocol::Http, limits);
        let mut hostile = sidecar.connect_raw().await;
        for number in 0..9 {
            hostile.request(1 + 2 * number, &GET).await.unwrap();
        }
        assert_eq!(fate(&mut hostile, 17).await, Fate::Reset(7), "REFUSED_STREAM");
        until(|| app.seen.count() == 8).await;
    });
}

#[test]
fn many_small_calls_and_many_small_frames_are_not_a_flood() {
    run(async {
        for (speaks, protocol) in [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)] {
            let app = App::echo(speaks).await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect().await;
            for _ in 0..20 {
                let calls = (0..200).map(|_| {
                    let request = Request::post("http://app.example/svc/Unary").body(full("tiny")).unwrap();
                    client.sender.send_request(request)
                });
                for answer in futures_util::future::join_all(calls.collect::<Vec<_>>()).await {
                    assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "tiny");
                }
            }
            assert_eq!(app.seen.count(), 4_000);
            assert!(!client.client.is_finished() && !client.sender.is_closed(), "no GOAWAY");
        }

        let app = App::with(Speaks::Http2, async |_, request: Request<hyper::body::Incoming>| {
            Response::new(Box::pin(request.into_body().map_err(BoxError::from)) as DynBody)
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect_with(wide).await;
        let frames =
            (0..20_000).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"twenty bytes of data"))));
        let body = Box::pin(StreamBody::new(futures_util::stream::iter(frames))) as DynBody;
        let request = Request::post("http://app.example/svc/Stream").body(body).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 20_000 * 20);
        assert!(!client.client.is_finished() && !client.sender.is_closed(), "no GOAWAY");
    });
}

#[test]
fn small_frames_may_wait_for_a_slow_app() {
    run(async {
        let is_reading = Rc::new(Notify::new());
        let seen_reading = is_reading.clone();
        let started = Rc::new(Cell::new(0));
        let starts = started.clone();
        let app = App::with(Speaks::Http2, async move |_, request: Request<hyper::body::Incoming>| {
            starts.set(starts.get() + 1);
            seen_reading.notified().await;
            Response::new(Box::pin(request.into_body().map_err(BoxError::from)) as DynBody)
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect_with(wide).await;
        let calls = (0..10).map(|_| {
            let frame = || Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"twenty bytes of data")));
            let body = StreamBody::new(futures_util::stream::iter((0..4_000).map(move |_| frame())));
            let request =
                Request::post("http://app.example/svc/Stream").body(Box::pin(body) as DynBody).unwrap();
            tokio::task::spawn_local(client.sender.send_request(request))
        });
        let calls: Vec<_> = calls.collect();
        until(|| started.get() == 10).await;
        is_reading.notify_waiters();
        for call in calls {
            let answer = call.await.unwrap().unwrap().into_body().collect().await.unwrap();
            assert_eq!(answer.to_bytes().len(), 4_000 * 20);
        }
        assert!(!client.client.is_finished() && !client.sender.is_closed(), "no GOAWAY");
        assert_eq!(app.seen.connections.get(), 1);
    });
}
