//! Protocol upgrades that the app has accepted.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::records::Log;
use super::world::{World, local, own_fields, read_head, read_rest, read_until};
use crate::lifeline::{Cause, Wait};

const UPGRADE: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket, h2c, websocket\r\nSec-WebSocket-Key: x\r\n\r\n";

#[tokio::test]
async fn after_101_bytes_go_both_ways_until_both_sides_have_ended() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(UPGRADE).await.unwrap();
        client.write_all(b"early").await.unwrap();
        let mut app = world.app.accept().await;
        let head = own_fields(&read_head(&mut app).await);
        assert_eq!(
            head,
            "GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: x\r\nconnection: upgrade\r\nupgrade: websocket, websocket\r\n\r\n"
        );
        app.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\nfirst").await.unwrap();
        assert_eq!(
            read_until(&mut client, "first").await,
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: y\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nfirst"
        );
        assert_eq!(read_until(&mut app, "early").await, "early", "only now");
        client.write_all(b"ping").await.unwrap();
        assert_eq!(read_until(&mut app, "ping").await, "ping");
        client.shutdown().await.unwrap();
        assert_eq!(app.read(&mut [0; 8]).await.unwrap(), 0, "the half-close arrives");
        app.write_all(b"last words").await.unwrap();
        assert_eq!(read_until(&mut client, "words").await, "last words");
        drop(app);
        assert_eq!(read_rest(&mut client).await, b"");
        assert!(world.env.upstreams.connections().idle == 0);
    })
    .await;
}

#[tokio::test]
async fn a_websocket_that_the_sidecar_ends_gets_a_close_frame_between_frames() {
    let (text, cut, close) = (&[0x81, 2, b'h', b'i'][..], &[0x81, 9, b'h'][..], &[0x88, 2, 3, 0xe9][..]);
    for (protocol, sent, cause, expected) in [
        ("websocket", text, Cause::TrustBundleChanged, [text, close].concat()),
        ("websocket", &[][..], Cause::PolicyChanged, close.to_vec()),
        ("websocket", close, Cause::Draining, close.to_vec()),
        ("websocket", cut, Cause::TrustBundleChanged, cut.to_vec()),
        ("websocket", text, Cause::Deadline(Wait::Body), text.to_vec()),
        ("other", text, Cause::TrustBundleChanged, text.to_vec()),
    ] {
        local(async {
            let world = World::new().await;
            let mut client = world.connect();
            let asked =
                format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n");
            client.write_all(asked.as_bytes()).await.unwrap();
            let mut app = world.app.accept().await;
            read_head(&mut app).await;
            let switched = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: upgrade\r\n\r\n"
            );
            app.write_all(&[switched.as_bytes(), sent].concat()).await.unwrap();
            read_head(&mut client).await;
            let mut seen = vec![0; sent.len()];
            client.read_exact(&mut seen).await.unwrap();
            world.lines.for_each(|line, ()| line.close(cause));
            seen.extend(read_rest(&mut client).await);
            assert_eq!(seen, expected, "{protocol} {cause:?}");
            assert_eq!(app.read(&mut [0; 8]).await.unwrap_or_default(), 0);
        })
        .await;
    }
}

#[tokio::test]
async fn bytes_after_an_upgrade_that_the_app_refuses_are_the_next_request() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(&[UPGRADE, b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"].concat()).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        world.deny();
        app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        read_until(&mut client, "ok").await;
        let text = read_until(&mut client, "denied").await;
        assert!(text.starts_with("HTTP/1.1 403 "), "judged by policy: {text}");
        assert_eq!(read_rest(&mut app).await, b"", "and the connection that was to switch is not used again");
        assert!(world.env.upstreams.connections().idle == 0);
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_is_ignored_without_its_connection_option_or_in_http_1_0() {
    for input in [
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        local(async {
            let mut world = World::new().await;
            world.app.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            world.answers(input.as_bytes()).await;
            let seen = String::from_utf8(world.app.seen()).unwrap().to_ascii_lowercase();
            assert!(seen.starts_with("get / ") && !seen.contains("upgrade"), "{seen}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_switch_without_a_protocol_or_to_one_that_was_not_offered_is_502() {
    for (fields, cause) in [
        ("", "http1.101_without_upgrade:upgrade"),
        ("Upgrade: ,\r\n", "http1.101_without_upgrade:upgrade"),
        ("Connection: upgrade\r\nUpgrade: tcp\r\n", "http1.101_to_another_protocol:upgrade"),
        // Offered by the client, but not forwarded.
        ("Connection: upgrade\r\nUpgrade: h2c\r\n", "http1.101_to_another_protocol:upgrade"),
        ("Connection: upgrade\r\nUpgrade: websocket, tcp\r\n", "http1.101_to_another_protocol:upgrade"),
    ] {
        let log = Log::new();
        local(async {
            let world = log.world().await;
            let mut client = world.connect();
            client.write_all(UPGRADE).await.unwrap();
            let mut app = world.app.accept().await;
            read_head(&mut app).await;
            let head = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
            app.write_all(head.as_bytes()).await.unwrap();
            let text = read_until(&mut client, "protocol error").await;
            assert!(text.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{text}");
            assert_eq!(read_rest(&mut app).await, b"", "no tunnel");
            let details = format!("upstream_reset_before_response_started{{protocol_error:{cause}}}");
            assert_eq!(log.lines(&world, 1).await[0]["response_code_details"], *details);
        })
        .await;
    }
}

#[tokio::test]
async fn names_of_protocols_are_compared_in_any_case() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(UPGRADE).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        app.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.contains("\r\nupgrade: WebSocket\r\n"));
    })
    .await;
}
