//! How connections end: deadlines, drain, revocation, disconnects. Also the size of a connection's future.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::world::{World, local, read_head, read_rest, read_until};
use crate::http::buffer::LARGE;
use crate::http::h1;

use crate::lifeline::{Cause, Lifeline, Phase};
use crate::limits::Limits;
use crate::stream::{Abort, PeerEnd};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Runs the other tasks until they wait.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_after_a_request_still_gets_its_answer() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(GET).await.unwrap();
        client.shutdown().await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        settle().await;
        app.write_all(OK).await.unwrap();
        assert_eq!(read_rest(&mut client).await, OK);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_disconnects_within_its_body_ends_the_app_s_connection() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
        let mut app = world.app.accept().await;
        read_until(&mut app, "hello").await;
        drop(client);
        assert_eq!(read_rest(&mut app).await, b"");
        assert!(world.env.upstreams.connections().idle == 0);
    })
    .await;
}

#[tokio::test]
async fn a_head_that_takes_too_long_is_408_and_an_idle_connection_just_closes() {
    local(async {
        let world = World::new().await;
        let limits = Limits::default();
        let mut idle = world.connect();
        settle().await;
        world.lines.expire(Instant::now() + limits.headers * 2);
        let mut slow = idle;
        slow.write_all(b"GET / HT").await.unwrap();
        settle().await;
        world.lines.expire(Instant::now() + limits.headers * 2);
        let text = String::from_utf8(read_rest(&mut slow).await).unwrap();
        assert!(text.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{text}");
        assert!(text.contains("\r\nconnection: close\r\n"), "{text}");

        let world = World::new().await;
        idle = world.connect();
        settle().await;
        world.lines.expire(Instant::now() + limits.idle * 2);
        assert_eq!(read_rest(&mut idle).await, b"");
    })
    .await;
}

#[tokio::test]
async fn a_stalled_body_is_408_and_a_stalled_answer_is_cut_off() {
    local(async {
        let limits = Limits::default();
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
        let mut app = world.app.accept().await;
        read_until(&mut app, "hello").await;
        settle().await;
        world.lines.expire(Instant::now() + limits.body * 2);
        let text = String::from_utf8(read_rest(&mut client).await).unwrap();
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");

        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(GET).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        settle().await;
        world.lines.expire(Instant::now() + limits.body * 2);
        settle().await;
        app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await.unwrap();
        read_until(&mut client, "hello").await;
        settle().await;
        world.lines.expire(Instant::now() + limits.body * 2);
        assert_eq!(
            read_rest(&mut client).await,
            b"",
            "an app may think for long, but not in the middle of its answer"
        );
    })
    .await;
}

const LAST_OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

#[tokio::test]
async fn a_leaving_connection_says_so_in_its_next_answer() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        let mut idle = world.connect();
        idle.write_all(GET).await.unwrap();
        assert_eq!(read_until(&mut idle, "ok").await.as_bytes(), OK);
        settle().await;
        world.line.close_gracefully(Cause::Draining, Duration::from_secs(2), Duration::from_secs(5));
        settle().await;
        idle.write_all(GET).await.unwrap();
        assert_eq!(read_rest(&mut idle).await, LAST_OK);
        assert_eq!(world.app.connections(), 1);

        let world = World::new().await;
        let mut busy = world.connect();
        busy.write_all(GET).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        world.line.close_gracefully(Cause::Draining, Duration::from_secs(2), Duration::from_secs(5));
        app.write_all(OK).await.unwrap();
        assert_eq!(read_rest(&mut busy).await, LAST_OK);
    })
    .await;
}

#[tokio::test]
async fn an_idle_leaving_connection_is_closed_after_its_time_and_a_half_sent_head_is_waited_for() {
    local(async {
        for sent in [&b""[..], &GET[..9]] {
            let mut world = World::new().await;
            world.app.answer(OK);
            let mut client = world.connect();
            client.write_all(sent).await.unwrap();
            settle().await;
            world.line.close_gracefully(Cause::Draining, Duration::from_secs(2), Duration::from_secs(5));
            world.lines.expire(Instant::now() + Duration::from_secs(1));
            settle().await;
            world.lines.expire(Instant::now() + Duration::from_secs(3));
            settle().await;
            if !sent.is_empty() {
                client.write_all(&GET[sent.len()..]).await.unwrap();
            }
            let answer = if sent.is_empty() { &b""[..] } else { LAST_OK };
            assert_eq!(read_rest(&mut client).await, answer);
        }
    })
    .await;
}

/// Becomes readable only after several polls, like a socket whose readiness the runtime has not fetched yet.
struct Late {
    io: DuplexStream,
    looks: usize,
}

impl AsyncRead for Late {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.looks.checked_sub(1) {
            Some(left) => {
                self.looks = left;
                Poll::Pending
            }
            None => Pin::new(&mut self.io).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Late {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl Abort for Late {
    fn abort(&self) {}

    fn peer_end(&self) -> PeerEnd {
        PeerEnd::Open
    }
}

#[tokio::test]
async fn a_request_that_arrives_before_an_idle_connection_is_closed_is_answered() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        let (mut client, far) = tokio::io::duplex(4096);
        client.write_all(GET).await.unwrap();
        let (handler, line, env) = (world.handler(), Lifeline::new(), world.env.clone());
        let ending = line.clone();
        // Once when it begins to wait, once when it must end.
        let far = Late { io: far, looks: 2 };
        let serving = tokio::task::spawn_local(async move {
            h1::serve(far, BytesMut::new(), &handler, &line, &env).await;
        });
        settle().await;
        assert!(!serving.is_finished());
        ending.finish(Cause::Draining, Duration::from_secs(5));
        assert_eq!(read_rest(&mut client).await, LAST_OK);
    })
    .await;
}

#[tokio::test]
async fn a_revoked_connection_is_cut_off_in_flight() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(GET).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        settle().await;
        world.line.close(Cause::PolicyChanged);
        assert_eq!(read_rest(&mut client).await, b"");
        assert_eq!(read_rest(&mut app).await, b"");
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_ends_the_connection_unless_the_rest_of_the_body_is_short() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
        let mut app = world.app.accept().await;
        read_until(&mut app, "hello").await;
        app.write_all(OK).await.unwrap();
        assert_eq!(read_until(&mut client, "ok").await.as_bytes(), OK);
        client.write_all(b"worldGET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(read_rest(&mut app).await, b"", "a half-sent request ends the app's connection");
        let mut app = world.app.accept().await;
        assert!(read_head(&mut app).await.starts_with("GET "));

        let mut client = world.connect();
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhello")
            .await
            .unwrap();
        let mut app = world.app.accept().await;
        read_until(&mut app, "hello").await;
        app.write_all(OK).await.unwrap();
        let end = read_until(&mut client, "ok").await;
        assert!(end.contains("\r\nconnection: close\r\n"), "{end}");
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn bytes_that_were_read_before_are_the_first_of_the_connection() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        let (mut client, far) = tokio::io::duplex(4096);
        let (handler, line, env) = (world.handler(), Lifeline::new(), world.env.clone());
        client.write_all(&GET[5..]).await.unwrap();
        client.shutdown().await.unwrap();
        h1::serve(far, BytesMut::from(&GET[..5]), &handler, &line, &env).await;
        assert_eq!(read_rest(&mut client).await, OK);
    })
    .await;
}

#[tokio::test]
async fn an_app_that_does_not_accept_the_connection_in_time_is_504() {
    local(async {
        let mut world = World::new().await;
        world.app.stop();
        // A listener that does not accept, with a full queue.
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        world.app.address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queue = Vec::new();
        loop {
            let mut connecting = Box::pin(TcpStream::connect(world.app.address));
            settle().await;
            let _ = futures_util::poll!(&mut connecting);
            settle().await;
            match futures_util::poll!(&mut connecting) {
                Poll::Ready(connected) => queue.push(connected.unwrap()),
                Poll::Pending => break,
            }
            assert!(queue.len() < 64, "the queue has an end");
        }
        let mut client = world.connect();
        client.write_all(GET).await.unwrap();
        settle().await;
        world.lines.expire(Instant::now() + Limits::default().connect * 2);
        let text = read_until(&mut client, "reset reason: connection timeout").await;
        assert!(text.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{text}");
        // The client's own connection stays open.
        world.lines.for_each(|line, ()| assert_eq!(line.phase(), Phase::Open));
    })
    .await;
}

#[tokio::test]
async fn an_open_tunnel_may_be_silent_for_long_but_a_half_open_one_may_not() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(upgrade).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        app.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        read_head(&mut client).await;
        settle().await;
        world.lines.expire(Instant::now() + Limits::default().idle * 10);
        app.write_all(b"ping").await.unwrap();
        assert_eq!(read_until(&mut client, "ping").await, "ping");
        client.shutdown().await.unwrap();
        assert_eq!(app.read(&mut [0; 8]).await.unwrap(), 0);
        settle().await;
        world.lines.expire(Instant::now() + Limits::default().body * 2);
        assert_eq!(read_rest(&mut client).await, b"");
    })
    .await;
}

#[tokio::test]
async fn a_long_answer_to_a_fast_client_moves_one_turn_at_a_time() {
    local(async {
        const ALL: usize = 1 << 20;
        let world = World::new().await;
        let (mut client, far) = tokio::io::duplex(2 * ALL);
        let (handler, line, env) = (world.handler(), Lifeline::new(), world.env.clone());
        let mut serving = Box::pin(h1::serve(far, BytesMut::from(GET), &handler, &line, &env));
        let mut app = loop {
            assert!(futures_util::poll!(&mut serving).is_pending());
            match futures_util::poll!(Box::pin(world.app.accept())) {
                Poll::Ready(app) => break app,
                Poll::Pending => tokio::task::yield_now().await,
            }
        };
        let sending = tokio::task::spawn_local(async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {ALL}\r\n\r\n");
            app.write_all(head.as_bytes()).await.unwrap();
            app.write_all(&vec![b'x'; ALL]).await.unwrap();
            app
        });
        let mut received = BytesMut::with_capacity(2 * ALL);
        while received.len() < ALL {
            assert!(futures_util::poll!(&mut serving).is_pending());
            let before = received.len();
            while futures_util::poll!(Box::pin(client.read_buf(&mut received))).is_ready() {}
            // A turn may exceed its budget by one read.
            assert!(received.len() - before <= 2 * LARGE, "{}", received.len() - before);
            settle().await;
        }
        drop(sending.await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_connection_s_future_is_small() {
    let world = World::new().await;
    let (_near, far) = tokio::io::duplex(16);
    let stream = size_of_val(&far);
    let (handler, line, env) = (world.handler(), Lifeline::new(), Rc::clone(&world.env));
    let size = size_of_val(&h1::serve(far, BytesMut::new(), &handler, &line, &env)) - stream;
    assert!((600..=1536).contains(&size), "{size} bytes");
}
