//! Reads from a client until its protocol is clear. Allocates nothing for a client that has sent nothing.

use std::io;

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::detect::{self, FirstBytes, MAX_FIRST_BYTES, Malformed, Preface};
use crate::lifeline::Lifeline;

/// Bytes per read; a ClientHello with a post-quantum key share fits.
const READ_SIZE: usize = 2048;

/// What the client sent first.
pub(crate) enum Received {
    /// The detected protocol, and the bytes. [`FirstBytes::Incomplete`]: the client closed before it was clear.
    Bytes(FirstBytes, BytesMut),
    /// The client closed without sending a byte or reached the deadline, or the connection must end.
    Nothing,
    /// No room to hold more undetected bytes.
    NoRoom,
}

/// Reads until the first bytes show the protocol.
pub(crate) async fn receive(io: &TcpStream, line: &Lifeline) -> Received {
    let mut bytes = BytesMut::new();
    loop {
        if !read_more(io, line, &mut bytes).await {
            let is_cut = bytes.is_empty() || line.is_finishing();
            return if is_cut { Received::Nothing } else { Received::Bytes(FirstBytes::Incomplete, bytes) };
        }
        match detect::first_bytes(&bytes) {
            FirstBytes::Incomplete if bytes.len() > MAX_FIRST_BYTES => {
                return Received::Bytes(FirstBytes::Malformed(Malformed::TooLong), bytes);
            }
            FirstBytes::Incomplete if !line.hold(bytes.capacity()) => return Received::NoRoom,
            FirstBytes::Incomplete => {}
            known => return Received::Bytes(known, bytes),
        }
    }
}

/// Reads until it is clear whether plaintext is HTTP/2; `None` if the connection has ended.
pub(crate) async fn preface(
    io: &TcpStream,
    line: &Lifeline,
    mut bytes: BytesMut,
) -> Option<(Preface, BytesMut)> {
    loop {
        match detect::http2_preface(&bytes) {
            Preface::Incomplete => {}
            known => return Some((known, bytes)),
        }
        if !read_more(io, line, &mut bytes).await {
            return None;
        }
    }
}

/// Reads once when the socket is readable; `false` at the end of the stream or of the connection.
pub(crate) async fn read_more(io: &TcpStream, line: &Lifeline, bytes: &mut BytesMut) -> bool {
    loop {
        if !matches!(line.guard_idle(io.readable()).await, Ok(Ok(()))) {
            return false;
        }
        bytes.reserve(READ_SIZE);
        match io.try_read_buf(bytes) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}
