//! All requests in a string of bytes, by the same reader that a connection uses; for fuzz targets and for tests that
//! hold it against other readers.

use super::body::{BodyError, Decoder};
use super::head::{self, HeadError, Storage};
use crate::http::buffer::{Buffer, Buffers};
use crate::limits::Limits;

/// What a client's bytes were read as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// The requests that are complete, up to the one that ends the connection.
    pub requests: Vec<Message>,
    /// Why what follows them is refused, if it is.
    pub refusal: Option<Refusal>,
}

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Method.
    pub method: Vec<u8>,
    /// Path and query.
    pub path: Vec<u8>,
    /// Body without its framing.
    pub body: Vec<u8>,
}

/// Why bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// For a head.
    Head(HeadError),
    /// For a body.
    Body(BodyError),
}

/// Reads the requests that these bytes hold.
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

/// The next request, and whether another may follow; `None` if it is not complete.
fn read_one(
    rest: &mut Buffer,
    buffers: &Buffers,
    limits: &Limits,
) -> Result<Option<(Message, bool)>, Refusal> {
    let mut storage = Storage::new();
    let head = head::parse_request(rest.bytes(), &mut storage, limits).map_err(Refusal::Head)?;
    let Some(head) = head else { return Ok(None) };
    let mut message =
        Message { method: head.request.method.into(), path: head.request.path.into(), body: Vec::new() };
    let (mut decoder, keep_alive, length) = (Decoder::new(head.framing), head.keep_alive, head.length);
    rest.consume(length);
    while !decoder.is_done() {
        let (before, mut output) = (rest.len(), Buffer::default());
        decoder.transfer(rest, &mut output, false, buffers, limits).map_err(Refusal::Body)?;
        message.body.extend_from_slice(output.bytes());
        if rest.len() == before {
            return Ok(None);
        }
    }
    Ok(Some((message, keep_alive)))
}
