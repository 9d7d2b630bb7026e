//! The app's answer over HTTP/2, written to the client as HTTP/1.

use ::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use ::http::{HeaderMap, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use tidegate_core::route::filter::HeaderEdits;
use tokio::io::AsyncWrite;

use super::{Bridge, BridgeOutcome};
use crate::http::buffer::{Buffer, MEDIUM};
use crate::http::h1::body::write_chunk;
use crate::http::h1::exchange::{Asked, Download};
use crate::http::h1::forward::{self, Persistence};
use crate::http::h1::watch::Due;
use crate::http::headers::{self, is_protected, is_stream};
use crate::http::request::Version;
use crate::telemetry::ResponseFlag;
use crate::upstream::{UpstreamBody, UpstreamError};

/// The most bytes that frame a chunk: its size in hexadecimal digits, and two ends of lines.
const CHUNK_FRAME: usize = 20;

/// How the client finds the end of an answer's body (RFC 9112 §6.3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum AnswerFraming {
    /// The response has no body.
    NoBody,
    /// By the app's `content-length`.
    Length,
    /// By the last chunk.
    Chunked,
    /// By the connection's end: an HTTP/1.0 client does not know chunks.
    UntilClose,
}

impl<S: AsyncWrite + Unpin> Bridge<'_, S> {
    /// Writes the app's answer to the client, with a rule's changes. `is_drainable`: what the app does not take of the request
    /// can be read to keep the client's connection.
    pub(super) async fn download(
        &self,
        sent: Result<Response<UpstreamBody>, UpstreamError>,
        (asked, is_drainable): (Asked, bool),
        edits: Option<&HeaderEdits>,
        down: &mut Download,
    ) -> BridgeOutcome {
        let response = match sent {
            Ok(response) => response,
            Err(error) => return BridgeOutcome::Unanswered(error),
        };
        let (head, body) = response.into_parts();
        let mut head = Response::from_parts(head, ());
        if let Some(edits) = edits {
            headers::edit(head.headers_mut(), edits);
        }
        let framing = AnswerFraming::of(&head, asked);
        down.status = head.status().as_u16();
        down.close = !asked.keep_alive
            || self.line.is_finishing()
            || !(self.progress.is_uploaded.get() || is_drainable)
            || framing == AnswerFraming::UntilClose;
        let mut out = self.env.buffers.take(MEDIUM);
        let persistence = Persistence::new(down.close, asked.version);
        forward::write_http2_response(&head, framing == AnswerFraming::Chunked, persistence, &mut out);
        self.progress.step(Due::Body);
        if self.write(&mut out).await.is_err() {
            return BridgeOutcome::client_gone();
        }
        self.env.buffers.give(&mut out);
        down.set_begun();
        if framing == AnswerFraming::NoBody {
            return BridgeOutcome::Complete;
        }
        let content_type = head.headers().get(CONTENT_TYPE);
        let is_stream = content_type.is_some_and(|value| is_stream(value.as_bytes()));
        self.pass_body_back(body, framing, Due::More { is_stream }, &mut down.moved).await
    }

    /// Writes the answer's body to the client, `more` being what it waits for between two pieces. `moved` counts its
    /// bytes.
    async fn pass_body_back(
        &self,
        mut body: UpstreamBody,
        framing: AnswerFraming,
        more: Due,
        moved: &mut u64,
    ) -> BridgeOutcome {
        let is_chunked = framing == AnswerFraming::Chunked;
        let mut out = Buffer::default();
        loop {
            self.progress.step(more);
            let is_end = match body.frame().await.map(|frame| frame.map(http_body::Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    *moved += data.len() as u64;
                    out = self.env.buffers.take(data.len() + CHUNK_FRAME);
                    put_data(&mut out, &data, is_chunked);
                    false
                }
                Some(Ok(Err(frame))) => {
                    put_end(&mut out, is_chunked, frame.into_trailers().ok());
                    true
                }
                Some(Err(_)) => {
                    let flag = ResponseFlag::UpstreamConnectionTermination;
                    return BridgeOutcome::Aborted(
                        flag,
                        "upstream_reset_after_response_started{remote_reset}",
                    );
                }
                None => {
                    put_end(&mut out, is_chunked, None);
                    true
                }
            };
            self.progress.step(Due::Body);
            if self.write(&mut out).await.is_err() {
                return BridgeOutcome::client_gone();
            }
            // The next piece may be long in coming.
            self.env.buffers.give(&mut out);
            if is_end {
                return BridgeOutcome::Complete;
            }
        }
    }
}

impl AnswerFraming {
    fn of(head: &Response<()>, asked: Asked) -> Self {
        if asked.is_head() || matches!(head.status().as_u16(), 204 | 304) {
            Self::NoBody
        } else if head.headers().contains_key(CONTENT_LENGTH) {
            Self::Length
        } else if asked.version == Version::Http11 {
            Self::Chunked
        } else {
            Self::UntilClose
        }
    }
}

/// Appends a piece of the body in the client's framing.
fn put_data(out: &mut Buffer, data: &Bytes, is_chunked: bool) {
    if !is_chunked {
        out.push(data);
    } else if !data.is_empty() {
        // An empty chunk would be the last one.
        write_chunk(out, data);
    }
}

/// The last chunk, and the trailers that may be passed on.
fn put_end(out: &mut Buffer, is_chunked: bool, trailers: Option<HeaderMap>) {
    if !is_chunked {
        return;
    }
    out.push(b"0\r\n");
    for (name, value) in &trailers.unwrap_or_default() {
        let name = name.as_str().as_bytes();
        if !is_protected(name) {
            for part in [name, b": ", value.as_bytes(), b"\r\n"] {
                out.push(part);
            }
        }
    }
    out.push(b"\r\n");
}
