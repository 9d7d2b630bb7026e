//! A request as it was written to the app, kept so that it can be sent again.

use ::http::{HeaderName, HeaderValue, Method, Uri, request};
use bytes::{Bytes, BytesMut};
use tidegate_core::route::retry::RequestBody;

use super::body::Decoder;
use super::head::{self, Storage};
use crate::http::HttpContext;
use crate::http::buffer::{Buffer, Buffers};
use crate::http::headers::Field;
use crate::upstream::MOST_REPLAYED;

/// Head and body of a request that may be retried.
pub(super) struct Replay {
    written: Buffer,
    /// The most bytes that are kept: the head, and [`MOST_REPLAYED`] of the body.
    limit: usize,
    /// More was written than is kept; nothing is kept any more.
    is_lost: bool,
}

impl Replay {
    /// `written`: the head, of `head` bytes, and what is there of the body.
    pub(super) fn new(written: &Buffer, head: usize, buffers: &Buffers) -> Self {
        let mut replay =
            Self { written: buffers.take(written.len()), limit: head + MOST_REPLAYED, is_lost: false };
        replay.record(written.bytes(), buffers);
        replay
    }

    /// Keeps what is written next.
    pub(super) fn record(&mut self, bytes: &[u8], buffers: &Buffers) {
        self.is_lost |= self.written.len() + bytes.len() > self.limit;
        if self.is_lost {
            buffers.give(&mut self.written);
        } else {
            self.written.push(bytes);
        }
    }

    /// Whether all of it can be written again.
    pub(super) fn body(&self) -> RequestBody {
        if self.is_lost { RequestBody::Gone } else { RequestBody::Replayable }
    }

    /// The request itself, in the form of HTTP/1, but for what its connection needed; `None` if not all of it was kept.
    pub(super) fn request(&self, env: &HttpContext) -> Option<(request::Parts, Bytes)> {
        let (buffers, limits) = (&env.buffers, &env.limits);
        let mut storage = Storage::new();
        let head = head::parse_request(self.written.bytes(), &mut storage, limits).ok()??;
        let (mut parts, ()) = ::http::Request::new(()).into_parts();
        parts.method = Method::from_bytes(head.request.method).ok()?;
        parts.uri = Uri::try_from(head.request.path).ok()?;
        for (field, name, value) in head.fields.iter() {
            let is_of_connection = matches!(
                field,
                Field::Connection | Field::HopByHop | Field::TransferEncoding | Field::Expect
            );
            if !is_of_connection {
                parts
                    .headers
                    .append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
            }
        }
        let (mut input, mut output) = (self.copy(buffers), Buffer::default());
        input.consume(head.length);
        let (mut decoder, mut body) = (Decoder::new(head.framing), BytesMut::new());
        while !decoder.is_done() {
            let moved = decoder.transfer(&mut input, &mut output, false, buffers, limits).ok()?;
            body.extend_from_slice(output.bytes());
            buffers.give(&mut output);
            if moved == 0 && !decoder.is_done() {
                return None;
            }
        }
        buffers.give(&mut input);
        Some((parts, body.freeze()))
    }

    /// What is to be written again.
    pub(super) fn copy(&self, buffers: &Buffers) -> Buffer {
        let mut copy = buffers.take(self.written.len());
        copy.push(self.written.bytes());
        copy
    }

    /// Gives the memory back.
    pub(super) fn release(&mut self, buffers: &Buffers) {
        buffers.give(&mut self.written);
    }
}
