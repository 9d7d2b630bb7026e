//! Clients that disconnect or half-close while the app has not responded.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{World, local, read_head, read_rest, read_until, reset};
use crate::http::buffer::SMALL;
use crate::limits::Limits;
use crate::stream::LOOK_AT_PEER;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const EVENTS: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncontent-length: 1000\r\n\r\n:\n\n";

/// Runs the other tasks until they wait, so that the kernel can deliver what it has.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A client with a request, and the app that holds it.
async fn asked(world: &World, request: &[u8]) -> (TcpStream, TcpStream) {
    let mut client = world.dial().await;
    client.write_all(request).await.unwrap();
    let mut app = world.app.accept().await;
    read_head(&mut app).await;
    (client, app)
}

/// Lets this much time pass for the connection, in ticks of a second.
pub(super) async fn pass(world: &World, time: Duration) {
    let start = Instant::now();
    for second in 1..=time.as_secs() {
        settle().await;
        world.lines.expire(start + Duration::from_secs(second));
    }
    settle().await;
}

/// Whether the app's connection is open and has received nothing.
fn is_open(app: &TcpStream) -> bool {
    matches!(app.try_read(&mut [0; 1]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn a_client_that_resets_its_connection_ends_its_request_at_the_app_at_once() {
    local(async {
        let world = World::new().await;
        let (client, mut app) = asked(&world, GET).await;
        reset(client);
        assert_eq!(read_rest(&mut app).await, b"", "before the answer");

        let (mut client, mut app) = asked(&world, GET).await;
        app.write_all(EVENTS).await.unwrap();
        read_until(&mut client, ":\n\n").await;
        reset(client);
        assert_eq!(read_rest(&mut app).await, b"", "in a silent event stream");

        let (client, mut app) = asked(&world, &[GET, GET].concat()).await;
        reset(client);
        assert_eq!(read_rest(&mut app).await, b"", "with the next request sent already");
        assert!(world.env.upstreams.connections().idle == 0);
    })
    .await;
}

#[tokio::test]
async fn pipelined_bytes_are_bounded_and_do_not_hide_a_disconnect() {
    local(async {
        for is_reset in [true, false] {
            let world = World::new().await;
            let ahead = vec![b'x'; 16 * SMALL];
            let (mut client, mut app) = asked(&world, GET).await;
            client.write_all(&ahead).await.unwrap();
            settle().await;
            assert!(is_open(&app));
            if is_reset {
                reset(client);
                pass(&world, LOOK_AT_PEER * 2).await;
            } else {
                client.shutdown().await.unwrap();
                pass(&world, LOOK_AT_PEER * 2).await;
                assert!(is_open(&app), "it may wait for its answer");
                pass(&world, Limits::default().half_close * 2).await;
            }
            assert_eq!(read_rest(&mut app).await, b"", "reset: {is_reset}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_wait_of_a_client_that_has_half_closed_is_bounded() {
    local(async {
        let limits = Limits::default();
        let world = World::new().await;
        let (mut client, mut app) = asked(&world, GET).await;
        pass(&world, limits.half_close * 3).await;
        assert!(is_open(&app), "a client that stays waits for as long as the app takes");
        client.shutdown().await.unwrap();
        pass(&world, limits.half_close - LOOK_AT_PEER).await;
        assert!(is_open(&app));
        app.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.unwrap();
        read_head(&mut client).await;
        pass(&world, limits.half_close * 2).await;
        let text = String::from_utf8(read_rest(&mut client).await).unwrap();
        assert!(text.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{text}");
        assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
        assert_eq!(read_rest(&mut app).await, b"");

        let world = World::new().await;
        let (mut client, mut app) = asked(&world, GET).await;
        client.shutdown().await.unwrap();
        pass(&world, limits.half_close - LOOK_AT_PEER).await;
        app.write_all(OK).await.unwrap();
        assert_eq!(read_rest(&mut client).await, OK);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_ends_its_side_and_then_resets_is_noticed_within_two_seconds() {
    local(async {
        let world = World::new().await;
        let (mut client, mut app) = asked(&world, GET).await;
        client.shutdown().await.unwrap();
        settle().await;
        reset(client);
        pass(&world, LOOK_AT_PEER * 2).await;
        assert_eq!(read_rest(&mut app).await, b"");
    })
    .await;
}

#[tokio::test]
async fn an_event_stream_may_be_silent_for_longer_than_another_body_as_long_as_its_client_stays() {
    local(async {
        let limits = Limits::default();
        let world = World::new().await;
        let (mut client, mut app) = asked(&world, GET).await;
        app.write_all(EVENTS).await.unwrap();
        read_until(&mut client, ":\n\n").await;
        settle().await;
        world.lines.expire(Instant::now() + limits.body * 2);
        settle().await;
        app.write_all(b"data: 1\n\n").await.unwrap();
        assert_eq!(read_until(&mut client, "\n\n").await, "data: 1\n\n");
        settle().await;
        world.lines.expire(Instant::now() + limits.stream_idle * 2);
        assert_eq!(read_rest(&mut client).await, b"");
        assert_eq!(read_rest(&mut app).await, b"");

        let world = World::new().await;
        let (mut client, mut app) = asked(&world, GET).await;
        app.write_all(EVENTS).await.unwrap();
        read_until(&mut client, ":\n\n").await;
        client.shutdown().await.unwrap();
        pass(&world, limits.half_close - LOOK_AT_PEER).await;
        app.write_all(b"data: 1\n\n").await.unwrap();
        assert_eq!(read_until(&mut client, "\n\n").await, "data: 1\n\n");
        pass(&world, limits.half_close * 2).await;
        assert_eq!(read_rest(&mut app).await, b"", "silent, and its client has ended its side");
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_ends_when_a_half_closed_side_disconnects() {
    local(async {
        for is_client in [true, false] {
            let world = World::new().await;
            let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
            let (mut client, mut app) = asked(&world, upgrade).await;
            app.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
            read_head(&mut client).await;
            let (mut leaving, mut staying) = if is_client { (client, app) } else { (app, client) };
            leaving.shutdown().await.unwrap();
            assert_eq!(staying.read(&mut [0; 8]).await.unwrap(), 0, "the half-close arrives");
            settle().await;
            reset(leaving);
            pass(&world, LOOK_AT_PEER * 2).await;
            while staying.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
}
