//! All requests in a byte string, parsed as a connection parses them; for fuzz targets and for tests that compare with
//! other parsers.

use super::body::{BodyError, Decoder};
use super::head::{self, HeadError, Storage};
use crate::http::buffer::{Buffer, Buffers};
use crate::limits::Limits;

/// The requests in a client's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// Complete requests, up to the one that ends the connection.
    pub requests: Vec<TranscriptMessage>,
    /// Why the bytes after them are refused, if they are.
    pub refusal: Option<TranscriptError>,
}

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranscriptMessage {
    /// Method.
    pub method: Vec<u8>,
    /// Path and query.
    pub path: Vec<u8>,
    /// Body without its framing.
    pub body: Vec<u8>,
}

/// Why bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranscriptError {
    /// The head is invalid.
    Head(HeadError),
    /// The body is invalid.
    Body(BodyError),
}

/// Parses the requests in these bytes.
pub fn read(bytes: &[u8], limits: &Limits) -> Transcript {
    let (buffers, mut rest, mut requests) = (Buffers::default(), Buffer::default(), Vec::new());
    rest.push(bytes);
    let refusal = loop {
        match read_one(&mut rest, &buffers, limits) {
            Ok(Some((request, keep_alive))) => {
                requests.push(request);
                if !keep_alive {
                    break None;
                }
            }
            Ok(None) => break None,
            Err(refusal) => break Some(refusal),
        }
    };
    Transcript { requests, refusal }
}

/// The next request, and whether another may follow; `None` if it is incomplete.
fn read_one(
    rest: &mut Buffer,
    buffers: &Buffers,
    limits: &Limits,
) -> Result<Option<(TranscriptMessage, bool)>, TranscriptError> {
    let mut storage = Storage::new();
    let head = head::parse_request(rest.bytes(), &mut storage, limits).map_err(TranscriptError::Head)?;
    let Some(head) = head else { return Ok(None) };
    let mut message = TranscriptMessage {
        method: head.request.method.into(),
        path: head.request.path.into(),
        body: Vec::new(),
    };
    let (mut decoder, keep_alive, length) = (Decoder::new(head.framing), head.keep_alive, head.length);
    rest.consume(length);
    while !decoder.is_done() {
        let (before, mut output) = (rest.len(), Buffer::default());
        decoder.transfer(rest, &mut output, false, buffers, limits).map_err(TranscriptError::Body)?;
        message.body.extend_from_slice(output.bytes());
        if rest.len() == before {
            return Ok(None);
        }
    }
    Ok(Some((message, keep_alive)))
}
