//! HTTP/2 that no client library would send: frames, byte by byte (RFC 9113 §4, RFC 7541).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use tidegate_tests::client::{self, Client};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types and flags of RFC 9113 §6, as far as the attacks send them.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u16 = 4;
/// Longest wait for a write: a server that has stopped reading is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection with prior knowledge, with a count of what was sent on it.
pub(crate) struct Frames {
    stream: TcpStream,
    next: u32,
    pub(crate) sent: u64,
}

impl AsFd for Frames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A field, as literal without indexing.
pub(crate) fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(0x00, name, value)
}

/// A field that the server must add to its dynamic table, at index 62.
pub(crate) fn remembered(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(0x40, name, value)
}

/// The pseudo-fields of a request.
pub(crate) fn request(method: &[u8], path: &[u8]) -> Vec<u8> {
    let pseudo = [
        (&b":method"[..], method),
        (b":scheme", b"http"),
        (b":authority", b"httpbin.test"),
        (b":path", path),
    ];
    pseudo.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

fn field(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    for text in [name, value] {
        put_length(&mut out, text.len());
        out.extend_from_slice(text);
    }
    out
}

/// A string's length, with a prefix of seven bits (RFC 7541 §5.1).
fn put_length(out: &mut Vec<u8>, length: usize) {
    if length < 127 {
        out.push(length as u8);
        return;
    }
    out.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    out.push(rest as u8);
}

impl Frames {
    /// Opens a connection; answers get a window of this size.
    pub(crate) fn open(client: &Client, window: u32) -> io::Result<Self> {
        let stream = client::connect(client.source, client.target)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut frames = Self { stream, next: 1, sent: 0 };
        frames.put(PREFACE)?;
        let settings = [&INITIAL_WINDOW.to_be_bytes()[..], &window.to_be_bytes()].concat();
        frames.frame(SETTINGS, 0, 0, &settings)?;
        frames.frame(SETTINGS, ACK, 0, &[])?;
        Ok(frames)
    }

    /// Sends the head of a request; with `ends` the request is complete.
    pub(crate) fn head(&mut self, fields: &[u8], ends: bool) -> io::Result<u32> {
        let stream = self.next;
        self.next += 2;
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.frame(HEADERS, flags, stream, fields)?;
        Ok(stream)
    }

    /// Requests that were made.
    pub(crate) fn requests(&self) -> u64 {
        u64::from(self.next / 2)
    }

    /// Resets a stream.
    pub(crate) fn reset(&mut self, stream: u32) -> io::Result<()> {
        self.frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
    }

    /// Widens the connection's window by this many bytes.
    pub(crate) fn widen(&mut self, bytes: u32) -> io::Result<()> {
        self.frame(WINDOW_UPDATE, 0, 0, &bytes.to_be_bytes())
    }

    /// Sends PING.
    pub(crate) fn ping(&mut self) -> io::Result<()> {
        self.frame(PING, 0, 0, &[0; 8])
    }

    /// Sends settings that change nothing.
    pub(crate) fn settings(&mut self) -> io::Result<()> {
        self.frame(SETTINGS, 0, 0, &[])
    }

    /// Sends a frame without data.
    pub(crate) fn empty_data(&mut self, stream: u32) -> io::Result<()> {
        self.frame(DATA, 0, stream, &[])
    }

    /// Reads and discards what has arrived.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let mut buffer = [0; 16 * 1024];
        let ended = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.stream.set_nonblocking(false)?;
        ended
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.put(&[&head, payload].concat())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.sent += bytes.len() as u64;
        Ok(())
    }
}
