//! HTTP/1 byte by byte: what a client sends, what the app receives, what the client gets.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, Connection, End};
use tidegate_tests::http1::{self, Message, MessageKind};
use tidegate_tests::mesh::{Mesh, PORT};
use tidegate_tests::objects::{backend, gateway, https, policy, principal};
use tidegate_tests::pki::{INGRESS_CLIENT, Leaf};
use tidegate_tests::wait::{self, SOON};

/// Long enough for an answer, short enough for a table of them.
const MOMENT: Duration = Duration::from_millis(500);

fn open_mesh() -> Mesh {
    let mut mesh = Mesh::start();
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", PORT, "http")], &[gateway()])]);
    mesh
}

/// Sends bytes on a new connection; returns the answers, and how it ended.
fn send(mesh: &Mesh, bytes: &[u8], limit: Duration) -> (Vec<Message>, End) {
    let (answer, end) = mesh.client().exchange(bytes, limit);
    (http1::parse_all(&answer, MessageKind::Response), end)
}

fn statuses(answers: &[Message]) -> Vec<u16> {
    answers.iter().map(Message::status).collect()
}

fn connect(mesh: &Mesh) -> Connection {
    mesh.client().connect().unwrap()
}

#[test]
fn a_head_that_can_be_read_in_two_ways_is_answered_400_and_the_app_sees_nothing_of_it() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let post = |fields: &str| format!("POST /a HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello").into_bytes();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("two codings", post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked")),
        ("chunked is not the last coding", post("Transfer-Encoding: chunked, identity")),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked")),
        ("an unknown coding", post("Transfer-Encoding: xchunked")),
        ("a coding with a vertical tab", post("Transfer-Encoding: \x0bchunked")),
        ("length and coding", post("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        ("coding in HTTP/1.0", b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        ("length with a sign", post("Content-Length: +5")),
        ("negative length", post("Content-Length: -5")),
        ("length in hexadecimal", post("Content-Length: 0x5")),
        ("length with an underscore", post("Content-Length: +1_0")),
        ("two lengths in a list", post("Content-Length: 5,6")),
        ("two lengths in two fields", post("Content-Length: 5\r\nContent-Length: 6")),
        ("empty length", post("Content-Length:")),
        ("length of 25 digits", post("Content-Length: 1000000000000000000000005")),
        ("NUL in a value", post("X: a\0b")),
        ("CR in a value", post("X: a\rb")),
        ("bare LF between fields", b"GET /a HTTP/1.1\nHost: a\n\n".to_vec()),
        ("LF in the request line", b"GET /a\n HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("blank before the colon", post("Content-Length : 5")),
        ("folded line", post("X: a\r\n b: c")),
        ("blank before the first field", b"GET /a HTTP/1.1\r\n Host: a\r\n\r\n".to_vec()),
        ("no name", post(": a")),
        ("name with a blank", post("a b: c")),
        ("no host", b"GET /a HTTP/1.1\r\nX: a\r\n\r\n".to_vec()),
        ("two hosts", post("Host: b")),
        ("no target", b"GET HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("NUL in the target", b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("method with a comma", b"G,ET /a HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("two blanks", b"GET  /a HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("version without a digit", b"GET /a HTTP/1.x\r\nHost: a\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in cases {
        let (answers, end) = send(&mesh, &bytes, SOON);
        assert_eq!((statuses(&answers), end), (vec![400], End::Closed), "{what}");
        assert_eq!(answers[0].value("connection"), Some("close"), "{what}");
        assert!(app.received().is_empty(), "{what}: {:?}", String::from_utf8_lossy(&app.received()));
    }
}

#[test]
fn lengths_that_are_plain_digits_are_taken() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    for fields in ["Content-Length: 5", "Content-Length: 05", "content-length:5", "Content-Length: \t5 "] {
        let bytes = format!("POST /a HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello");
        let answer = connect(&mesh).request(bytes.as_bytes()).unwrap();
        assert_eq!(answer.status(), 200, "{fields}");
    }
    assert!(app.requests().iter().all(|request| request.text() == "hello"));
}

#[test]
fn a_body_with_a_broken_chunk_never_becomes_a_whole_request() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let head = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let smuggled = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let many = "x".repeat(1 << 20);
    let bodies = [
        ("size line ended by LF", format!("5\nhello\r\n0\r\n\r\n{smuggled}")),
        ("size line ended by CR", format!("5\rhello\r\n0\r\n\r\n{smuggled}")),
        ("size line ended by LF CR", format!("5\n\rhello\r\n0\r\n\r\n{smuggled}")),
        ("underscore in the size", format!("0_2e\r\n{smuggled}0\r\n\r\n")),
        ("hexadecimal prefix", format!("0x5\r\nhello\r\n0\r\n\r\n{smuggled}")),
        ("sign", format!("+5\r\nhello\r\n0\r\n\r\n{smuggled}")),
        ("no size", format!("\r\nhello\r\n0\r\n\r\n{smuggled}")),
        ("size of 17 digits", format!("10000000000000005\r\nhello\r\n0\r\n\r\n{smuggled}")),
        ("data longer than its size", format!("3\r\nhello\r\n0\r\n\r\n{smuggled}")),
        ("data ended by LF", format!("5\r\nhello\n0\r\n\r\n{smuggled}")),
        ("extension with LF", format!("5;a=\nb\r\nhello\r\n0\r\n\r\n{smuggled}")),
        ("a megabyte of extension", format!("5;a={many}\r\nhello\r\n0\r\n\r\n{smuggled}")),
        ("a trailer with LF", format!("5\r\nhello\r\n0\r\nx: a\nb: c\r\n\r\n{smuggled}")),
    ];
    for (what, body) in bodies {
        app.forget();
        let (answers, end) = send(&mesh, format!("{head}{body}").as_bytes(), SOON);
        assert!(matches!(statuses(&answers)[..], [400] | []), "{what}: {answers:?}");
        assert!(matches!(end, End::Closed | End::Reset), "{what}: {end:?}");
        assert_eq!(app.requests(), [], "{what}");
        assert!(!String::from_utf8_lossy(&app.received()).contains("/admin"), "{what}");
    }
}

#[test]
fn a_body_stays_a_body_whatever_it_holds() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let smuggled = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = smuggled.len();
    let requests = [
        (
            "GET with a body",
            format!("GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        ),
        (
            "h2c upgrade with a body",
            format!(
                "POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: {length}\r\n\r\n{smuggled}"
            ),
        ),
        (
            "chunked",
            format!(
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{smuggled}\r\n0\r\n\r\n"
            ),
        ),
    ];
    for (what, bytes) in requests {
        app.forget();
        let mut connection = connect(&mesh);
        assert_eq!(connection.request(bytes.as_bytes()).unwrap().status(), 200, "{what}");
        assert_eq!(connection.get("/b").unwrap().status(), 200, "{what}: the connection goes on");
        let seen: Vec<_> = app.requests().into_iter().map(|r| (r.target().to_owned(), r.text())).collect();
        assert_eq!(
            seen,
            [("/a".to_owned(), smuggled.to_owned()), ("/b".to_owned(), String::new())],
            "{what}"
        );
        assert_eq!(app.requests()[0].value("upgrade"), None, "{what}");
    }
}

#[test]
fn bytes_behind_an_upgrade_that_the_app_refuses_are_a_request_of_their_own() {
    let mesh = open_mesh();
    // Never upgrades.
    let app = App::answering(mesh.app_address(), b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let upgrade = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let behind = "GET /behind HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: forged\r\n\r\n";
    let (answers, _) = send(&mesh, format!("{upgrade}{behind}").as_bytes(), MOMENT);
    assert!(matches!(statuses(&answers)[..], [200, 200] | [200]), "{answers:?}");
    let requests = app.requests();
    assert_eq!(requests[0].target(), "/chat");
    for request in &requests {
        assert_eq!(request.values("x-forwarded-client-cert"), [""; 0], "{request:?}");
        assert_eq!(request.values("x-request-id").len(), 1, "it passed our header rules: {request:?}");
    }
    // The app's connection, if kept, gives the next client its own answer.
    assert_eq!(connect(&mesh).get("/next").unwrap().text(), "ok");
}

#[test]
fn connect_is_refused_with_what_follows_it() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let bytes = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let (answers, end) = send(&mesh, bytes, SOON);
    assert_eq!((statuses(&answers), end), (vec![405], End::Closed));
    assert!(app.received().is_empty());
}

#[test]
fn a_refused_request_s_body_is_never_taken_for_a_request() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    mesh.apply("policy", &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal("x.y")])]);
    let smuggled = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut connection = mesh.tls_client().connect().unwrap();
    let refused =
        format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    for _ in 0..2 {
        assert_eq!(connection.request(refused.as_bytes()).unwrap().status(), 403);
    }
    // One answer per request, and none more.
    assert_eq!(connection.get("/b").unwrap().status(), 403);
    assert_eq!(connection.read(MOMENT), Err(End::StillOpen));
    assert!(app.received().is_empty());
}

#[test]
fn blanks_around_the_host_are_ignored() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    for host in ["Host: svc ", "Host:\tsvc", "Host: svc\t", "HOST:svc"] {
        assert_eq!(
            connect(&mesh).request(format!("GET / HTTP/1.1\r\n{host}\r\n\r\n").as_bytes()).unwrap().status(),
            200
        );
    }
    for request in app.requests() {
        assert!(
            String::from_utf8_lossy(&request.raw).to_lowercase().contains("host: svc\r\n"),
            "{request:?}"
        );
    }
}

/// Access log lines about requests.
fn access_log(mesh: &Mesh) -> Vec<Value> {
    let log = mesh.sidecar.log();
    // The last line may still be incomplete.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))).collect()
}

#[test]
fn the_app_and_the_log_get_the_path_that_the_client_sent() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let paths = [
        "/admin?x",
        "//admin",
        "/a/../admin",
        "/./admin",
        "/%2fadmin",
        "/a%2F..%2Fadmin",
        "/%5cadmin",
        "/public/..;x/admin",
        "/admin;v=1",
        "/a%00b",
        "/?a=b&c=%0d%0aX:%20y",
        "/caf%C3%A9",
        "*",
    ];
    for path in paths {
        let method = if path == "*" { "OPTIONS" } else { "GET" };
        let bytes = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(connect(&mesh).request(bytes.as_bytes()).unwrap().status(), 200, "{path}");
    }
    let seen: Vec<_> = app.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(seen, paths);
    wait::until_true("all is logged", SOON, || access_log(&mesh).len() >= paths.len());
    let logged: Vec<_> =
        access_log(&mesh).iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect();
    assert_eq!(logged, paths);
}

#[test]
fn clients_cannot_forge_the_headers_that_are_the_mesh_s_own() {
    let mut mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let forged = [
        "X-Forwarded-Client-Cert: forged",
        "x-FORWARDED-client-cert: forged",
        "X_Forwarded_Client_Cert: forged",
        "x.forwarded.client.cert: forged",
        "X!Forwarded!Client!Cert: forged",
        "x~forwarded~client~cert: forged",
        "X-Tidegate-Principal: forged",
        "x_tidegate_principal: forged",
        "X_Forwarded_For: forged",
        "x-forwarded_proto: forged",
        "X-Forwarded-Proto: forged",
        "X-Request-Id: a b",
    ];
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", forged.join("\r\n"));
    let check = |client: &Client, certificate: bool| {
        app.forget();
        let answer =
            client.connect().and_then(|mut connection| connection.request(request.as_bytes())).unwrap();
        assert_eq!(answer.status(), 200);
        let [request] = &app.requests()[..] else { panic!("{:?}", app.requests()) };
        assert!(!String::from_utf8_lossy(&request.raw).contains("forged"), "{:?}", request.fields);
        assert_eq!(request.values("x-forwarded-client-cert").len(), usize::from(certificate));
        assert_eq!(request.value("x-request-id").map(str::len), Some(36), "{:?}", request.fields);
    };
    check(&mesh.client(), false);
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(INGRESS_CLIENT)])],
    );
    check(&mesh.tls_client(), true);
    let tls = mesh.tls().protocols(&["tidegate/h1"]).credentials(mesh.sign(&Leaf::workload("shop", "cart")));
    check(&mesh.client().tls(tls), true);
}

#[test]
fn connection_cannot_name_the_headers_that_we_set() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(INGRESS_CLIENT)])],
    );
    let names =
        ["X-Forwarded-Client-Cert", "x-forwarded-client-cert", "X-Request-Id", "Host", "X-Forwarded-For"];
    for name in names {
        for fields in [
            format!("Connection: keep-alive, {name}"),
            format!("Connection: {name}\r\nConnection: x"),
            format!("connection: {}", name.to_lowercase()),
        ] {
            app.forget();
            let mut connection = mesh.tls_client().connect().unwrap();
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            assert_eq!(connection.request(request.as_bytes()).unwrap().status(), 200, "{fields}");
            let [request] = &app.requests()[..] else { panic!("{:?}", app.requests()) };
            for ours in
                ["x-forwarded-client-cert", "x-request-id", "host", "x-forwarded-for", "x-forwarded-proto"]
            {
                assert_eq!(request.values(ours).len(), 1, "{ours} with {fields}");
            }
            let connection = request.values("connection").join(",").to_lowercase();
            assert!(!connection.contains("x-"), "{connection}");
        }
    }
}

#[test]
fn hop_by_hop_headers_end_here_and_trailers_are_asked_for_on() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let request =
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-drop\r\nX-Drop: 1\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Connection: keep-alive\r\nTE: trailers, deflate\r\nX-Keep: 1\r\n\r\n";
    assert_eq!(connect(&mesh).request(request).unwrap().status(), 200);
    let [request] = &app.requests()[..] else { panic!("{:?}", app.requests()) };
    for gone in ["x-drop", "keep-alive", "proxy-connection"] {
        assert_eq!(request.value(gone), None, "{gone}");
    }
    assert_eq!(request.value("te"), Some("trailers"));
    assert_eq!(request.value("x-keep"), Some("1"));
}

#[test]
fn what_clients_write_cannot_break_a_log_line() {
    let mut mesh = open_mesh();
    let _app = App::echo(mesh.app_address());
    let hostile = "\",\"response_code\":200,\"x\":\"\\u001b[31m";
    let requests = [
        format!("GET /{hostile} HTTP/1.1\r\nHost: a\r\n\r\n").replace(' ', " "),
        format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: {hostile}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: {}\r\n\r\n", "x".repeat(30_000)),
        "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: \u{e9}\u{202e}\u{1f600}\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]:80\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: [fe80::1%eth0]\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: fe80::1%eth0, [::1%25.x]:1\r\n\r\n".to_owned(),
    ];
    for request in &requests {
        let answer = connect(&mesh).request(request.as_bytes()).unwrap();
        assert!(matches!(answer.status(), 200 | 400), "{request:.80}: {}", answer.status());
    }
    // Bytes that are not UTF-8.
    let raw = connect(&mesh).request(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: \xff\xfe\r\n\r\n").unwrap();
    assert!(matches!(raw.status(), 200 | 400));
    wait::until_true("all is logged", SOON, || access_log(&mesh).len() > requests.len());
    for line in mesh.sidecar.log().lines() {
        assert!(line.len() < 20_000, "a line of {} bytes", line.len());
        assert!(!line.chars().any(|c| c.is_control()), "{line:?}");
    }
    assert!(mesh.sidecar.exited().is_none());
}

#[test]
fn heads_that_are_too_large_are_refused_within_bounds() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let many: String = (0..10_000).map(|i| format!("{}: 1\r\n", (b'a' + (i % 26) as u8) as char)).collect();
    let cases = [
        ("10,000 fields", format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
        ("a field of 1 MiB", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)), 431),
        ("a target of 1 MiB", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1 << 20)), 414),
    ];
    for (what, bytes, status) in cases {
        let before = mesh.sidecar.processor_time();
        let (answers, end) = send(&mesh, bytes.as_bytes(), SOON);
        assert_eq!(statuses(&answers), [status], "{what}");
        let used = mesh.sidecar.processor_time() - before;
        assert!(used < Duration::from_millis(200), "{what}: {used:?}");
        assert!(matches!(end, End::Closed | End::Reset), "{what}: {end:?}");
        assert!(app.received().is_empty(), "{what}");
    }
}

#[test]
fn requests_in_a_row_are_answered_in_a_row() {
    let mesh = open_mesh();
    let app = App::echo(mesh.app_address());
    let bytes: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    let (answers, end) = send(&mesh, bytes.as_bytes(), MOMENT);
    let bodies: Vec<_> =
        answers.iter().map(|a| serde_json::from_slice::<Value>(&a.body).unwrap()["path"].clone()).collect();
    let expected: Vec<_> = (0..20).map(|i| Value::from(format!("/{i}"))).collect();
    assert_eq!((bodies, end), (expected, End::StillOpen));
    assert_eq!(app.requests().len(), 20);
}

#[test]
fn clients_of_http_1_0_are_served_by_its_rules() {
    let mesh = open_mesh();
    let _app = App::echo(mesh.app_address());
    let (answers, end) = send(&mesh, b"GET /a HTTP/1.0\r\n\r\n", SOON);
    assert_eq!((statuses(&answers), end), (vec![200], End::Closed));
    let mut connection = connect(&mesh);
    for _ in 0..2 {
        let answer = connection.request(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert_eq!(answer.status(), 200);
    }
}

#[test]
fn a_client_that_expects_100_continue_gets_it_from_the_app() {
    let mesh = open_mesh();
    let app = App::start(mesh.app_address(), |conversation| {
        conversation.head()?;
        conversation.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        conversation.bytes()?;
        conversation.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    });
    let mut connection = connect(&mesh);
    connection.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    connection.read_until(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert!(!String::from_utf8_lossy(&app.received()).contains("hello"));
    assert_eq!(connection.request(b"hello").unwrap().status(), 200);
}

#[test]
fn what_an_app_answers_wrongly_is_never_passed_on() {
    let mesh = open_mesh();
    let answers: BTreeMap<&str, (&[u8], u16)> = [
        (
            "length and coding",
            (
                &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
                502,
            ),
        ),
        ("two lengths", (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 502)),
        ("no HTTP", (b"220 smtp.example ESMTP\r\n", 502)),
        ("NUL in a value", (b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", 502)),
        (
            "101 without an upgrade in the request",
            (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502),
        ),
        ("nothing", (b"", 503)),
    ]
    .into();
    for (what, (bytes, status)) in answers {
        let bytes = bytes.to_vec();
        let _app = App::start(mesh.app_address(), move |conversation| {
            conversation.request()?;
            conversation.write(&bytes)
        });
        let answer = connect(&mesh).get("/a").unwrap();
        assert_eq!(answer.status(), status, "{what}");
        assert_eq!(answer.value("content-type"), Some("text/plain"), "{what}");
    }
    let answer = connect(&mesh).get("/a").unwrap();
    assert_eq!(answer.status(), 503, "nothing listens");
    assert!(answer.text().starts_with("upstream connect error"), "{}", answer.text());
}

#[test]
fn bytes_that_an_app_sends_after_its_answer_reach_no_client() {
    let mesh = open_mesh();
    let forged =
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    let _app = App::answering(mesh.app_address(), forged);
    for _ in 0..5 {
        let mut connection = connect(&mesh);
        for _ in 0..3 {
            assert_eq!(connection.get("/a").unwrap().text(), "ok");
        }
        assert_eq!(connection.read(Duration::from_millis(50)), Err(End::StillOpen));
    }
}

#[test]
fn trailers_pass_in_both_directions() {
    let mesh = open_mesh();
    let app = App::answering(
        mesh.app_address(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let request =
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sent: 8\r\n\r\n";
    let answer = connect(&mesh).request(request).unwrap();
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "7".to_owned())]);
    assert_eq!(app.requests()[0].trailers, [("x-sent".to_owned(), "8".to_owned())]);
}
