//! Bodies of HTTP/1 messages: finds their end, and frames them again for the next hop.
//!
//! Chunked bodies are decoded and encoded again, so that none of the sender's framing reaches the next hop: no
//! extensions, no unusual spellings of a size.

use std::io::Write;

use super::head::{Framing, HeadError, has_bare_line_feed, parse_trailers};
use crate::http::buffer::{Buffer, Buffers, LARGE};
use crate::http::headers::is_protected;
use crate::limits::Limits;

/// Maximum bytes of extensions on one chunk's line.
const MAX_LINE_EXTENSIONS: u16 = 256;
/// Maximum bytes of extensions in one body.
const MAX_EXTENSIONS: u16 = 16 * 1024;

/// Decodes the framing of a body.
#[derive(Debug)]
pub(super) enum Decoder {
    /// `content-length` framing: this many bytes are left.
    Length(u64),
    /// `chunked` transfer coding.
    Chunked(Chunks),
    /// The body ends with the connection.
    UntilClose,
}

/// Decoder of a chunked body.
#[derive(Debug)]
pub(super) struct Chunks {
    state: ChunkState,
    /// Size of the chunk, or what is left of its data.
    size: u64,
    /// Number of digits of the size so far.
    digits: u8,
    line_extensions: u16,
    extensions: u16,
    /// Length of the trailer section that was searched for its end.
    scanned: usize,
}

/// What the next byte of a chunked body belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size,
    SizeBlank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Done,
    Refused,
}

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk line other than hexadecimal digits, optional extensions, CR LF; or data that is not followed by CR LF.
    #[error("malformed chunk")]
    Chunk,
    /// Too many bytes of chunk extensions.
    #[error("too many chunk extensions")]
    Extensions,
    /// A malformed or oversized trailer section.
    #[error("trailers: {0}")]
    Trailers(HeadError),
}

/// What the input begins with.
#[derive(Debug, PartialEq, Eq)]
enum BodyPiece {
    /// This many bytes of framing.
    Framing(usize),
    /// This many bytes of data.
    Data(usize),
    /// A trailer section.
    Trailers,
    /// More input is needed.
    More,
}

impl Decoder {
    /// At the beginning of a body.
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::new()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body is complete.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.state == ChunkState::Done,
            Self::UntilClose => false,
        }
    }

    /// How many bytes are left, if known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(chunks) => (chunks.state == ChunkState::Done).then_some(0),
            Self::UntilClose => None,
        }
    }

    /// Moves body data from `input` to `output`, `chunked` or unframed; returns how many bytes of data were moved.
    /// Stops when the body is complete, when more input is needed, or when `output` holds [`LARGE`] bytes.
    pub(super) fn transfer(
        &mut self,
        input: &mut Buffer,
        output: &mut Buffer,
        chunked: bool,
        buffers: &Buffers,
        limits: &Limits,
    ) -> Result<u64, BodyError> {
        let mut moved = 0;
        while !self.is_done() && !input.is_empty() && output.len() < LARGE {
            match self.next(input.bytes())? {
                BodyPiece::Framing(count) => input.consume(count),
                BodyPiece::Data(count) => {
                    self.advance(count);
                    moved += count as u64;
                    if !chunked && output.is_empty() && count == input.len() {
                        // All of the input is data: swap buffers instead of copying.
                        std::mem::swap(input, output);
                        buffers.give(input);
                        continue;
                    }
                    if output.size() == 0 {
                        *output = buffers.take(input.len() + 64);
                    }
                    let data = input.bytes().get(..count).unwrap_or_default();
                    if chunked {
                        write_chunk(output, data);
                    } else {
                        output.push(data);
                    }
                    input.consume(count);
                }
                BodyPiece::Trailers => {
                    if !self.trailers(input, output, chunked, limits)? {
                        break;
                    }
                }
                BodyPiece::More => break,
            }
        }
        if input.is_empty() {
            buffers.give(input);
        }
        Ok(moved)
    }

    /// Discards body data from `input`; returns how many bytes were removed, framing included.
    pub(super) fn discard(&mut self, input: &mut Buffer, limits: &Limits) -> Result<usize, BodyError> {
        let before = input.len();
        while !self.is_done() && !input.is_empty() {
            match self.next(input.bytes())? {
                BodyPiece::Framing(count) => input.consume(count),
                BodyPiece::Data(count) => {
                    self.advance(count);
                    input.consume(count);
                }
                BodyPiece::Trailers => {
                    if !self.trailers(input, &mut Buffer::default(), false, limits)? {
                        break;
                    }
                }
                BodyPiece::More => break,
            }
        }
        Ok(before - input.len())
    }

    /// Copies the data at the beginning of a body without reading it over, until there is more than `most` bytes of it. With
    /// whether the data is complete.
    pub(super) fn peek(mut self, input: &[u8], most: usize) -> Result<(Vec<u8>, bool), BodyError> {
        let (mut data, mut rest) = (Vec::new(), input);
        while data.len() <= most && !self.is_done() && !rest.is_empty() {
            let count = match self.next(rest)? {
                BodyPiece::Framing(count) => count,
                BodyPiece::Data(count) => {
                    self.advance(count);
                    data.extend_from_slice(rest.get(..count).unwrap_or_default());
                    count
                }
                BodyPiece::Trailers => return Ok((data, true)),
                BodyPiece::More => break,
            };
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok((data, self.is_done()))
    }

    /// Handles the end of the input. Returns whether the body ends there; if so, writes its end to `output`.
    pub(super) fn finish(&mut self, output: &mut Buffer, chunked: bool) -> bool {
        match self {
            Self::UntilClose => {
                if chunked {
                    output.push(b"0\r\n\r\n");
                }
                *self = Self::Length(0);
                true
            }
            Self::Length(_) | Self::Chunked(_) => self.is_done(),
        }
    }

    fn next(&mut self, input: &[u8]) -> Result<BodyPiece, BodyError> {
        match self {
            Self::Length(left) => {
                Ok(BodyPiece::Data(usize::try_from(*left).unwrap_or(usize::MAX).min(input.len())))
            }
            Self::Chunked(chunks) => chunks.next(input),
            Self::UntilClose => Ok(BodyPiece::Data(input.len())),
        }
    }

    fn advance(&mut self, count: usize) {
        let count = count as u64;
        match self {
            Self::Length(left) => *left -= count,
            Self::Chunked(chunks) => chunks.advance(count),
            Self::UntilClose => {}
        }
    }

    /// Forwards the trailer section, except for fields that frame, route or identify; `false` if it is incomplete.
    fn trailers(
        &mut self,
        input: &mut Buffer,
        output: &mut Buffer,
        chunked: bool,
        limits: &Limits,
    ) -> Result<bool, BodyError> {
        let Self::Chunked(chunks) = self else { return Ok(true) };
        let bytes = input.bytes();
        let is_empty = bytes.starts_with(b"\r\n");
        // Only new bytes are searched: a section that arrives in small pieces is still read in linear time.
        let from = chunks.scanned.saturating_sub(3).min(bytes.len());
        let new = bytes.get(from..).unwrap_or_default();
        let ends_or_fails = || new.windows(4).any(|end| end == b"\r\n\r\n") || has_bare_line_feed(new);
        if !is_empty && chunks.scanned > 0 && bytes.len() < limits.head_bytes && !ends_or_fails() {
            chunks.scanned = bytes.len();
            return Ok(false);
        }
        chunks.scanned = bytes.len();
        let mut kept = chunked.then_some(output);
        let start = kept.as_ref().map_or(0, |output| output.len());
        if let Some(output) = &mut kept {
            output.push(b"0\r\n");
        }
        let length = parse_trailers(bytes, limits, |name, value| {
            if let Some(output) = &mut kept
                && !is_protected(name)
            {
                for part in [name, b": ", value, b"\r\n"] {
                    output.push(part);
                }
            }
        });
        match length.map_err(BodyError::Trailers)? {
            Some(length) => {
                if let Some(output) = kept {
                    output.push(b"\r\n");
                }
                input.consume(length);
                chunks.state = ChunkState::Done;
                Ok(true)
            }
            None => {
                if let Some(output) = kept {
                    output.truncate(start);
                }
                Ok(false)
            }
        }
    }
}

impl Chunks {
    fn new() -> Self {
        Self { state: ChunkState::Size, size: 0, digits: 0, line_extensions: 0, extensions: 0, scanned: 0 }
    }

    fn next(&mut self, input: &[u8]) -> Result<BodyPiece, BodyError> {
        match self.state {
            ChunkState::Data => {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                return Ok(BodyPiece::Data(left.min(input.len())));
            }
            ChunkState::Trailers => return Ok(BodyPiece::Trailers),
            ChunkState::Done => return Ok(BodyPiece::More),
            _ => {}
        }
        for (at, byte) in input.iter().enumerate() {
            if let Err(error) = self.step(*byte) {
                self.state = ChunkState::Refused;
                return Err(error);
            }
            if matches!(self.state, ChunkState::Data | ChunkState::Trailers) {
                return Ok(BodyPiece::Framing(at + 1));
            }
        }
        Ok(BodyPiece::Framing(input.len()))
    }

    /// Handles one byte of framing (RFC 9112 §7.1).
    fn step(&mut self, byte: u8) -> Result<(), BodyError> {
        self.state = match (self.state, byte) {
            (ChunkState::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.digits == 16 {
                    return Err(BodyError::Chunk);
                }
                self.digits += 1;
                let digit = char::from(byte).to_digit(16).ok_or(BodyError::Chunk)?;
                self.size = self.size << 4 | u64::from(digit);
                ChunkState::Size
            }
            (ChunkState::Size, _) if self.digits == 0 => return Err(BodyError::Chunk),
            (ChunkState::Size | ChunkState::SizeBlank | ChunkState::Extension, b'\r') => ChunkState::SizeLf,
            (ChunkState::Size | ChunkState::SizeBlank, b' ' | b'\t') => {
                self.count_extension()?;
                ChunkState::SizeBlank
            }
            (ChunkState::Size | ChunkState::SizeBlank, b';')
            | (ChunkState::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count_extension()?;
                ChunkState::Extension
            }
            (ChunkState::SizeLf, b'\n') => {
                self.digits = 0;
                self.line_extensions = 0;
                if self.size == 0 { ChunkState::Trailers } else { ChunkState::Data }
            }
            (ChunkState::DataCr, b'\r') => ChunkState::DataLf,
            (ChunkState::DataLf, b'\n') => ChunkState::Size,
            _ => return Err(BodyError::Chunk),
        };
        Ok(())
    }

    /// Counts one byte of chunk extensions, in its line and in the body: they carry nothing, and a server may not let
    /// them cost more than the data (RFC 9112 §7.1.1).
    fn count_extension(&mut self) -> Result<(), BodyError> {
        self.line_extensions += 1;
        self.extensions += 1;
        if self.line_extensions > MAX_LINE_EXTENSIONS || self.extensions > MAX_EXTENSIONS {
            return Err(BodyError::Extensions);
        }
        Ok(())
    }

    fn advance(&mut self, count: u64) {
        self.size -= count;
        if self.size == 0 {
            self.state = ChunkState::DataCr;
        }
    }
}

impl BodyError {
    /// The reason in the access log's response code details.
    pub(super) fn details(self) -> &'static str {
        match self {
            Self::Chunk => "http1.invalid_chunk",
            Self::Extensions => "http1.chunk_extensions_too_large",
            Self::Trailers(_) => "http1.invalid_trailers",
        }
    }
}

/// Writes a chunk. `data` must not be empty: an empty chunk ends the body.
pub(super) fn write_chunk(output: &mut Buffer, data: &[u8]) {
    let mut line = [0; 18];
    let mut rest = &mut line[..];
    // Sixteen digits and CR LF fit.
    let _ = write!(rest, "{:x}\r\n", data.len());
    let unused = rest.len();
    output.push(line.get(..line.len() - unused).unwrap_or_default());
    output.push(data);
    output.push(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a body decodes to, fed in pieces of this size, and what is left behind it.
    fn decode(body: &[u8], piece: usize, chunked: bool) -> Result<(Vec<u8>, Vec<u8>), BodyError> {
        let (buffers, limits) = (Buffers::default(), Limits::default());
        let mut decoder = Decoder::new(Framing::Chunked);
        let (mut input, mut all) = (Buffer::default(), Vec::new());
        for bytes in body.chunks(piece) {
            input.push(bytes);
            let mut output = Buffer::default();
            decoder.transfer(&mut input, &mut output, chunked, &buffers, &limits)?;
            all.extend_from_slice(output.bytes());
        }
        assert!(decoder.is_done(), "{}", body.escape_ascii());
        Ok((all, input.bytes().to_vec()))
    }

    #[test]
    fn a_body_is_looked_at_without_being_read_over() {
        let chunked = |body: &[u8], most| Decoder::new(Framing::Chunked).peek(body, most).unwrap();
        let body = b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nx: y\r\n\r\nGET /";
        assert_eq!(chunked(body, 100), (b"hello world".to_vec(), true));
        assert_eq!(chunked(body, 11), (b"hello world".to_vec(), true));
        assert_eq!(chunked(body, 4), (b"hello".to_vec(), false), "more than what is wanted");
        assert_eq!(chunked(&body[..9], 100), (b"he".to_vec(), false));
        assert!(Decoder::new(Framing::Chunked).peek(b"z\r\n", 1).is_err());
        assert_eq!(Decoder::new(Framing::Length(3)).peek(b"abcGET /", 3).unwrap(), (b"abc".to_vec(), true));
        assert_eq!(Decoder::new(Framing::Length(0)).peek(b"GET /", 3).unwrap(), (Vec::new(), true));
    }

    #[test]
    fn chunks_are_rewritten_without_extensions_and_what_follows_stays() {
        let body =
            b"5;a=b;c=\"d\"\r\nhello\r\n00006  \r\n world\r\n0;x\r\nGrpc-Status: 0\r\nHost: x\r\n\r\nGET /";
        for piece in 1..body.len() {
            let (plain, rest) = decode(body, piece, false).unwrap();
            assert_eq!((&plain[..], &rest[..]), (&b"hello world"[..], &b"GET /"[..]));
        }
        let (framed, _) = decode(body, body.len(), true).unwrap();
        assert_eq!(framed, b"5\r\nhello\r\n6\r\n world\r\n0\r\nGrpc-Status: 0\r\n\r\n");
    }

    #[test]
    fn a_doubtful_chunk_is_refused() {
        let long = format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(16));
        let bodies: &[&[u8]] = &[
            b"5\nhello\r\n0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5\n\rhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"0_2e\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"\r\n5\r\nhello\r\n0\r\n\r\n",
            b";a\r\n",
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5;a\0b\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            long.as_bytes(),
            b"fffffffffffffffff\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
            b"0\r\nA: b\0\r\n\r\n",
        ];
        for body in bodies {
            for piece in [1, body.len()] {
                assert!(decode(body, piece, true).is_err(), "{}", body.escape_ascii());
            }
        }
    }

    #[test]
    fn chunk_extensions_are_bounded_in_a_line_and_in_a_body() {
        let line = format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(300));
        assert_eq!(decode(line.as_bytes(), 4096, true), Err(BodyError::Extensions));
        let body = format!("1;{}\r\nx\r\n", "a".repeat(200)).repeat(100) + "0\r\n\r\n";
        assert_eq!(decode(body.as_bytes(), 4096, true), Err(BodyError::Extensions));
    }

    #[test]
    fn trailers_are_bounded() {
        let large = format!("0\r\nA: {}\r\n\r\n", "a".repeat(70 * 1024));
        assert_eq!(decode(large.as_bytes(), 4096, true), Err(BodyError::Trailers(HeadError::TooLarge)));
        let many = format!("0\r\n{}\r\n", "A: b\r\n".repeat(200));
        assert_eq!(decode(many.as_bytes(), 4096, true), Err(BodyError::Trailers(HeadError::TooManyFields)));
    }
}
