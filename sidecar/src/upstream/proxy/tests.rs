use std::sync::Arc;
use std::time::Duration;

use tidegate_core::ObjectRef;
use tidegate_core::forward_proxy::{ForwardedHeaders, ProxyCredentials};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn settings() -> Arc<ProxySettings> {
    Arc::new(ProxySettings {
        origin: ObjectRef::new("EgressProxy", "shop", "squid"),
        credentials: ProxyCredentials::basic("mesh", "s3cret").ok(),
        credentials_version: Arc::default(),
        tls: None,
        connect_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_secs(5),
        forwarded_headers: ForwardedHeaders::Transparent,
    })
}

/// The result of opening a tunnel through a proxy that sends this response in pieces and closes, what the proxy got, and
/// what can be read then.
async fn opened(
    target: &str,
    answer: &'static [&'static [u8]],
) -> (Result<(), ProxyError>, Vec<u8>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut proxy, _) = listener.accept().await.unwrap();
    proxy.set_nodelay(true).unwrap();
    let serve = async move {
        let mut asked = vec![0; 1024];
        let count = proxy.read(&mut asked).await.unwrap();
        asked.truncate(count);
        for piece in answer {
            proxy.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        proxy.shutdown().await.unwrap();
        (asked, proxy)
    };
    let open = async {
        let mut io = MaybeTls::Plain(io);
        let outcome = open(&mut io, target, &settings()).await;
        if outcome.is_err() {
            // The proxy's read ends.
            io.shutdown().await.unwrap();
        }
        (outcome, io)
    };
    let ((outcome, mut io), (asked, _proxy)) = tokio::join!(open, serve);
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.unwrap();
    (outcome, asked, rest)
}

#[tokio::test]
async fn what_follows_the_head_of_the_answer_is_the_targets() {
    let pieces: [&'static [&'static [u8]]; 3] = [
        &[b"HTTP/1.1 200 Connection established\r\nvia: squid\r\n\r\n220 hello"],
        &[b"HTTP/1.0 200 OK\r\n\r", b"\n220 hello"],
        &[b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n", b"\r\n220 hello"],
    ];
    for pieces in pieces {
        let (outcome, asked, rest) = opened("api.example:443", pieces).await;
        outcome.unwrap();
        assert_eq!(rest, b"220 hello");
        let expected = "CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\
                        Proxy-Authorization: Basic bWVzaDpzM2NyZXQ=\r\n\r\n";
        assert_eq!(String::from_utf8(asked).unwrap(), expected);
    }
}

#[tokio::test]
async fn each_refusal_has_its_own_reason_and_the_proxys_words() {
    let refused = async |answer| {
        let error = opened("api.example:443", answer).await.0.unwrap_err();
        (error.failure(), error.to_string())
    };
    let (failure, words) =
        refused(&[b"HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n"]).await;
    let denied = "the answer to CONNECT is 403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0";
    assert_eq!((failure, &*words), (ProxyFailure::Denied, denied));
    let (failure, words) =
        refused(&[b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=\"c\"\r\n\r\n"]).await;
    let unknown = "the answer to CONNECT is 407 Who, Proxy-Authenticate: Basic realm=\"c\"";
    assert_eq!((failure, &*words), (ProxyFailure::Authentication, unknown));
    assert_eq!(refused(&[b"HTTP/1.0 503 x\r\n\r\n"]).await.0, ProxyFailure::TargetUnreachable);
    assert_eq!(refused(&[b"HTTP/1.1 101 Switching Protocols\r\n\r\n"]).await.0, ProxyFailure::Refused);
    assert_eq!(refused(&[b"SSH-2.0-OpenSSH_9.6\r\n\r\n"]).await.0, ProxyFailure::Malformed);
    assert_eq!(refused(&[]).await.0, ProxyFailure::Closed);
    assert_eq!(refused(&[b"HTTP/1.1 200 OK\r\nvia"]).await.0, ProxyFailure::Closed);
    let large: &'static [u8] = vec![b'x'; connect::MAX_HEAD].leak();
    let answer: &'static [&'static [u8]] = vec![&b"HTTP/1.1 200 OK\r\na: "[..], large].leak();
    let (failure, words) = refused(answer).await;
    let too_large = "CONNECT: the head of the answer is larger than 65536 bytes";
    assert_eq!((failure, &*words), (ProxyFailure::HeadTooLarge, too_large));
    let (outcome, asked, _) = opened("api.example:443\r\nx: y", &[]).await;
    assert_eq!(outcome.unwrap_err().failure(), ProxyFailure::Invalid);
    assert_eq!(asked, b"", "nothing is sent");
}
