//! What is sent again without a policy: requests that the app has certainly not processed, and those that it may receive
//! twice if a kept connection turns out to be closed.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use tidegate_core::policy::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::apps::{App, Seen, Speaks};
use super::kit::{GOAWAY, HEADERS, SETTINGS, Sidecar, encode, full, run, text, until};
use crate::upstream::DynBody;

#[test]
fn a_refused_stream_is_sent_once_more_and_after_no_other_failure() {
    run(async {
        // Each connection responds to its first stream with this; then it serves.
        for (code, expected) in [(h2::Reason::REFUSED_STREAM, 200), (h2::Reason::CANCEL, 503)] {
            let streams = Rc::new(Cell::new(0));
            let counter = streams.clone();
            let app = App::raw(async move |_, socket: TcpStream| {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    counter.set(counter.get() + 1);
                    if counter.get() == 1 {
                        respond.send_reset(code);
                    } else {
                        let size = request.into_body().is_end_stream();
                        let status = if size { 200 } else { 500 };
                        let answer = Response::builder().status(status).body(()).unwrap();
                        respond.send_response(answer, true).unwrap();
                    }
                }
            })
            .await;
            let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
            let mut client = sidecar.connect().await;
            assert_eq!(client.get("/").await.0, expected);
            let attempts = if expected == 200 { 2 } else { 1 };
            assert_eq!(streams.get(), attempts);
        }
    });
}

#[test]
fn a_partially_sent_body_is_not_sent_again() {
    run(async {
        let streams = Rc::new(Cell::new(0));
        let counter = streams.clone();
        let app = App::raw(async move |_, socket: TcpStream| {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let mut held = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                counter.set(counter.get() + 1);
                held.push(tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    let _first = body.data().await;
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }));
            }
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
        let mut client = sidecar.connect().await;
        let request = Request::post("http://app.example/").body(full("a part")).unwrap();
        let (status, body) = text(client.send(request).await.unwrap()).await;
        assert_eq!(status, 503);
        assert!(body.ends_with("remote refused stream reset"), "{body}");
        assert_eq!(streams.get(), 1);
    });
}

#[test]
fn a_stream_beyond_goaway_is_sent_again_and_a_lost_one_is_not() {
    run(async {
        for (last, closes, expected) in [(0_u32, false, (200, 2)), (0, true, (200, 2)), (1, true, (503, 1))] {
            let app = App::raw(async move |seen: Rc<Seen>, mut socket: TcpStream| {
                if seen.connections.get() > 1 {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                    return;
                }
                socket.write_all(&encode(SETTINGS, 0, 0, &[])).await.unwrap();
                let mut read = Vec::new();
                while !has_headers(&read) {
                    socket.read_buf(&mut read).await.unwrap();
                }
                let mut farewell = last.to_be_bytes().to_vec();
                farewell.extend([0; 4]);
                socket.write_all(&encode(GOAWAY, 0, 0, &farewell)).await.unwrap();
                if closes {
                    socket.shutdown().await.unwrap();
                }
                while socket.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
            })
            .await;
            let sidecar = Sidecar::new(app.address, AppProtocol::H2c);
            let mut client = sidecar.connect().await;
            let (status, _) = client.get("/").await;
            assert_eq!((status, app.seen.connections.get()), expected);
        }
    });
}

/// An app that answers the first request on each connection. It reads the head of the second one, sends `farewell` and
/// closes. Counts requests in `held`.
async fn closing_app(speaks: Speaks, farewell: &'static [u8]) -> App {
    App::raw(async move |seen: Rc<Seen>, socket: TcpStream| match speaks {
        Speaks::Http1 => close_http1(seen, socket, farewell).await,
        Speaks::Http2 => close_http2(seen, socket).await,
    })
    .await
}

async fn close_http1(seen: Rc<Seen>, mut socket: TcpStream, farewell: &[u8]) {
    for is_last in [false, true] {
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if socket.read_buf(&mut head).await.unwrap() == 0 {
                return;
            }
        }
        seen.held.set(seen.held.get() + 1);
        let answer = if is_last { farewell } else { b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" };
        socket.write_all(answer).await.unwrap();
    }
}

async fn close_http2(seen: Rc<Seen>, socket: TcpStream) {
    let mut connection = h2::server::handshake(socket).await.unwrap();
    let mut is_first = true;
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        seen.held.set(seen.held.get() + 1);
        if !std::mem::take(&mut is_first) {
            return;
        }
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(b"ok"), true).unwrap();
    }
}

fn protocol(speaks: Speaks) -> AppProtocol {
    if speaks == Speaks::Http2 { AppProtocol::H2c } else { AppProtocol::Http }
}

#[test]
fn a_get_is_sent_again_if_its_kept_connection_was_closed_and_a_post_is_never_sent_twice() {
    run(async {
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let app = closing_app(speaks, b"").await;
            let sidecar = Sidecar::new(app.address, protocol(speaks));
            let mut client = sidecar.connect().await;
            assert_eq!(client.get("/").await.0, 200);
            assert_eq!(client.get("/").await, (200, "ok".to_owned()));
            assert_eq!((app.seen.held.get(), app.seen.connections.get()), (3, 2));
            for body in ["", "a body"] {
                let before = app.seen.held.get();
                let post = Request::post("http://app.example/").body(full(body)).unwrap();
                assert_eq!(text(client.send(post).await.unwrap()).await.0, 503);
                assert_eq!(app.seen.held.get() - before, 1, "{body:?}");
                assert_eq!(client.get("/").await.0, 200);
            }
        }
    });
}

#[test]
fn a_get_whose_answer_has_begun_is_not_sent_again() {
    run(async {
        let app = closing_app(Speaks::Http1, b"HTTP/1.1 20").await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut client = sidecar.connect().await;
        assert_eq!(client.get("/").await.0, 200);
        assert_eq!(client.get("/").await.0, 503);
        assert_eq!(app.seen.held.get(), 2);
    });
}

#[test]
fn a_get_on_a_new_connection_that_is_closed_is_not_sent_again() {
    run(async {
        let app = App::raw(async |seen: Rc<Seen>, mut socket: TcpStream| {
            let _ = socket.read(&mut [0; 1024]).await;
            seen.held.set(seen.held.get() + 1);
        })
        .await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        assert_eq!(sidecar.connect().await.get("/").await.0, 503);
        assert_eq!(app.seen.held.get(), 1);
    });
}

#[test]
fn a_post_of_which_no_byte_of_the_body_was_sent_is_sent_again() {
    run(async {
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let app = closing_app(speaks, b"").await;
            let sidecar = Sidecar::new(app.address, protocol(speaks));
            let mut client = sidecar.connect().await;
            assert_eq!(client.get("/").await.0, 200);
            let (mut sender, body) = Channel::<Bytes>::new(1);
            let body: DynBody = Box::pin(body.map_err(|never| match never {}));
            let post = client.sender.send_request(Request::post("http://app.example/").body(body).unwrap());
            let answered = tokio::task::spawn_local(post);
            until(|| app.seen.connections.get() == 2).await;
            // The app may have answered already.
            let _ = sender.send_data(Bytes::from_static(b"now")).await;
            drop(sender);
            assert_eq!(answered.await.unwrap().unwrap().status(), 200);
        }
    });
}

/// Whether a client's bytes hold a HEADERS frame.
fn has_headers(mut bytes: &[u8]) -> bool {
    bytes = bytes.get(24..).unwrap_or_default();
    while let [high, middle, low, kind, _, rest @ ..] = bytes {
        if *kind == HEADERS {
            return true;
        }
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        bytes = rest.get(4 + length..).unwrap_or_default();
    }
    false
}
