//! Detects the protocol of a connection from its first bytes, before anything is answered.
//!
//! [`first_bytes`] tells TLS from plaintext and reads the ClientHello, [`http2_preface`] tells plaintext HTTP/2 from
//! HTTP/1. Both are pure functions of the bytes received so far: segmentation and record boundaries make no difference,
//! and bytes that cannot be decoded are refused, never treated as another protocol.

pub mod client_hello;
pub mod server;

use tidegate_core::policy::Opening;

pub use client_hello::{ClientHello, Malformed};

/// How many bytes are read at most to detect the protocol: a ClientHello of [`client_hello::MAX_MESSAGE`] bytes in
/// [`client_hello::MAX_RECORDS`] records.
pub(crate) const MAX_FIRST_BYTES: usize =
    client_hello::MAX_MESSAGE + client_hello::MAX_RECORDS * client_hello::RECORD_HEADER;

/// The client connection preface of HTTP/2 (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest method that is detected; the longest registered one, `UPDATEREDIRECTREF`, has 17 characters.
const LONGEST_METHOD: usize = 24;

/// The protocol that the first bytes show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// More bytes are needed.
    Incomplete,
    /// Not TLS.
    Plaintext,
    /// TLS, with its ClientHello.
    Tls(ClientHello),
    /// Begins like TLS, but the ClientHello is malformed.
    Malformed(Malformed),
}

/// Whether plaintext begins with the HTTP/2 preface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preface {
    /// More bytes are needed.
    Incomplete,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Other,
}

/// How plaintext begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpStart {
    /// More bytes are needed.
    Incomplete,
    /// A request of HTTP/1 for a path.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else, requests to a forward proxy among them.
    Other,
}

/// Detects the protocol from all bytes that a client has sent so far.
pub(crate) fn first_bytes(bytes: &[u8]) -> FirstBytes {
    match bytes {
        [] | [client_hello::HANDSHAKE] => FirstBytes::Incomplete,
        [client_hello::HANDSHAKE, client_hello::MAJOR_VERSION, ..] => match ClientHello::parse(bytes) {
            Ok(Some(hello)) => FirstBytes::Tls(hello),
            Ok(None) => FirstBytes::Incomplete,
            Err(malformed) => FirstBytes::Malformed(malformed),
        },
        _ => FirstBytes::Plaintext,
    }
}

/// Looks for the HTTP/2 preface in all plaintext that a client has sent so far.
pub(crate) fn http2_preface(bytes: &[u8]) -> Preface {
    if bytes.starts_with(HTTP2_PREFACE) {
        Preface::Http2
    } else if HTTP2_PREFACE.starts_with(bytes) {
        Preface::Incomplete
    } else {
        Preface::Other
    }
}

/// Looks for HTTP in all that a client has sent so far. A request of HTTP/1 begins with a method in upper case and a
/// path, or `*`.
pub(crate) fn http_start(bytes: &[u8]) -> HttpStart {
    match http2_preface(bytes) {
        Preface::Http2 => return HttpStart::Http2,
        Preface::Incomplete => return HttpStart::Incomplete,
        Preface::Other => {}
    }
    let is_of_method = |byte: &&u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    let method = bytes.iter().take_while(is_of_method).count();
    match bytes.get(method..).unwrap_or_default() {
        _ if method == 0 || method > LONGEST_METHOD => HttpStart::Other,
        [] | [b' '] => HttpStart::Incomplete,
        [b' ', b'/' | b'*', ..] => HttpStart::Http1,
        _ => HttpStart::Other,
    }
}

impl FirstBytes {
    /// The ClientHello, if they are TLS.
    pub(crate) fn client_hello(&self) -> Option<&ClientHello> {
        match self {
            Self::Tls(hello) => Some(hello),
            Self::Incomplete | Self::Plaintext | Self::Malformed(_) => None,
        }
    }

    /// The opening in the form that the policy takes; `None` while it is incomplete or if it is malformed.
    pub(crate) fn opening(&self) -> Option<Opening<'_>> {
        match self {
            Self::Plaintext => Some(Opening::Plaintext),
            Self::Tls(hello) => Some(match hello.alpn.mesh {
                Some(protocol) => Opening::Mesh(protocol),
                None => Opening::Tls { server_name: hello.server_name.as_ref().map(|name| name.as_str()) },
            }),
            Self::Incomplete | Self::Malformed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
