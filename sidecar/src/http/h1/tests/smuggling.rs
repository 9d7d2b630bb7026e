//! Requests that two parsers could read differently are refused, and the app receives no part of them.

use super::world::{World, local, own_fields};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Refused requests: why, and the status.
pub(super) const REFUSED: &[(&str, &[u8], u16)] = &[
    ("a percent sign in the host", b"POST http://b%c HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("two codings in two fields", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("chunked twice", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("chunked first", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    ("chunked last", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("identity", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
    ("a coding with a vertical tab", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    ("a coding in quotes", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400),
    ("a coding in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("length and coding", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("coding and length", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    ("length +5", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
    ("length +1_0", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1_0\r\n\r\nhello", 400),
    ("length -5", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", 400),
    ("length 0x5", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", 400),
    ("length 5,6", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,6\r\n\r\nhello", 400),
    ("length 5,", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,\r\n\r\nhello", 400),
    ("length 5 5", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello", 400),
    ("no length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nhello", 400),
    ("25 digits", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1111111111111111111111111\r\n\r\nhello", 400),
    ("two lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    ("a chunk line that ends in LF", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400),
    ("a chunk line that ends in CR", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\rhello\r\n0\r\n\r\n", 400),
    ("a chunk line that ends in LF CR", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\n\rhello\r\n0\r\n\r\n", 400),
    ("a chunk of 0_2e", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0_2e\r\nhello\r\n0\r\n\r\n", 400),
    ("a chunk with a sign", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", 400),
    ("a chunk of 17 digits", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\n", 400),
    ("lines that end in LF", b"GET / HTTP/1.1\nHost: a\n\n", 400),
    ("one line that ends in LF", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    ("a head that ends in LF", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    ("LF before the request", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("LF in the request line", b"GET /\n HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("CR in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    ("NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
    ("NUL in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n", 400),
    ("DEL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", 400),
    ("a folded line", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    ("a folded first line", b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", 400),
    ("a blank before the colon", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello", 400),
    ("a tab before the colon", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 5\r\n\r\nhello", 400),
    ("no name", b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
    ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    ("a name beyond ASCII", b"GET / HTTP/1.1\r\nHost: a\r\nX\xc3\xa4: a\r\n\r\n", 400),
    ("a partial method", b"G ET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("no method", b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a method with a slash", b"GE/T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("two blanks", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a tab for a blank", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("no version", b"GET /\r\nHost: a\r\n\r\n", 400),
    ("a blank after the version", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    ("a version in lower case", b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    ("a control character in the target", b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("half a character in the target", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a target without a slash", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("an asterisk", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("another scheme", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("no host in the target", b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a user in the target", b"GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("an absolute target and no host", b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
    ("two hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("the same host twice", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("an empty host twice", b"GET / HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n", 400),
    ("a port without a host", b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400),
    ("a user in the host", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    ("a blank in the host", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("a list of hosts", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("a zone in the host", b"GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", 400),
    ("a bare zone in the host", b"GET / HTTP/1.1\r\nHost: fe80::1%eth0\r\n\r\n", 400),
    ("an open bracket in the host", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    ("a port of letters", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    ("a port past the last", b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400),
    ("CONNECT", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ("HTTP/2.0 in a request line", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("a ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
];

/// Forwarded requests: the bytes, and what the app receives without our own fields.
pub(super) const PASSED: &[(&str, &[u8], &[u8])] = &[
    ("equal lengths, folded", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
    ("blanks around a length and a host", b"POST / HTTP/1.1\r\nHost: \ta \r\nContent-Length: 5 \t\r\n\r\nhello", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
    ("a coding in any case", b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: CHUNKED\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("a GET with a body", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 24\r\n\r\nGET /admin HTTP/1.1\r\n\r\n ", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 24\r\n\r\nGET /admin HTTP/1.1\r\n\r\n "),
    ("empty lines before a request", b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("an absolute target", b"GET http://b:8080/x?y HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n", b"GET /x?y HTTP/1.1\r\nHost: b:8080\r\nX: y\r\n\r\n"),
    ("an absolute target without a path", b"GET HTTPS://b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n"),
    ("OPTIONS of the server", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a path to the byte", b"GET //a/../b;x=1/%2f/%5C\\<\"{}|^`>?q=<\"{}|^`> HTTP/1.1\r\nHost: a\r\n\r\n", b"GET //a/../b;x=1/%2f/%5C\\<\"{}|^`>?q=<\"{}|^`> HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("an empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \r\n\r\n"),
    ("an absolute target and an empty host", b"GET http://b/ HTTP/1.1\r\nHost:\r\n\r\n", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n"),
    ("an empty port", b"GET / HTTP/1.1\r\nHost: a.test:\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a.test:\r\n\r\n"),
    ("a path to the byte, also beyond ASCII", b"GET //a/../b;x=1/%2f\\\xc3\xa4?q={} HTTP/1.1\r\nHost: a\r\n\r\n", b"GET //a/../b;x=1/%2f\\\xc3\xa4?q={} HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("an IPv6 host", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"),
    ("names in their case and order", b"GET / HTTP/1.1\r\nX-b: 1\r\nHOST: a\r\nx-A: \xff\r\nX-b: 2\r\n\r\n", b"GET / HTTP/1.1\r\nX-b: 1\r\nHOST: a\r\nx-A: \xff\r\nX-b: 2\r\n\r\n"),
    ("HTTP/1.0 without a host", b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: 10.0.0.1:14001\r\n\r\n"),
    ("h2c and TLS upgrades, ignored", b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, TLS/1.2\r\nHTTP2-Settings: AAA\r\nContent-Length: 3\r\n\r\nPRI", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nPRI"),
    ("trailers wanted", b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers, deflate;q=0.5\r\nConnection: TE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nte: trailers\r\nconnection: te\r\n\r\n"),
    ("other codings wanted", b"GET / HTTP/1.1\r\nHost: a\r\nTE: deflate\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("hop-by-hop fields", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nProxy-Authorization: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Authorization: x\r\n\r\n"),
    ("options that name what must stay", b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Host, content-length, x-forwarded-for\r\nContent-Length: 2\r\n\r\nhi", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"),
];

#[tokio::test]
async fn ambiguous_requests_are_refused_and_the_app_receives_no_part_of_them() {
    for (case, input, status) in REFUSED {
        local(async {
            let mut world = World::new().await;
            world.app.answer(OK);
            let answer = world.answers(input).await;
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{case}: {text}");
            assert!(text.contains("\r\nconnection: close\r\n\r\n"), "{case}: {text}");
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{case}: {text}");
            assert!(world.app.seen().is_empty(), "{case}: {:?}", world.app.seen().escape_ascii().to_string());
        })
        .await;
    }
}

#[tokio::test]
async fn unambiguous_requests_reach_the_app_unchanged() {
    for (case, input, expected) in PASSED {
        local(async {
            let mut world = World::new().await;
            world.app.answer(OK);
            let answer = world.answers(input).await;
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{case}: {text}");
            let seen = world.app.seen();
            let head = seen.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            // Latin-1, so that every byte is compared.
            let latin = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
            let seen = own_fields(&latin(&seen[..head])) + &latin(&seen[head..]);
            assert_eq!(seen, latin(expected), "{case}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_refused_requests_body_is_never_a_request() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        world.deny();
        let inner = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
        let length = inner.len();
        let input = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{inner}GET /b HTTP/1.1\r\nHost: a\r\n\r\n");
        let text = String::from_utf8(world.answers(input.as_bytes()).await).unwrap();
        assert_eq!(text.matches("HTTP/1.1 403 Forbidden").count(), 2, "{text}");
        let chunked = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{inner}\r\n0\r\n\r\n");
        let text = String::from_utf8(world.answers(chunked.as_bytes()).await).unwrap();
        assert_eq!(text.matches("HTTP/1.1 403 Forbidden").count(), 1, "{text}");
        let large = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n{}", inner.repeat(5));
        let text = String::from_utf8(world.answers(large.as_bytes()).await).unwrap();
        assert_eq!(text.matches("HTTP/1.1 403 Forbidden").count(), 1, "{text}");
        assert!(text.contains("connection: close"), "{text}");
        assert!(world.app.seen().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_refused_body_is_read_no_further_than_its_limit() {
    local(async {
        let mut world = World::new().await;
        world.app.answer(OK);
        let line = "a".repeat(1024 * 1024);
        let input = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;{line}\r\nx\r\n0\r\n\r\n"
        );
        let mut client = world.connect();
        let (mut reader, mut writer) = tokio::io::split(&mut client);
        let (_, text) = tokio::join!(
            // The connection may be closed before everything is written.
            async { tokio::io::AsyncWriteExt::write_all(&mut writer, input.as_bytes()).await.is_ok() },
            super::world::read_head(&mut reader),
        );
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    })
    .await;
}
