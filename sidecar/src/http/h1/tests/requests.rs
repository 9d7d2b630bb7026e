//! What the app receives, and what a client must not be able to forge.

use std::rc::Rc;
use std::time::SystemTime;

use tidegate_core::PeerCertificate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{World, local, read_head, read_rest, read_until};
use crate::connection_info::VerifiedCertificate;
use crate::limits::Limits;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn certificate() -> Rc<VerifiedCertificate> {
    let now = SystemTime::UNIX_EPOCH;
    Rc::new(VerifiedCertificate {
        leaf: PeerCertificate { sans: vec![], not_before: now, not_after: now, serial: "1".into() },
        chain: vec![],
        forwarded: "Hash=00;DNS=nginx.ingress.cluster.local".into(),
        names: "DNS:nginx.ingress.cluster.local".into(),
    })
}

async fn seen(world: &mut World, input: &[u8]) -> String {
    world.app.answer(OK);
    let answer = world.answers(input).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", answer.escape_ascii());
    String::from_utf8(world.app.seen()).unwrap()
}

#[tokio::test]
async fn a_request_comes_with_its_address_its_scheme_and_an_id() {
    local(async {
        let mut world = World::new().await;
        let seen = seen(&mut world, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let (start, id) = seen.split_once("x-request-id: ").unwrap();
        let fields = "Host: a\r\nx-forwarded-for: 10.0.0.7\r\nx-forwarded-proto: http\r\n";
        assert_eq!(start, format!("GET /x HTTP/1.1\r\n{fields}"));
        assert_eq!(id.strip_suffix("\r\n\r\n").unwrap().len(), 36);
    })
    .await;
}

#[tokio::test]
async fn an_ingress_controller_s_headers_about_its_client_are_kept() {
    local(async {
        let mut world = World::new().await;
        let input = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: h\r\nX-Forwarded-Port: 443\r\nX-Request-ID: abc\r\nx-forwarded-for: 5.6.7.8\r\n\r\n";
        let expected = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: h\r\nX-Forwarded-Port: 443\r\nx-forwarded-for: 1.2.3.4, 5.6.7.8, 10.0.0.7\r\nx-forwarded-proto: https\r\nx-request-id: abc\r\n\r\n";
        assert_eq!(seen(&mut world, input).await, expected);
    })
    .await;
}

#[tokio::test]
async fn the_mesh_s_own_headers_are_dropped_in_every_spelling_and_ours_always_arrive() {
    let fields = "X_Forwarded_Client_Cert: evil\r\nx-FORWARDED-client-cert: evil\r\nx.forwarded.for: evil\r\nX-Tidegate-Principal: evil\r\nx-forwarded-proto: evil\r\nx-request-id: evil evil\r\n";
    for connection in [
        "close, X-Forwarded-Client-Cert",
        "x-forwarded-client-cert",
        "x\r\nConnection: X-Forwarded-Client-Cert",
    ] {
        for client in [None, Some(certificate())] {
            local(async {
                let mut world = World::new().await;
                world.client = client.clone();
                let input = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n{fields}\r\n");
                let seen = seen(&mut world, input.as_bytes()).await;
                assert!(!seen.contains("evil"), "{seen}");
                assert!(!seen.to_ascii_lowercase().contains("\r\nconnection:"), "{seen}");
                let ours = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/httpbin/sa/httpbin;Hash=00;DNS=nginx.ingress.cluster.local\r\n";
                assert_eq!(seen.contains(ours), client.is_some(), "{seen}");
                assert_eq!(seen.matches("client-cert").count(), usize::from(client.is_some()), "{seen}");
            })
            .await;
        }
    }
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection_to_the_app() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        let mut client = world.connect();
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert_eq!(read_until(&mut client, "ok").await.as_bytes(), OK);
        }
        let pipelined =
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nxGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(pipelined).await.unwrap();
        read_until(&mut client, "ok").await;
        read_until(&mut client, "ok").await;
        assert_eq!(world.app.connections(), 1);
        let answer = world.answers(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        assert_eq!(world.app.connections(), 1);
    })
    .await;
}

#[tokio::test]
async fn http_1_0_is_served_and_answered_so_that_it_understands() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        let answer =
            world.answers(b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi").await;
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        assert!(!String::from_utf8(world.app.seen()).unwrap().contains("Expect"));
        let twice = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".repeat(2);
        let answer = String::from_utf8(world.answers(&twice).await).unwrap();
        assert_eq!(answer.matches("connection: keep-alive\r\n\r\nok").count(), 2, "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_chunked_answer_ends_with_the_connection_for_http_1_0() {
    local(async {
        let mut world = World::new().await;
        world
            .app
            .answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n");
        let answer = world.answers(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello");
    })
    .await;
}

#[tokio::test]
async fn a_head_past_the_limits_is_refused() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        let fields = |count: usize| "A:b\r\n".repeat(count);
        for (input, status) in [
            (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(70_000)), 414),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(70_000)), 431),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(128)), 431),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(10_000)), 431),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(127)), 200),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(60_000)), 200),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n", "a, ".repeat(100)), 400),
        ] {
            let mut client = world.connect();
            let (mut reader, mut writer) = tokio::io::split(&mut client);
            let (_, head) = tokio::join!(
                // The connection may be closed before everything is written.
                async { writer.write_all(input.as_bytes()).await.is_ok() },
                read_head(&mut reader)
            );
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{} {head}", input.len());
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_byte_by_byte_and_one_in_one_piece_are_the_same() {
    local(async {
        let mut world = World::with(Limits::default()).await;
        world.app.answer(OK);
        let input = b"POST /x HTTP/1.1\r\nHost: a\r\nX-Request-Id: 1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: u\r\n\r\n";
        let mut client = world.connect();
        for byte in input {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        read_until(&mut client, "ok").await;
        let by_byte = String::from_utf8(world.app.seen()).unwrap();
        client.write_all(input).await.unwrap();
        read_until(&mut client, "ok").await;
        let both = String::from_utf8(world.app.seen()).unwrap();
        let in_one = both.strip_prefix(&by_byte).unwrap();
        let (head, body) = in_one.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "3\r\nabc\r\n0\r\nT: u\r\n\r\n");
        // Only the boundaries of chunks may differ, because each is forwarded as it arrives.
        assert_eq!(by_byte, format!("{head}\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n"));
    })
    .await;
}

#[tokio::test]
async fn the_app_decides_on_expect_100_continue() {
    for (interim, answer) in [
        ("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"),
        ("", "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n"),
        ("", "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n"),
    ] {
        local(async {
            let world = World::new().await;
            let mut client = world.connect();
            let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            let mut app = world.app.accept().await;
            assert!(read_head(&mut app).await.contains("\r\nExpect: 100-continue\r\n"));
            if interim.is_empty() {
                app.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
                assert_eq!(read_head(&mut client).await, format!("{answer}connection: close\r\n\r\n"));
                assert_eq!(read_rest(&mut client).await, b"");
                assert_eq!(read_rest(&mut app).await, b"", "not a byte of the body");
                assert!(world.env.upstreams.connections().idle == 0);
            } else {
                app.write_all(interim.as_bytes()).await.unwrap();
                assert_eq!(read_head(&mut client).await, interim);
                client.write_all(b"hello").await.unwrap();
                let mut body = [0; 5];
                app.read_exact(&mut body).await.unwrap();
                assert_eq!(&body, b"hello");
                app.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
                assert_eq!(read_head(&mut client).await, format!("{answer}\r\n"));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn bodies_go_both_ways_at_the_same_time() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        app.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        read_head(&mut client).await;
        for round in 0..3 {
            let chunk = format!("2\r\nc{round}\r\n");
            client.write_all(chunk.as_bytes()).await.unwrap();
            assert_eq!(read_until(&mut app, &chunk).await, chunk);
            let chunk = format!("2\r\na{round}\r\n");
            app.write_all(chunk.as_bytes()).await.unwrap();
            assert_eq!(read_until(&mut client, &chunk).await, chunk);
        }
        client.write_all(b"0\r\n\r\n").await.unwrap();
        assert_eq!(read_until(&mut app, "0\r\n\r\n").await, "0\r\n\r\n");
        app.write_all(b"0\r\ngrpc-status: 0\r\n\r\n").await.unwrap();
        let end = read_until(&mut client, "\r\n\r\n").await;
        assert_eq!(end, "0\r\ngrpc-status: 0\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn a_body_waits_while_the_other_side_does_not_read_it() {
    local(async {
        let world = World::new().await;
        let length = 32 * 1024 * 1024;
        let mut client = world.connect();
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        let mut sent = 0;
        // The app does not read: the client's writes must stall.
        while let std::task::Poll::Ready(written) = futures_util::poll!(std::pin::pin!(client.write(&[7; 65536]))) {
            sent += written.unwrap();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(sent < length / 2, "{sent} bytes were taken");
        }
        let mut received = 0;
        let mut bytes = vec![0; 65536];
        while received < length {
            tokio::select! {
                count = app.read(&mut bytes) => {
                    let count = count.unwrap();
                    assert!(count > 0 && bytes[..count].iter().all(|byte| *byte == 7));
                    received += count;
                }
                count = client.write(&[7; 65536][..(length - sent).min(65536)]), if sent < length => sent += count.unwrap(),
            }
        }
        app.write_all(OK).await.unwrap();
        assert_eq!(read_until(&mut client, "ok").await.as_bytes(), OK);
        assert_eq!(world.env.upstreams.connections().idle, 1);
    })
    .await;
}
