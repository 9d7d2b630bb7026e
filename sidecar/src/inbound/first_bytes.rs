//! Reading until it is clear what a client speaks. Nothing is allocated for a client that has sent nothing.

use std::io;

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::detect::{self, FirstBytes, MAX_FIRST_BYTES, Malformed, Preface};
use crate::lifeline::Lifeline;

/// Room for one read; a ClientHello with a post-quantum key share fits.
const READ: usize = 2048;

/// What came first.
pub(super) enum Received {
    /// What the bytes are, and the bytes. [`FirstBytes::Incomplete`]: the client has closed before it was clear.
    Bytes(FirstBytes, BytesMut),
    /// The client has closed without a byte, or sent too little for too long, or the connection is to end.
    Nothing,
    /// There is no room for as many bytes that show nothing yet.
    NoRoom,
}

/// Reads until the first bytes have shown what they are.
pub(super) async fn receive(io: &TcpStream, line: &Lifeline) -> Received {
    let mut bytes = BytesMut::new();
    loop {
        if !more(io, line, &mut bytes).await {
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
pub(super) async fn preface(
    io: &TcpStream,
    line: &Lifeline,
    mut bytes: BytesMut,
) -> Option<(Preface, BytesMut)> {
    loop {
        match detect::http2_preface(&bytes) {
            Preface::Incomplete => {}
            known => return Some((known, bytes)),
        }
        if !more(io, line, &mut bytes).await {
            return None;
        }
    }
}

/// Reads what there is; whether there was anything.
async fn more(io: &TcpStream, line: &Lifeline, bytes: &mut BytesMut) -> bool {
    loop {
        if !matches!(line.guard_idle(io.readable()).await, Ok(Ok(()))) {
            return false;
        }
        bytes.reserve(READ);
        match io.try_read_buf(bytes) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}
