//! A tunnel through an HTTP forward proxy: `CONNECT`, RFC 9110 §9.3.6.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The most bytes of an answer's head.
const MOST_HEAD: usize = 8 * 1024;
/// The most fields in it.
const MOST_FIELDS: usize = 64;

/// Why a forward proxy gives no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The connection has ended before there was an answer.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It has answered with this status: 403 does not allow the target, 407 wants credentials.
    #[error("it answers {0}")]
    Refused(u16),
    /// Its answer is not HTTP/1.
    #[error("its answer is not HTTP/1.1")]
    NotHttp,
    /// The head of its answer is too large.
    #[error("the head of its answer is larger than {MOST_HEAD} bytes")]
    TooLarge,
    /// `host:port` of the target has a character that an authority cannot have.
    #[error("{0:?} is not host:port")]
    Target(Box<str>),
}

/// Has a proxy connect us to `host:port`. Nothing is read of what the target says.
pub(super) async fn open(io: &mut TcpStream, target: &str) -> Result<(), ProxyError> {
    if target.is_empty() || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ProxyError::Target(target.into()));
    }
    let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    loop {
        match status(&read_head(io).await?)? {
            100 | 102..=199 => {}
            200..=299 => return Ok(()),
            status => return Err(ProxyError::Refused(status)),
        }
    }
}

/// Reads a head to its end and no further: what follows is the target's.
async fn read_head(io: &mut TcpStream) -> Result<Vec<u8>, ProxyError> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while head.len() <= MOST_HEAD {
        let seen = io.peek(&mut piece).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let before = head.len();
        head.extend_from_slice(piece.get(..seen).unwrap_or_default());
        let end = end_of_head(&head, before);
        head.truncate(end.unwrap_or(head.len()));
        io.read_exact(piece.get_mut(..head.len() - before).unwrap_or_default()).await?;
        if end.is_some() {
            return Ok(head);
        }
    }
    Err(ProxyError::TooLarge)
}

/// Where a head ends, of which all before `new` was looked at.
fn end_of_head(head: &[u8], new: usize) -> Option<usize> {
    let from = new.saturating_sub(3);
    let found = head.get(from..)?.windows(4).position(|end| end == b"\r\n\r\n")?;
    Some(from + found + 4)
}

/// The status of a complete head.
fn status(head: &[u8]) -> Result<u16, ProxyError> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => response.code.ok_or(ProxyError::NotHttp),
        Ok(httparse::Status::Partial) | Err(_) => Err(ProxyError::NotHttp),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The result of opening a tunnel through a proxy that sends this response in pieces, and what can be read then.
    async fn opened(
        target: &str,
        answer: &'static [&'static [u8]],
    ) -> (Result<(), String>, Vec<u8>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut proxy, _) = listener.accept().await.unwrap();
        let serve = async move {
            let mut asked = vec![0; 1024];
            let count = proxy.read(&mut asked).await.unwrap();
            asked.truncate(count);
            for piece in answer {
                proxy.write_all(piece).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            asked
        };
        let (outcome, asked) = tokio::join!(
            async {
                let outcome = open(&mut io, target).await.map_err(|error| error.to_string());
                if outcome.is_err() {
                    // The proxy's read ends.
                    io.shutdown().await.unwrap();
                }
                outcome
            },
            serve
        );
        let mut rest = Vec::new();
        // A proxy that closes with bytes unread resets the connection.
        let _ = io.read_to_end(&mut rest).await;
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
            assert_eq!((outcome, &*rest), (Ok(()), &b"220 hello"[..]));
            assert_eq!(asked, b"CONNECT api.example:443 HTTP/1.1\r\nhost: api.example:443\r\n\r\n");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_or_does_not_speak_http_gives_no_tunnel() {
        let refused = async |answer| opened("api.example:443", answer).await.0.unwrap_err();
        assert_eq!(refused(&[b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"]).await, "it answers 407");
        assert_eq!(refused(&[b"HTTP/1.1 101 Switching Protocols\r\n\r\n"]).await, "it answers 101");
        assert_eq!(refused(&[b"SSH-2.0-OpenSSH_9.6\r\n\r\n"]).await, "its answer is not HTTP/1.1");
        let large: &'static [u8] = vec![b'x'; MOST_HEAD + 1024].leak();
        let answer: &'static [&'static [u8]] = vec![&b"HTTP/1.1 200 OK\r\na: "[..], large].leak();
        assert_eq!(refused(answer).await, "the head of its answer is larger than 8192 bytes");
        assert!(refused(&[]).await.contains("end of file"));
        let (outcome, asked, _) = opened("api.example:443\r\nx: y", &[]).await;
        assert_eq!(outcome, Err("\"api.example:443\\r\\nx: y\" is not host:port".to_owned()));
        assert_eq!(asked, b"", "nothing is sent");
    }
}
