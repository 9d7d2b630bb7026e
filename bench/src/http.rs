//! The subset of HTTP/1.1 that app and load need: request heads, response heads, bodies with a `content-length`.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Path of the large answer, and of the large request.
pub(crate) const LARGE_PATH: &str = "/100m";

/// What precedes the number of bytes in the path of a response of any size.
pub(crate) const SIZED_PATH: &str = "/bytes/";
/// The most bytes of such a response, which the app keeps in memory.
pub(crate) const MOST_SIZED: u64 = 16_000_000;

/// Maximum number of fields in a head.
const MAX_HEADERS: usize = 64;
/// Bytes of a client's read buffer, and so of a response's head.
const BUFFER: usize = 32 * 1024;
/// Bytes of a request's body that are written at once.
const PIECE: usize = 64 * 1024;
/// Bytes of a response, head included, that are kept for inspection.
const KEPT: usize = 4096;

/// A complete request head, as the app reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReceivedRequest {
    /// Length of the head in bytes.
    pub(crate) head_bytes: usize,
    /// What the app responds with.
    pub(crate) kind: AppRequest,
    /// Whether the sender wants the connection closed after the response.
    pub(crate) close: bool,
}

/// What the app responds with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AppRequest {
    /// A GET of any other path: the small response.
    Small,
    /// A GET of [`SIZED_PATH`] and a number: a response with that number of bytes.
    Sized(u64),
    /// A GET of [`LARGE_PATH`]: the large response.
    Download,
    /// A POST with a body of this many bytes, answered with a small response.
    Upload(u64),
    /// Anything else.
    NotServed,
}

/// A response whose body has been read to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReceivedAnswer {
    /// Status code.
    pub(crate) status: u16,
    /// Length of the body.
    pub(crate) body_bytes: u64,
}

/// A client's connection with its read buffer.
#[derive(Debug)]
pub(crate) struct HttpConnection<S> {
    /// The connection.
    stream: S,
    /// Memory for the head, and for the body in pieces.
    buffer: Box<[u8]>,
    /// The first bytes of the last answer's body, as many as came with its head.
    body_start: std::ops::Range<usize>,
}

/// The parts of a response's head that matter here.
struct AnswerHead {
    bytes: usize,
    status: u16,
    content_length: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> HttpConnection<S> {
    /// A client on a connection on which nothing was received yet.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; BUFFER].into(), body_start: 0..0 }
    }

    /// Sends one request and reads its response to the end of the body.
    ///
    /// Fails on a closed connection, on bytes that are not an HTTP response, on a response without `content-length` and
    /// on bytes beyond its end.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<ReceivedAnswer> {
        self.exchange_with_body(request, 0).await
    }

    /// [`Self::exchange`] with a body of this many bytes behind the request's head.
    pub(crate) async fn exchange_with_body(
        &mut self,
        request: &[u8],
        body_bytes: u64,
    ) -> Result<ReceivedAnswer> {
        let sent = async {
            self.stream.write_all(request).await?;
            let piece = vec![b'u'; PIECE.min(usize::try_from(body_bytes).unwrap_or(PIECE))];
            let mut left = body_bytes;
            while left > 0 {
                let size = piece.len().min(usize::try_from(left).unwrap_or(PIECE));
                self.stream.write_all(&piece[..size]).await?;
                left -= size as u64;
            }
            // TLS may have buffered bytes that the socket did not accept, for instance when the task's budget is used
            // up.
            self.stream.flush().await
        };
        sent.await.context("cannot send the request")?;
        let mut filled = 0;
        let head = loop {
            let read =
                self.stream.read(&mut self.buffer[filled..]).await.context("cannot read the answer")?;
            ensure!(read > 0, "connection closed before the answer's head");
            filled += read;
            if let Some(head) = parse_answer(&self.buffer[..filled])? {
                break head;
            }
            ensure!(filled < self.buffer.len(), "answer head is larger than {BUFFER} bytes");
        };
        let mut received = (filled - head.bytes) as u64;
        while received < head.content_length {
            // Bytes beyond the kept part are overwritten.
            let start = filled.min(KEPT);
            let read = self.stream.read(&mut self.buffer[start..]).await.context("cannot read the body")?;
            ensure!(
                read > 0,
                "connection closed {} bytes before the body's end",
                head.content_length - received
            );
            filled = start + read;
            received += read as u64;
        }
        self.body_start = head.bytes.min(KEPT)..filled.min(KEPT).max(head.bytes.min(KEPT));
        ensure!(
            received == head.content_length,
            "{} bytes beyond the body's end",
            received - head.content_length
        );
        Ok(ReceivedAnswer { status: head.status, body_bytes: received })
    }

    /// Waits until the peer closes, and fails if it sends anything more.
    pub(crate) async fn closed_by_peer(&mut self) -> Result<()> {
        match self.stream.read(&mut self.buffer).await {
            Ok(0) => Ok(()),
            Ok(read) => bail!("{read} bytes after the last answer"),
            // A close without close_notify counts, too.
            Err(_) => Ok(()),
        }
    }

    /// The first bytes of the last answer's body.
    pub(crate) fn body_start(&self) -> &[u8] {
        &self.buffer[self.body_start.clone()]
    }
}

/// Parses a request's head; `None` while it is incomplete.
pub(crate) fn parse_request(bytes: &[u8]) -> Result<Option<ReceivedRequest>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = request.parse(bytes).context("not an HTTP request")? else {
        return Ok(None);
    };
    let kind = match (request.method, request.path) {
        (Some("GET"), Some(LARGE_PATH)) => AppRequest::Download,
        (Some("GET"), Some(path)) => sized(path).map_or(AppRequest::Small, AppRequest::Sized),
        (Some("POST"), Some(LARGE_PATH)) => {
            let length =
                request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|length| std::str::from_utf8(length.value).ok()?.parse().ok());
            length.map_or(AppRequest::NotServed, AppRequest::Upload)
        }
        _ => AppRequest::NotServed,
    };
    let close = request.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("connection") && header.value.eq_ignore_ascii_case(b"close")
    }) || request.version == Some(0);
    Ok(Some(ReceivedRequest { head_bytes, kind, close }))
}

/// The number of bytes that a path demands; `None` without one, or if it is too large.
fn sized(path: &str) -> Option<u64> {
    path.strip_prefix(SIZED_PATH)?.parse().ok().filter(|bytes| *bytes <= MOST_SIZED)
}

/// Parses a response's head; `None` while it is incomplete.
fn parse_answer(bytes: &[u8]) -> Result<Option<AnswerHead>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = answer.parse(bytes).context("not an HTTP answer")? else {
        return Ok(None);
    };
    let status = answer.code.context("answer without a status")?;
    let content_length = answer
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .with_context(|| format!("answer {status} without content-length"))?;
    let content_length =
        std::str::from_utf8(content_length.value)?.parse().context("content-length is not a number")?;
    Ok(Some(AnswerHead { bytes: head_bytes, status, content_length }))
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    #[test]
    fn a_request_is_taken_only_once_its_head_is_complete() {
        let bytes = b"GET /100m HTTP/1.1\r\nhost: a\r\nConnection: Close\r\n\r\nGET";
        assert_eq!(parse_request(&bytes[..30]).unwrap(), None);
        let request = parse_request(bytes).unwrap().unwrap();
        assert_eq!(
            request,
            ReceivedRequest { head_bytes: bytes.len() - 3, kind: AppRequest::Download, close: true }
        );
    }

    #[test]
    fn a_post_is_served_if_its_length_is_known() {
        let request = b"POST /100m HTTP/1.1\r\nContent-Length: 300\r\n\r\n";
        assert_eq!(parse_request(request).unwrap().unwrap().kind, AppRequest::Upload(300));
        let chunked = b"POST /100m HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(parse_request(chunked).unwrap().unwrap().kind, AppRequest::NotServed);
        let request = parse_request(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n").unwrap().unwrap();
        assert_eq!(request.kind, AppRequest::NotServed);
    }

    #[test]
    fn the_path_of_a_get_determines_the_size_of_the_response() {
        for (path, kind) in [
            ("/1k", AppRequest::Small),
            ("/bytes/0", AppRequest::Sized(0)),
            ("/bytes/1000000", AppRequest::Sized(1_000_000)),
            ("/bytes/16000001", AppRequest::Small),
            ("/bytes/", AppRequest::Small),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\n\r\n");
            assert_eq!(parse_request(request.as_bytes()).unwrap().unwrap().kind, kind, "{path}");
        }
    }

    /// Sends each part separately, then closes.
    fn answering(parts: &'static [&'static str]) -> DuplexStream {
        let (ours, mut theirs) = duplex(64 * 1024);
        tokio::spawn(async move {
            let mut request = [0; 16];
            theirs.read_exact(&mut request).await.unwrap();
            for part in parts {
                theirs.write_all(part.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        ours
    }

    fn peer(parts: &'static [&'static str]) -> HttpConnection<DuplexStream> {
        HttpConnection::new(answering(parts))
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n";

    #[tokio::test]
    async fn an_answer_in_pieces_is_read_to_the_end_of_its_body() {
        let mut client = peer(&["HTTP/1.1 200 OK\r\nContent-", "Length: 10\r\n\r\n01234", "56789"]);
        assert_eq!(client.exchange(REQUEST).await.unwrap(), ReceivedAnswer { status: 200, body_bytes: 10 });
        assert_eq!(client.body_start(), b"0123456789");
    }

    #[tokio::test]
    async fn a_body_that_ends_too_early_is_an_error() {
        let mut client = peer(&["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n012345678"]);
        let error = client.exchange(REQUEST).await.unwrap_err();
        assert_eq!(error.to_string(), "connection closed 1 bytes before the body's end");
    }

    #[tokio::test]
    async fn bytes_beyond_the_body_are_an_error() {
        let mut client = peer(&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n0123"]);
        assert_eq!(client.exchange(REQUEST).await.unwrap_err().to_string(), "1 bytes beyond the body's end");
    }

    #[tokio::test]
    async fn a_request_leaves_a_stream_that_holds_it_back_until_it_is_flushed() {
        let mut client = HttpConnection::new(tokio::io::BufStream::new(answering(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ])));
        assert_eq!(client.exchange(REQUEST).await.unwrap().status, 200);
    }

    #[tokio::test]
    async fn an_answer_without_content_length_is_an_error() {
        let mut client = peer(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"]);
        assert_eq!(
            client.exchange(REQUEST).await.unwrap_err().to_string(),
            "answer 200 without content-length"
        );
    }

    #[tokio::test]
    async fn a_large_body_is_counted_whole_and_its_start_kept() {
        static BODY: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
            let body = "a".repeat(300_000);
            format!("HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n{body}")
        });
        static PARTS: std::sync::LazyLock<[&'static str; 1]> = std::sync::LazyLock::new(|| [BODY.as_str()]);
        let mut client = peer(&*PARTS);
        assert_eq!(client.exchange(REQUEST).await.unwrap().body_bytes, 300_000);
        assert!(!client.body_start().is_empty() && client.body_start().iter().all(|byte| *byte == b'a'));
    }
}
