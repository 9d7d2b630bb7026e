//! Bodies of HTTP/1 messages: where they end, and how they are framed anew for the next hop.
//!
//! A chunked body is taken apart and put together again, so that no byte of its framing reaches the next hop as the
//! sender wrote it: no extensions, no odd spellings of a size.

use std::io::Write;

use super::head::{Framing, HeadError, has_bare_line_feed, parse_trailers};
use crate::http::buffer::{Buffer, Buffers, LARGE};
use crate::http::headers::is_protected;
use crate::limits::Limits;

/// Most bytes of extensions on one chunk's line.
const MAX_LINE_EXTENSIONS: u16 = 256;
/// Most bytes of extensions in one body.
const MAX_EXTENSIONS: u16 = 16 * 1024;

/// Finds the end of a body.
#[derive(Debug)]
pub(super) enum Decoder {
    /// This many bytes are left.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Everything until the connection ends.
    UntilClose,
}

/// Where in a chunked body the next byte stands.
#[derive(Debug)]
pub(super) struct Chunks {
    state: State,
    /// Size of the chunk, or what is left of its data.
    size: u64,
    /// Digits of the size so far.
    digits: u8,
    line_extensions: u16,
    extensions: u16,
    /// Bytes of the trailer section that hold no end of it.
    scanned: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
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
    /// A chunk's line that is not hexadecimal digits, perhaps extensions, CR LF; or data that does not end with CR LF.
    #[error("malformed chunk")]
    Chunk,
    /// Chunk extensions past the limit.
    #[error("too many chunk extensions")]
    Extensions,
    /// A malformed or too large trailer section.
    #[error("trailers: {0}")]
    Trailers(HeadError),
}

/// What the front of the input is.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// This many bytes of framing.
    Framing(usize),
    /// This many bytes of the body.
    Data(usize),
    /// A trailer section.
    Trailers,
    /// Not known yet.
    More,
}

impl Decoder {
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
            Self::Chunked(chunks) => chunks.state == State::Done,
            Self::UntilClose => false,
        }
    }

    /// How many bytes are left, if it is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(chunks) => (chunks.state == State::Done).then_some(0),
            Self::UntilClose => None,
        }
    }

    /// Moves what is there of the body from `input` to `output`, `chunked` or as it is; returns how many bytes of it.
    /// Stops when the body is done, when it needs more input, or when a reasonable amount waits in `output`.
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
                Piece::Framing(count) => input.consume(count),
                Piece::Data(count) => {
                    self.advance(count);
                    moved += count as u64;
                    if !chunked && output.is_empty() && count == input.len() {
                        // All of it goes on as it is: no byte is copied.
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
                Piece::Trailers => {
                    if !self.trailers(input, output, chunked, limits)? {
                        break;
                    }
                }
                Piece::More => break,
            }
        }
        if input.is_empty() {
            buffers.give(input);
        }
        Ok(moved)
    }

    /// Drops what is there of the body from `input`; returns how many bytes, framing included.
    pub(super) fn discard(&mut self, input: &mut Buffer, limits: &Limits) -> Result<usize, BodyError> {
        let before = input.len();
        while !self.is_done() && !input.is_empty() {
            match self.next(input.bytes())? {
                Piece::Framing(count) => input.consume(count),
                Piece::Data(count) => {
                    self.advance(count);
                    input.consume(count);
                }
                Piece::Trailers => {
                    if !self.trailers(input, &mut Buffer::default(), false, limits)? {
                        break;
                    }
                }
                Piece::More => break,
            }
        }
        Ok(before - input.len())
    }

    /// The input has ended. Whether that is where the body ends; if so, its end is written to `output`.
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

    fn next(&mut self, input: &[u8]) -> Result<Piece, BodyError> {
        match self {
            Self::Length(left) => {
                Ok(Piece::Data(usize::try_from(*left).unwrap_or(usize::MAX).min(input.len())))
            }
            Self::Chunked(chunks) => chunks.next(input),
            Self::UntilClose => Ok(Piece::Data(input.len())),
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

    /// Passes the trailer section on, but for fields that frame, route or identify; `false` if it is not all there.
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
        // Looked for where it was not looked before: a section that trickles in is read in linear time.
        let from = chunks.scanned.saturating_sub(3).min(bytes.len());
        let new = bytes.get(from..).unwrap_or_default();
        let is_news = || new.windows(4).any(|end| end == b"\r\n\r\n") || has_bare_line_feed(new);
        if !is_empty && chunks.scanned > 0 && bytes.len() < limits.head_bytes && !is_news() {
            chunks.scanned = bytes.len();
            return Ok(false);
        }
        chunks.scanned = bytes.len();
        let mut kept: Option<&mut Buffer> = None;
        if chunked {
            kept = Some(output);
        }
        let mark = kept.as_ref().map_or(0, |output| output.len());
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
                chunks.state = State::Done;
                Ok(true)
            }
            None => {
                if let Some(output) = kept {
                    output.truncate(mark);
                }
                Ok(false)
            }
        }
    }
}

impl Chunks {
    fn new() -> Self {
        Self { state: State::Size, size: 0, digits: 0, line_extensions: 0, extensions: 0, scanned: 0 }
    }

    fn next(&mut self, input: &[u8]) -> Result<Piece, BodyError> {
        match self.state {
            State::Data => {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                return Ok(Piece::Data(left.min(input.len())));
            }
            State::Trailers => return Ok(Piece::Trailers),
            State::Done => return Ok(Piece::More),
            _ => {}
        }
        for (at, byte) in input.iter().enumerate() {
            if let Err(error) = self.step(*byte) {
                self.state = State::Refused;
                return Err(error);
            }
            if matches!(self.state, State::Data | State::Trailers) {
                return Ok(Piece::Framing(at + 1));
            }
        }
        Ok(Piece::Framing(input.len()))
    }

    /// One byte of framing (RFC 9112 §7.1).
    fn step(&mut self, byte: u8) -> Result<(), BodyError> {
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.digits == 16 {
                    return Err(BodyError::Chunk);
                }
                self.digits += 1;
                let digit = char::from(byte).to_digit(16).ok_or(BodyError::Chunk)?;
                self.size = self.size << 4 | u64::from(digit);
                State::Size
            }
            (State::Size, _) if self.digits == 0 => return Err(BodyError::Chunk),
            (State::Size | State::SizeBlank | State::Extension, b'\r') => State::SizeLf,
            (State::Size | State::SizeBlank, b' ' | b'\t') => {
                self.count_extension()?;
                State::SizeBlank
            }
            (State::Size | State::SizeBlank, b';') | (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count_extension()?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                self.line_extensions = 0;
                if self.size == 0 { State::Trailers } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            _ => return Err(BodyError::Chunk),
        };
        Ok(())
    }

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
            self.state = State::DataCr;
        }
    }
}

impl BodyError {
    /// The word on it in the access log.
    pub(super) fn details(self) -> &'static str {
        match self {
            Self::Chunk => "http1.invalid_chunk",
            Self::Extensions => "http1.chunk_extensions_too_large",
            Self::Trailers(_) => "http1.invalid_trailers",
        }
    }
}

/// Writes a chunk. `data` is not empty: an empty one would be the last.
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
    fn chunks_are_framed_anew_without_extensions_and_what_follows_stays() {
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
