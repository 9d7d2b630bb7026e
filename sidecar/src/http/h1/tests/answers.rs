//! What the client receives: the app's responses, and local ones.

use std::time::Instant;

use tokio::io::AsyncWriteExt;

use super::records::Log;
use super::world::{World, local, read_head, read_rest, read_until};
use crate::upstream::UNSURE_AFTER;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The app's response, the client's, and whether the app's connection is reused.
const ANSWERS: &[(&str, &[u8], &[u8], bool)] = &[
    ("a length", b"HTTP/1.1 200 OK\r\nServer: x\r\nX-B: 1\r\ncontent-Length: 2\r\nX-A: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nServer: x\r\nX-B: 1\r\ncontent-Length: 2\r\nX-A: 2\r\n\r\nok", true),
    ("equal lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
    ("chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n02;a=b \r\nok\r\n0;x\r\n\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true),
    ("trailers", b"HTTP/1.1 200 OK\r\nTrailer: grpc-status\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 200 OK\r\nTrailer: grpc-status\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n", true),
    ("the end of the connection", b"HTTP/1.1 200 OK\r\n\r\nok", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false),
    ("hop-by-hop fields", b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok", false),
    ("no content", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n", true),
    ("not modified", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", true),
    ("no reason", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", true),
    ("interim answers", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
    ("more than its length", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
    ("more than its chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", false),
    ("a body with 204", b"HTTP/1.1 204 No Content\r\n\r\nbody", b"HTTP/1.1 204 No Content\r\n\r\n", false),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
    ("line feeds alone", b"HTTP/1.1 200 OK\nA: b\nContent-Length: 2\r\nC: d\n\nok", b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 2\r\nC: d\r\n\r\nok", true),
    ("folded lines", b"HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n \t \r\n\td\r\nE:\n f\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nA: b c d\r\nE: f\r\nContent-Length: 2\r\n\r\nok", true),
    ("HTTP/1.0 that stays", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
];

/// Responses that cannot be forwarded, and their access log details.
const BAD: &[(&str, &[u8], &str)] = &[
    ("no status", b"HTTP/1.1 OK\r\n\r\n", "http1.codec_error"),
    ("a status of two digits", b"HTTP/1.1 20 OK\r\n\r\n", "http1.codec_error"),
    ("a status below 100", b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", "http1.codec_error"),
    ("another version", b"HTTP/2.0 200 OK\r\n\r\n", "http1.unsupported_version"),
    ("no HTTP", b"SSH-2.0-x\r\n", "not_http"),
    ("TLS", b"\x15\x03\x01\x00\x02\x02\x46", "tls"),
    (
        "a folded length",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 0\r\n\r\n",
        "http1.folded_line:Content-Length",
    ),
    (
        "a folded list of options",
        b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: close,\r\n\tx\r\nContent-Length: 0\r\n\r\n",
        "http1.folded_line:Connection",
    ),
    (
        "a blank before the colon",
        b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        "http1.invalid_header:Content-Length ",
    ),
    ("NUL", b"HTTP/1.1 200 OK\r\nA: b\r\nX-A: \0\r\nContent-Length: 0\r\n\r\n", "http1.invalid_header:X-A"),
    (
        "an invalid name",
        b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
        "http1.invalid_header:X A",
    ),
    (
        "two framings",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "http1.content_length_and_chunked_not_allowed:transfer-encoding",
    ),
    (
        "two lengths",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
        "http1.invalid_content_length:content-length",
    ),
    (
        "another coding",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "http1.invalid_transfer_encoding:transfer-encoding",
    ),
    (
        "a coding in HTTP/1.0",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "http1.invalid_transfer_encoding:transfer-encoding",
    ),
    (
        "an invalid chunk",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "http1.invalid_chunk",
    ),
    (
        "a switch that the client did not ask for",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "http1.unexpected_101",
    ),
];

/// A local response without its `date`, after checking the date's format.
fn without_date(answer: &str) -> String {
    let (start, rest) = answer.split_once("date: ").unwrap();
    let (date, rest) = rest.split_at(29);
    assert!(date.ends_with(" GMT"), "{date}");
    format!("{start}date: {rest}")
}

#[tokio::test]
async fn an_answer_is_forwarded_and_the_connection_kept_only_if_it_ended_exactly() {
    for (case, answer, expected, is_kept) in ANSWERS {
        local(async {
            let world = World::new().await;
            let mut client = world.connect();
            client.write_all(GET).await.unwrap();
            let mut app = world.app.accept().await;
            read_head(&mut app).await;
            app.write_all(answer).await.unwrap();
            if !is_kept {
                app.shutdown().await.unwrap();
            }
            let end = std::str::from_utf8(expected).unwrap();
            assert_eq!(read_until(&mut client, end).await, end, "{case}");
            client.shutdown().await.unwrap();
            assert_eq!(read_rest(&mut client).await, b"", "{case}");
            assert_eq!(world.env.upstreams.connections().idle, usize::from(*is_kept), "{case}");
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http_becomes_502_and_the_log_says_why() {
    for (case, answer, cause) in BAD {
        let log = Log::new();
        local(async {
            let world = log.world().await;
            let mut client = world.connect();
            client.write_all(GET).await.unwrap();
            let mut app = world.app.accept().await;
            read_head(&mut app).await;
            app.write_all(answer).await.unwrap();
            let body = "upstream connect error or disconnect/reset before headers. reset reason: protocol error";
            let text = without_date(&read_until(&mut client, body).await);
            let head = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 87\r\ncontent-type: text/plain\r\ndate: \r\n\r\n";
            assert_eq!(text, format!("{head}{body}"), "{case}");
            assert!(world.env.upstreams.connections().idle == 0, "{case}");
            let lines = log.lines(&world, 1).await;
            let details = format!("upstream_reset_before_response_started{{protocol_error:{cause}}}");
            assert_eq!(lines[0]["response_code_details"], *details, "{case}");
            assert_eq!(lines[0]["response_flags"], "UPE", "{case}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_malformed_chunk_cuts_the_answer_off_and_the_log_says_why() {
    let log = Log::new();
    local(async {
        let world = log.world().await;
        let mut client = world.connect();
        client.write_all(GET).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        app.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await.unwrap();
        read_until(&mut client, "ok\r\n").await;
        app.write_all(b"xyz\r\n").await.unwrap();
        assert_eq!(read_rest(&mut client).await, b"");
        let details = "upstream_reset_after_response_started{protocol_error:http1.invalid_chunk}";
        assert_eq!(log.lines(&world, 1).await[0]["response_code_details"], details);
    })
    .await;
}

#[tokio::test]
async fn a_refusal_is_the_one_that_clients_know_and_the_connection_stays_open() {
    local(async {
        let world = World::new().await;
        world.deny();
        let mut client = world.connect();
        let head =
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\ndate: \r\n\r\n";
        for _ in 0..2 {
            client.write_all(GET).await.unwrap();
            let text = read_until(&mut client, "RBAC: access denied").await;
            assert_eq!(without_date(&text), format!("{head}RBAC: access denied"));
        }
        client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(without_date(&read_head(&mut client).await), head);
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel").await.unwrap();
        read_until(&mut client, "RBAC: access denied").await;
        client.write_all(b"loGET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_until(&mut client, "denied").await.starts_with("HTTP/1.1 403 "));
        world.allow(tidegate_core::policy::Sources::Any);
        client.write_all(GET).await.unwrap();
        read_head(&mut world.app.accept().await).await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_grpc_call_gets_a_status_of_grpc_and_the_connection_stays_open() {
    local(async {
        let log = Log::new();
        let world = log.world().await;
        world.deny();
        let mut client = world.connect();
        let call = "POST /a.B/C HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 2\r\n\r\nhi";
        for _ in 0..2 {
            client.write_all(call.as_bytes()).await.unwrap();
            assert_eq!(
                without_date(&read_head(&mut client).await),
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: application/grpc\r\n\
                 grpc-status: 7\r\ngrpc-message: RBAC: access denied\r\ndate: \r\n\r\n"
            );
        }
        let line = &log.lines(&world, 2).await[1];
        let logged = (&line["response_code"], &line["response_code_details"], &line["bytes_sent"]);
        assert_eq!(logged, (&200.into(), &"rbac_access_denied_matched_policy[none]".into(), &0.into()));
    })
    .await;
}

#[tokio::test]
async fn head_gets_a_head() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
    ] {
        local(async {
            let world = World::new().await;
            let mut client = world.connect();
            client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut app = world.app.accept().await;
            read_head(&mut app).await;
            app.write_all(answer.as_bytes()).await.unwrap();
            assert_eq!(read_head(&mut client).await, expected);
            client.write_all(GET).await.unwrap();
            assert!(read_head(&mut app).await.starts_with("GET "), "on the same connection");
        })
        .await;
    }
}

#[tokio::test]
async fn interim_answers_are_not_for_http_1_0() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let answer = world.answers(b"GET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nconnection: close\r\n\r\nok");
    })
    .await;
}

#[tokio::test]
async fn an_app_that_does_not_listen_is_503() {
    local(async {
        let mut world = World::new().await;
        world.app.stop();
        let text = String::from_utf8(world.answers(&GET.repeat(2)).await).unwrap();
        let body = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
        assert_eq!(text.matches(&format!("\r\n\r\n{body}")).count(), 2, "{text}");
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn an_app_that_closes_before_it_answers_is_503_and_gets_the_request_once() {
    for start in ["", "HTTP/1.1 200 O"] {
        local(async {
            let world = World::new().await;
            let mut client = world.connect();
            client.write_all(GET).await.unwrap();
            let mut app = world.app.accept().await;
            read_head(&mut app).await;
            app.write_all(start.as_bytes()).await.unwrap();
            drop(app);
            let text = read_until(&mut client, "reset reason: connection termination").await;
            assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
            client.write_all(GET).await.unwrap();
            let head = read_head(&mut world.app.accept().await).await;
            assert_eq!(head.matches("GET ").count(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn a_pooled_connection_that_the_app_has_closed_costs_no_request() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(GET).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        read_until(&mut client, "ok").await;
        drop(app);
        let closed = Instant::now();
        while closed.elapsed() < UNSURE_AFTER * 2 {
            tokio::task::yield_now().await;
        }
        client.write_all(GET).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        assert!(read_until(&mut client, "ok").await.starts_with("HTTP/1.1 200 "));
    })
    .await;
}

#[tokio::test]
async fn a_body_that_was_not_begun_is_sent_to_a_new_connection_if_the_kept_one_was_closed() {
    local(async {
        let world = World::new().await;
        let mut client = world.connect();
        client.write_all(GET).await.unwrap();
        let mut app = world.app.accept().await;
        read_head(&mut app).await;
        app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        read_until(&mut client, "ok").await;
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
        let head = read_head(&mut app).await;
        drop(app);
        let mut app = world.app.accept().await;
        assert_eq!(read_head(&mut app).await, head);
        client.write_all(b"body").await.unwrap();
        read_until(&mut app, "body").await;
        // Now a byte of it was sent.
        drop(app);
        assert!(read_until(&mut client, "connection termination").await.starts_with("HTTP/1.1 503 "));
    })
    .await;
}

#[tokio::test]
async fn an_app_that_dies_in_its_answer_leaves_a_cut_off_answer() {
    for (start, rest) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "hello"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n"),
    ] {
        local(async {
            let world = World::new().await;
            let mut client = world.connect();
            client.write_all(GET).await.unwrap();
            let mut app = world.app.accept().await;
            read_head(&mut app).await;
            app.write_all(format!("{start}{rest}").as_bytes()).await.unwrap();
            read_until(&mut client, "hello").await;
            drop(app);
            let end = read_rest(&mut client).await;
            assert!(end.is_empty() || end == b"\r\n", "{}", end.escape_ascii());
        })
        .await;
    }
}

#[tokio::test]
async fn bodies_at_the_edges_of_buffers_arrive_whole_with_their_trailers() {
    for size in [1, 16_383, 16_384, 16_385, 65_534, 65_535, 65_536, 65_537, 1_000_000] {
        for trailer in [1, 1024, 32 * 1024] {
            local(async {
                let world = World::new().await;
                let mut client = world.connect();
                client.write_all(GET).await.unwrap();
                let mut app = world.app.accept().await;
                read_head(&mut app).await;
                let answer = [
                    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n").into_bytes(),
                    vec![b'x'; size],
                    format!("\r\n0\r\ngrpc-message: {}\r\ngrpc-status: 0\r\n\r\n", "m".repeat(trailer))
                        .into_bytes(),
                ]
                .concat();
                let send = async {
                    app.write_all(&answer).await.unwrap();
                };
                let (text, ()) = tokio::join!(read_until(&mut client, "grpc-status: 0\r\n\r\n"), send);
                assert_eq!(text.matches('x').count(), size);
                assert_eq!(text.matches('m').count(), trailer + 1, "and one in its name");
            })
            .await;
        }
    }
}
