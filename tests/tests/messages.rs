//! What two sidecars carry between two apps: bodies at the edges of buffers and windows in every pair of versions, WebSockets by
//! their frames, and a gigabyte each way between slow readers.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, Read, Write};

use http::Request;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::app::{App, Conversation};
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::http1::Message;
use tidegate_tests::mesh::Options;

#[path = "messages/gigabyte.rs"]
mod gigabyte;
#[path = "messages/websocket.rs"]
mod websocket;

/// Around the sizes of buffers, TLS records, and HTTP/2's frames and windows.
const EDGES: [usize; 12] =
    [0, 1, 4_095, 4_096, 4_097, 16_383, 16_384, 16_385, 65_534, 65_535, 65_536, 1_000_003];
const MIB: usize = 1 << 20;

/// A mesh whose app speaks the protocol that both Services declare.
fn mesh(protocol: &'static str) -> CallerMesh {
    CallerMesh::calling(protocol, Options { port_name: protocol, ..Options::default() })
}

/// A body of this length. It repeats after a prime number of bytes, so that no two blocks of a usual size are alike.
fn content(length: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..65_521_usize).map(|at| (at ^ (at >> 8)) as u8).collect();
    let mut content = period.repeat(length / period.len() + 1);
    content.truncate(length);
    content
}

/// A body in chunks, with a trailer.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(10_000) {
        write!(bytes, "{:x}\r\n", chunk.len()).unwrap();
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\nx-sum: 1\r\n\r\n");
    bytes
}

/// Answers each request with its own body; in chunks with a trailer if the path is `/chunked`.
fn mirror(conversation: &mut Conversation) -> io::Result<()> {
    while let Some(request) = conversation.request()? {
        let (framing, body) = if request.target() == "/chunked" {
            ("transfer-encoding: chunked\r\ntrailer: x-sum".to_owned(), chunked(&request.body))
        } else {
            (format!("content-length: {}", request.body.len()), request.body.clone())
        };
        conversation.write(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes())?;
        conversation.write(&body)?;
    }
    Ok(())
}

/// What a client of HTTP/1 sends: a request of this version, whose body has its length or comes in chunks.
fn post(version: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let is_chunked = version == "HTTP/1.1" && path == "/chunked";
    let framing = if is_chunked {
        "te: trailers\r\ntransfer-encoding: chunked".to_owned()
    } else {
        format!("content-length: {}", body.len())
    };
    let head = format!("POST {path} {version}\r\nhost: called\r\n{framing}\r\n\r\n");
    [head.into_bytes(), if is_chunked { chunked(body) } else { body.to_vec() }].concat()
}

fn trailer<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    message.trailers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Bodies of every size by every way that HTTP/1 has; `trailer` is what an answer in chunks ends with.
fn exchange_by_http1(mesh: &CallerMesh, trailer_of_app: (&str, &str)) {
    for size in EDGES {
        let body = content(size);
        for (version, path) in
            [("HTTP/1.0", "/"), ("HTTP/1.0", "/chunked"), ("HTTP/1.1", "/"), ("HTTP/1.1", "/chunked")]
        {
            let what = format!("{version} {path} {size}");
            let mut connection = mesh.app().connect().unwrap();
            let answer = connection.request(&post(version, path, &body)).unwrap();
            assert_eq!(answer.status(), 200, "{what}");
            assert!(answer.body == body, "{what}: {} bytes", answer.body.len());
            let is_chunked = answer.value("transfer-encoding").is_some();
            assert!(!is_chunked || version == "HTTP/1.1", "{what}");
            if is_chunked {
                assert_eq!(trailer(&answer, trailer_of_app.0), Some(trailer_of_app.1), "{what}");
            }
        }
    }
}

/// Bodies of every size over HTTP/2; returns the trailers of the last answer.
async fn exchange_by_http2(mesh: &CallerMesh, path: &str) -> http::HeaderMap {
    let connection = H2Connection::open(&mesh.app()).await.unwrap();
    let mut trailers = None;
    for size in EDGES {
        let body = content(size);
        let request =
            Request::post(format!("http://called{path}")).header("te", "trailers").body(()).unwrap();
        let answer =
            connection.exchange(request, &body).await.unwrap_or_else(|error| panic!("{size}: {error}"));
        assert_eq!(answer.head.status(), 200, "{size}");
        assert!(answer.body == body, "{size}: {} bytes", answer.body.len());
        trailers = answer.trailers;
    }
    trailers.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_at_the_edges_of_buffers_and_windows_reach_an_app_of_http_1_in_every_version() {
    let mesh = mesh("ws");
    let _app = App::unrecorded(mesh.mesh.app_address(), mirror);
    exchange_by_http1(&mesh, ("x-sum", "1"));
    assert_eq!(exchange_by_http2(&mesh, "/chunked").await["x-sum"], "1");
    exchange_by_http2(&mesh, "/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_at_the_edges_of_buffers_and_windows_reach_an_app_of_http_2_in_every_version() {
    let mesh = mesh("grpc");
    let _app = H2cApp::unrecorded(mesh.mesh.app_address());
    exchange_by_http1(&mesh, ("grpc-status", "0"));
    assert_eq!(exchange_by_http2(&mesh, "/a.B/C").await["grpc-status"], "0");
}

/// Reads the head of an answer.
fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}
