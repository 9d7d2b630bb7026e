//! Messages that decode but are not valid HTTP: each fails its own stream only, on either side.

use std::rc::Rc;

use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tidegate_core::policy::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::abuse::{Fate, fate};
use super::apps::{App, Seen, Speaks};
use super::kit::{
    CONTINUATION, END_HEADERS, END_STREAM, GET, HEADERS, Raw, SETTINGS, Sidecar, block, encode, full, get,
    indexed, literal, run, until,
};
use crate::limits::Limits;
use crate::telemetry::Telemetry;

const BAD_REQUEST: Fate = Fate::Status(400);
const RESET: Fate = Fate::Reset(1);
/// Index of the newest entry of the dynamic table.
const NEWEST: u8 = 62;
const PRIORITY: u8 = 0x20;

/// A request's head in which these fields replace those of the same name, or are appended.
fn head(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let given = |name: &str| fields.iter().find(|field| field.0 == name.as_bytes());
    let usual = GET.iter().map(|(name, value)| {
        literal(0x00, name.as_bytes(), given(name).map_or(value.as_bytes(), |field| field.1))
    });
    let is_usual = |name: &[u8]| GET.iter().any(|field| field.0.as_bytes() == name);
    let others = fields.iter().filter(|field| !is_usual(field.0));
    usual.chain(others.map(|(name, value)| literal(0x00, name, value))).flatten().collect()
}

async fn send(client: &mut Raw, stream: u32, head: &[u8]) {
    client.send(HEADERS, END_HEADERS | END_STREAM, stream, head).await.unwrap();
}

/// Checks that a valid request on this stream is served.
async fn assert_served(client: &mut Raw, stream: u32) {
    client.request(stream, &GET).await.unwrap();
    assert_eq!(fate(client, stream).await, Fate::Status(200), "stream {stream}");
}

/// A field and its value, what happens to a request with it, and the details in its log record.
type Malformed = (&'static [u8], &'static [u8], Fate, &'static str);

const CASES: [Malformed; 20] = [
    (b":path", b"/\xff", BAD_REQUEST, "http2.invalid_path"),
    (b":path", b"/\xc3", BAD_REQUEST, "http2.invalid_path"),
    (b":path", b"/\x01", BAD_REQUEST, "http2.invalid_path"),
    (b":path", b"/a\x7f", BAD_REQUEST, "http2.invalid_path"),
    (b":path", b"#a", BAD_REQUEST, "http2.invalid_path"),
    (b":authority", b"a\xff", BAD_REQUEST, "http2.invalid_authority"),
    (b":authority", b"a b", BAD_REQUEST, "http2.invalid_authority"),
    (b":method", b"G\xff", BAD_REQUEST, "http2.invalid_method"),
    (b":method", b"GE T", BAD_REQUEST, "http2.invalid_method"),
    (b":method", b"", BAD_REQUEST, "http2.invalid_method"),
    (b":scheme", b"\xff", RESET, "http2.invalid_scheme"),
    (b":scheme", b"ht tp", RESET, "http2.invalid_scheme"),
    (b":status", b"200", RESET, "http2.invalid_pseudo_header"),
    (b":other", b"x", RESET, "http2.invalid_pseudo_header"),
    (b"x-a", b"a\x01", BAD_REQUEST, "http2.invalid_header"),
    (b"x-a", b"a\0", BAD_REQUEST, "http2.invalid_header"),
    (b"x-\xff", b"a", BAD_REQUEST, "http2.invalid_header"),
    (b"x a", b"a", BAD_REQUEST, "http2.invalid_header"),
    (b"X-A", b"a", RESET, "http2.upper_case_header"),
    (b"connection", b"close", RESET, "http2.connection_header"),
];

#[test]
fn a_malformed_request_fails_alone_and_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    run(async {
        let app = App::with(Speaks::Http1, async |seen: Rc<Seen>, request: Request<Incoming>| {
            if request.uri().path() == "/wait" {
                seen.connections.set(100);
                until(|| seen.connections.get() == 200).await;
            }
            Response::new(full("answer"))
        })
        .await;
        let telemetry = Telemetry::in_file(&path);
        let sidecar = Sidecar::telling(app.address, AppProtocol::Http, Limits::default(), telemetry);
        let mut client = sidecar.connect_raw().await;
        send(&mut client, 1, &head(&[(b":path", b"/wait")])).await;
        until(|| app.seen.connections.get() == 100).await;
        let mut stream = 3;
        for (name, value, expected, _) in &CASES {
            let case = format!("{}: {}", name.escape_ascii(), value.escape_ascii());
            send(&mut client, stream, &head(&[(name, value), (b"user-agent", b"test/1")])).await;
            assert_eq!(fate(&mut client, stream).await, *expected, "{case}");
            assert_served(&mut client, stream + 2).await;
            stream += 4;
        }
        app.seen.connections.set(200);
        assert_eq!(fate(&mut client, 1).await, Fate::Status(200), "the request beside them");

        let lines = || {
            sidecar.env.telemetry.flush();
            let lines = Telemetry::records_in(&path).into_iter();
            lines.filter(|line| line["response_flags"] == "DPE").collect::<Vec<_>>()
        };
        until(|| lines().len() == CASES.len()).await;
        for (line, (name, value, expected, details)) in lines().iter().zip(&CASES) {
            assert_eq!(line["response_code_details"], *details, "{line}");
            assert_eq!(line["response_code"], if *expected == RESET { 0 } else { 400 }, "{line}");
            assert_eq!((&line["protocol"], &line["user_agent"]), (&"HTTP/2".into(), &"test/1".into()));
            assert_logged_as_sent(line, name, value);
        }
    });
}

/// What the client sent, as far as it can be written.
fn assert_logged_as_sent(line: &Value, name: &[u8], value: &[u8]) {
    for (key, field, usual) in
        [("method", ":method", "GET"), ("path", ":path", "/"), ("authority", ":authority", "app.example")]
    {
        let said = if name == field.as_bytes() { String::from_utf8_lossy(value) } else { usual.into() };
        let said = Some(Value::from(&*said)).filter(|_| !said.is_empty()).unwrap_or_default();
        assert_eq!(line[key], said, "{line}");
    }
}

#[test]
fn a_request_with_a_body_is_refused_before_it() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect_raw().await;
        client.send(HEADERS, END_HEADERS, 1, &head(&[(b":path", b"/\xff")])).await.unwrap();
        assert_eq!(fate(&mut client, 1).await, BAD_REQUEST);
        // The response is complete; the rest of the request is not needed.
        assert_eq!(fate(&mut client, 1).await, Fate::Reset(0));
        client.send(0x0, END_STREAM, 1, b"on its way already").await.unwrap();
        assert_served(&mut client, 3).await;
        assert_eq!(app.seen.count(), 1);
    });
}

#[test]
fn what_a_malformed_head_puts_into_the_dynamic_table_stays_there() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect_raw().await;
        let malformed = [
            block(&GET),
            indexed(b"x-first", b"1"),
            indexed(b"x-value", b"\x01"),
            indexed(b"bad name", b"2"),
            indexed(b"x-last", b"3"),
        ];
        send(&mut client, 1, &malformed.concat()).await;
        assert_eq!(fate(&mut client, 1).await, BAD_REQUEST);

        // Indexed fields, and the name of a field that had an invalid value with a valid one (RFC 7541 §6.1, §6.2.2).
        let mut good = block(&GET);
        good.extend([0x80 | NEWEST, 0x80 | (NEWEST + 3), 0x0f, NEWEST + 2 - 15, 1, b'v']);
        send(&mut client, 3, &good).await;
        assert_eq!(fate(&mut client, 3).await, Fate::Status(200));
        let values = |name| app.seen.last(name);
        assert_eq!((values("x-first"), values("x-last")), (vec!["1".to_owned()], vec!["3".to_owned()]));
        assert_eq!(values("x-value"), ["v"]);

        for at in [1, 2] {
            let mut bad = block(&GET);
            bad.push(0x80 | (NEWEST + at));
            let stream = 3 + 2 * u32::from(at);
            send(&mut client, stream, &bad).await;
            assert_eq!(fate(&mut client, stream).await, BAD_REQUEST);
        }
        assert_served(&mut client, 9).await;
        assert_eq!(app.seen.count(), 2);
    });
}

#[test]
fn a_malformed_head_in_several_frames_is_read_to_its_end() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let fields: [(&[u8], &[u8], Fate); 3] =
            [(b"x-a", b"\x01", BAD_REQUEST), (b"connection", b"close", RESET), (b"te", b"gzip", RESET)];
        for (name, value, expected) in fields {
            let whole = [block(&GET), indexed(name, value), indexed(b"x-last", b"3")].concat();
            for cut in (0..=whole.len()).step_by(7) {
                let mut client = sidecar.connect_raw().await;
                client.send(HEADERS, END_STREAM, 1, &whole[..cut]).await.unwrap();
                client.send(CONTINUATION, END_HEADERS, 1, &whole[cut..]).await.unwrap();
                assert_eq!(fate(&mut client, 1).await, expected, "cut at {cut}");
                let mut good = block(&GET);
                good.push(0x80 | NEWEST);
                send(&mut client, 3, &good).await;
                assert_eq!(fate(&mut client, 3).await, Fate::Status(200), "cut at {cut}");
                assert_eq!(app.seen.last("x-last"), ["3"], "cut at {cut}");
            }
        }
    });
}

#[test]
fn a_stream_that_depends_on_itself_keeps_the_dynamic_table_in_sync() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect_raw().await;
        let payload = [vec![0, 0, 0, 1, 16], block(&GET), indexed(b"x-last", b"3")].concat();
        client.send(HEADERS, END_HEADERS | END_STREAM | PRIORITY, 1, &payload).await.unwrap();
        assert_eq!(fate(&mut client, 1).await, RESET);
        let mut good = block(&GET);
        good.push(0x80 | NEWEST);
        send(&mut client, 3, &good).await;
        assert_eq!(fate(&mut client, 3).await, Fate::Status(200));
        assert_eq!(app.seen.last("x-last"), ["3"]);
    });
}

#[test]
fn many_malformed_requests_of_a_proxys_clients_leave_its_connection() {
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect_raw().await;
        let malformed = head(&[(b":path", b"/\xff")]);
        for number in 0..1000 {
            send(&mut client, 1 + 2 * number, &malformed).await;
            assert_eq!(fate(&mut client, 1 + 2 * number).await, BAD_REQUEST);
        }
        assert_served(&mut client, 2001).await;
    });
}

#[test]
fn a_head_that_is_too_large_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    run(async {
        let app = App::echo(Speaks::Http1).await;
        let telemetry = Telemetry::in_file(&path);
        let limits = Limits { head_bytes: 8 * 1024, ..Limits::default() };
        let sidecar = Sidecar::telling(app.address, AppProtocol::Http, limits, telemetry);
        let mut client = sidecar.connect_raw().await;
        let large = head(&[(b"x-a", &[b'a'; 10 * 1024])]);
        send(&mut client, 1, &large).await;
        assert_eq!(fate(&mut client, 1).await, Fate::Status(431));
        let lines = || {
            sidecar.env.telemetry.flush();
            std::fs::read_to_string(&path).unwrap()
        };
        until(|| lines().ends_with('\n')).await;
        let line: Value = serde_json::from_str(&lines()).unwrap();
        assert_eq!((&line["path"], &line["response_code"]), (&"/".into(), &431.into()));
        assert_eq!(line["response_code_details"], "http2.headers_too_large");
    });
}

/// An app with handwritten responses: sends the next of these bytes after this many requests.
async fn by_hand(mut socket: TcpStream, requests: usize, answers: impl IntoIterator<Item = Vec<u8>>) {
    let mut preface = [0; 24];
    socket.read_exact(&mut preface).await.unwrap();
    socket.write_all(&encode(SETTINGS, 0, 0, &[])).await.unwrap();
    let (mut answers, mut seen) = (answers.into_iter(), 0);
    let mut header = [0; 9];
    while socket.read_exact(&mut header).await.is_ok() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).await.unwrap();
        if header[3] == HEADERS {
            seen += 1;
            if seen % requests == 0
                && let Some(answer) = answers.next()
            {
                socket.write_all(&answer).await.unwrap();
            }
        }
    }
}

/// `:status: 200`, and this field.
fn answer(stream: u32, field: &[u8]) -> Vec<u8> {
    encode(HEADERS, END_HEADERS | END_STREAM, stream, &[&[0x88], field].concat())
}

#[test]
fn an_apps_malformed_answer_fails_its_call_alone() {
    let answers: [(&str, Vec<u8>); 8] = [
        ("a control character", literal(0x00, b"x-a", b"a\x01")),
        ("an upper-case name", literal(0x00, b"X-A", b"a")),
        ("a name that is not a token", literal(0x40, b"x a", b"a")),
        ("a second status", literal(0x00, b":status", b"200")),
        ("an invalid status", literal(0x00, b":status", b"2x0")),
        ("a request's field", literal(0x00, b":path", b"/\xff")),
        ("a hop-by-hop field", literal(0x00, b"connection", b"close")),
        (
            "two lengths",
            [literal(0x00, b"content-length", b"0"), literal(0x00, b"content-length", b"1")].concat(),
        ),
    ];
    for (case, field) in answers {
        run(async {
            let app = App::raw(async move |_, socket| {
                let answers = [answer(3, &field), answer(1, &[]), answer(5, &[])];
                by_hand(socket, 3, [answers.concat()]).await;
            })
            .await;
            let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
            let mut client = sidecar.connect().await;
            let calls: Vec<_> = ["/1", "/3", "/5"].map(|path| client.sender.send_request(get(path))).into();
            let statuses: Vec<u16> =
                join_all(calls).await.into_iter().map(|answer| answer.unwrap().status().as_u16()).collect();
            assert_eq!(statuses, [200, 502, 200], "{case}");
            assert_eq!(app.seen.connections.get(), 1, "{case}");
        });
    }
}

#[test]
fn an_apps_malformed_trailers_fail_their_call_alone() {
    run(async {
        let app = App::raw(async |_, socket| {
            let head = encode(HEADERS, END_HEADERS, 3, &[0x88]);
            let data = encode(0x0, 0, 3, b"data");
            let trailers = encode(HEADERS, END_HEADERS | END_STREAM, 3, &literal(0x00, b"x-a", b"a\x01"));
            by_hand(socket, 2, [[head, data, trailers, answer(1, &[])].concat()]).await;
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect().await;
        let calls: Vec<_> = ["/1", "/3"].map(|path| client.sender.send_request(get(path))).into();
        let mut answers = join_all(calls).await.into_iter();
        assert_eq!(answers.next().unwrap().unwrap().status(), 200);
        // The reset may arrive before the head is read.
        if let Ok(cut) = answers.next().unwrap() {
            assert!(cut.into_body().collect().await.is_err(), "an incomplete answer is an error");
        }
    });
}

#[test]
fn an_app_that_always_answers_malformed_keeps_its_connection() {
    run(async {
        let app = App::raw(async |_, socket| {
            let field = literal(0x00, b"x-a", b"\x01");
            by_hand(socket, 1, (0..).map(|number| answer(1 + 2 * number, &field))).await;
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect().await;
        for _ in 0..1200 {
            assert_eq!(client.get("/").await.0, 502);
        }
        assert_eq!(app.seen.connections.get(), 1);
    });
}

#[test]
fn equal_lengths_are_merged() {
    run(async {
        for (speaks, protocol) in [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)] {
            let app = App::echo(speaks).await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect_raw().await;
            let fields: [(&[u8], &[u8]); 3] =
                [(b":method", b"POST"), (b"content-length", b"5"), (b"content-length", b"5")];
            client.send(HEADERS, END_HEADERS, 1, &head(&fields)).await.unwrap();
            client.send(0x0, END_STREAM, 1, b"hello").await.unwrap();
            assert_eq!(fate(&mut client, 1).await, Fate::Status(200));
            assert_eq!(app.seen.last("content-length"), ["5"]);
        }
        let app = App::raw(async |_, socket| {
            let length = || literal(0x00, b"content-length", b"0");
            by_hand(socket, 1, [answer(1, &[length(), length()].concat())]).await;
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let response = sidecar.connect().await.send(get("/")).await.unwrap();
        assert_eq!(response.headers().get_all("content-length").iter().count(), 1);
    });
}

#[test]
fn an_unusual_target_reaches_the_app_unchanged() {
    run(async {
        for (speaks, protocol) in [(Speaks::Http1, AppProtocol::Http), (Speaks::Http2, AppProtocol::H2c)] {
            let app = App::echo(speaks).await;
            let sidecar = Sidecar::new(app.address, protocol);
            let mut client = sidecar.connect_raw().await;
            let path = "/<a\"`>|\\^{}\u{e4}?q=<b\"`>|\\^{}\u{e4}";
            send(&mut client, 1, &head(&[(b":path", path.as_bytes()), (b":authority", b"a.test:")])).await;
            assert_eq!(fate(&mut client, 1).await, Fate::Status(200));
            send(&mut client, 3, &head(&[(b":authority", b"")])).await;
            assert_eq!(fate(&mut client, 3).await, Fate::Status(200));
            let requests = app.seen.requests.borrow();
            let lines: Vec<_> = requests.iter().map(|request| request.line.as_str()).collect();
            let host =
                |at: usize| requests[at].headers.get("host").map(|host| host.to_str().unwrap().to_owned());
            if speaks == Speaks::Http1 {
                assert_eq!(lines, [format!("GET {path} HTTP/1.1"), "GET / HTTP/1.1".to_owned()]);
                assert_eq!((host(0), host(1)), (Some("a.test:".to_owned()), Some(String::new())));
            } else {
                assert_eq!(
                    lines,
                    [format!("GET http://a.test:{path} HTTP/2.0"), "GET / HTTP/2.0".to_owned()]
                );
                assert_eq!((host(0), host(1)), (None, Some(String::new())));
            }
        }
    });
}
