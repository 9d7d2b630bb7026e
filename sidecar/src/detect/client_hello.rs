//! Reads the parts of a ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2) that decide how a connection is handled.
//!
//! A ClientHello may be split into records at any byte (RFC 8446 §5.1), and some clients do so to hide their server
//! name. It is parsed once it is complete, from the same bytes that rustls gets afterwards; anything that rustls could
//! read differently is refused.

#[cfg(test)]
mod check;

use tidegate_core::DnsName;
use tidegate_core::policy::MeshProtocol;

/// Maximum length of a ClientHello in bytes, including its header.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Maximum number of records that a ClientHello may be split into.
pub(crate) const MAX_RECORDS: usize = 64;

/// Length of a record header in bytes.
pub(crate) const RECORD_HEADER: usize = 5;

/// Record type: handshake.
pub const HANDSHAKE: u8 = 0x16;

/// First byte of every record's version.
pub const MAJOR_VERSION: u8 = 0x03;

/// TLS 1.2.
pub const TLS12: u16 = 0x0303;

/// TLS 1.3.
pub const TLS13: u16 = 0x0304;

/// ALPN protocols between sidecars, each with the protocol that it carries.
pub const MESH_PROTOCOLS: [(&[u8], MeshProtocol); 3] = [
    (b"tidegate/h1", MeshProtocol::Http1),
    (b"tidegate/h2", MeshProtocol::Http2),
    (b"tidegate/tcp", MeshProtocol::Tcp),
];

/// Type and length of a handshake message, in bytes.
const MESSAGE_HEADER: usize = 4;
/// `HandshakeType` of a ClientHello (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
/// Plaintext of a record, in bytes (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;
/// More than any client sends; each is looked at once.
const MAX_EXTENSIONS: usize = 128;

/// `ExtensionType`s (RFC 6066 §3, RFC 7301 §3.1, RFC 8446 §4.2.1).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// The fields of a ClientHello that decide how a connection is handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name (RFC 6066 §3), normalised; `None` also for an IP address, which is not a server name.
    pub server_name: Option<DnsName>,
    /// The application protocols that the client offers.
    pub alpn: Alpn,
    /// The newest TLS version that the client offers, such as 0x0304 for TLS 1.3.
    pub newest_version: u16,
}

/// The ALPN extension (RFC 7301), reduced to the protocols that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alpn {
    /// The first mesh protocol that the client offers.
    pub mesh: Option<MeshProtocol>,
    /// `http/1.1` is offered.
    pub http1: bool,
    /// `h2` is offered.
    pub http2: bool,
}

/// Why a ClientHello is refused. Each text is a reason in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than [`MAX_MESSAGE`].
    #[error("ClientHello longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// Split into more than [`MAX_RECORDS`] records.
    #[error("ClientHello in more than {MAX_RECORDS} records")]
    TooManyRecords,
    /// A record that is not a handshake record, or whose length is out of range.
    #[error("ClientHello in an invalid TLS record")]
    Record,
    /// The first handshake message is not a ClientHello.
    #[error("first handshake message is not a ClientHello")]
    NotClientHello,
    /// More bytes follow in the last record.
    #[error("bytes after the ClientHello")]
    Trailing,
    /// A length does not fit into the enclosing field.
    #[error("ClientHello cannot be decoded")]
    Syntax,
    /// A duplicate extension, or more than 128 of them.
    #[error("ClientHello with duplicate or too many extensions")]
    Extensions,
    /// More than one host name, or a name that is not a DNS name.
    #[error("ClientHello with an invalid server name")]
    ServerName,
}

impl ClientHello {
    /// Parses a ClientHello from the first bytes of a connection; `None` if it is incomplete.
    ///
    /// # Errors
    ///
    /// As soon as no further byte could make the ClientHello valid.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let first = match next_record(bytes)? {
            Some(HelloRecord { body, .. }) if is_whole(body)? => return Self::from_message(body).map(Some),
            Some(HelloRecord { body, .. }) => body,
            // The length is checked already: do not wait for a message that is too long.
            None => {
                is_whole(bytes.get(RECORD_HEADER..).unwrap_or_default())?;
                return Ok(None);
            }
        };
        let mut message = Vec::with_capacity(bytes.len());
        let mut rest = bytes.get(RECORD_HEADER + first.len()..).unwrap_or_default();
        message.extend_from_slice(first);
        for _ in 1..MAX_RECORDS {
            let Some(HelloRecord { body, after }) = next_record(rest)? else { return Ok(None) };
            message.extend_from_slice(body);
            if is_whole(&message)? {
                return Self::from_message(&message).map(Some);
            }
            rest = after;
        }
        Err(Malformed::TooManyRecords)
    }

    /// A complete handshake message. It must be a ClientHello whose length fields agree.
    fn from_message(message: &[u8]) -> Result<Self, Malformed> {
        let mut reader = HelloReader(message);
        reader.take(MESSAGE_HEADER)?;
        let legacy_version = reader.u16()?;
        reader.take(32)?; // random
        if reader.vector8()?.0.len() > 32 {
            return Err(Malformed::Syntax);
        }
        let cipher_suites = reader.vector16()?;
        if cipher_suites.0.len() % 2 != 0 {
            return Err(Malformed::Syntax);
        }
        reader.vector8()?; // compression methods
        let mut hello = Self { server_name: None, alpn: Alpn::default(), newest_version: legacy_version };
        if reader.is_empty() {
            return Ok(hello);
        }
        let mut extensions = reader.vector16()?;
        if !reader.is_empty() {
            return Err(Malformed::Syntax);
        }
        let mut seen = [0_u16; MAX_EXTENSIONS];
        let mut count = 0;
        while !extensions.is_empty() {
            let kind = extensions.u16()?;
            let body = extensions.vector16()?;
            let (before, after) = seen.split_at_mut(count);
            let slot = after.first_mut().ok_or(Malformed::Extensions)?;
            if before.contains(&kind) {
                return Err(Malformed::Extensions);
            }
            *slot = kind;
            count += 1;
            match kind {
                SERVER_NAME => hello.server_name = server_name(body)?,
                ALPN => hello.alpn = Alpn::read(body)?,
                SUPPORTED_VERSIONS => hello.newest_version = newest_version(body)?,
                _ => {}
            }
        }
        Ok(hello)
    }
}

impl Alpn {
    fn read(mut body: HelloReader<'_>) -> Result<Self, Malformed> {
        let mut protocols = body.vector16()?;
        if !body.is_empty() || protocols.is_empty() {
            return Err(Malformed::Syntax);
        }
        let mut alpn = Self::default();
        while !protocols.is_empty() {
            let protocol = protocols.vector8()?.0;
            match protocol {
                b"" => return Err(Malformed::Syntax),
                b"http/1.1" => alpn.http1 = true,
                b"h2" => alpn.http2 = true,
                _ => {
                    let mesh = MESH_PROTOCOLS.iter().find(|(name, _)| *name == protocol);
                    alpn.mesh = alpn.mesh.or(mesh.map(|(_, protocol)| *protocol));
                }
            }
        }
        Ok(alpn)
    }
}

/// The first DNS name of the extension `server_name`.
fn server_name(mut body: HelloReader<'_>) -> Result<Option<DnsName>, Malformed> {
    const HOST_NAME: u8 = 0;
    let mut names = body.vector16()?;
    if !body.is_empty() || names.is_empty() {
        return Err(Malformed::Syntax);
    }
    // No other type was ever defined, so its length is unknown.
    if names.u8()? != HOST_NAME {
        return Err(Malformed::ServerName);
    }
    let name = names.vector16()?.0;
    if !names.is_empty() {
        return Err(Malformed::ServerName);
    }
    let text = std::str::from_utf8(name).map_err(|_| Malformed::ServerName)?;
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(None);
    }
    DnsName::parse(text).map(Some).map_err(|_| Malformed::ServerName)
}

/// The highest version offered, ignoring GREASE values (RFC 8701).
fn newest_version(mut body: HelloReader<'_>) -> Result<u16, Malformed> {
    let mut versions = body.vector8()?;
    if !body.is_empty() || versions.is_empty() {
        return Err(Malformed::Syntax);
    }
    let mut newest = 0;
    while !versions.is_empty() {
        let version = versions.u16()?;
        if version >> 8 == u16::from(MAJOR_VERSION) {
            newest = newest.max(version);
        }
    }
    Ok(newest)
}

/// A record's body, and the bytes that follow it.
struct HelloRecord<'a> {
    body: &'a [u8],
    after: &'a [u8],
}

/// The first record; `None` if it is incomplete.
fn next_record(bytes: &[u8]) -> Result<Option<HelloRecord<'_>>, Malformed> {
    let head = &bytes[..bytes.len().min(RECORD_HEADER)];
    let prefix_is_right = [HANDSHAKE, MAJOR_VERSION].iter().zip(head).all(|(wanted, byte)| wanted == byte);
    if !prefix_is_right {
        return Err(Malformed::Record);
    }
    let Ok([_, _, _, high, low]) = <[u8; RECORD_HEADER]>::try_from(head) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // A handshake record is never empty (RFC 8446 §5.1).
    if length == 0 || length > MAX_RECORD {
        return Err(Malformed::Record);
    }
    let body = bytes.get(RECORD_HEADER..).and_then(|rest| rest.split_at_checked(length));
    Ok(body.map(|(body, after)| HelloRecord { body, after }))
}

/// Whether these bytes are one complete ClientHello.
fn is_whole(message: &[u8]) -> Result<bool, Malformed> {
    match message.first() {
        None => return Ok(false),
        Some(&CLIENT_HELLO) => {}
        Some(_) => return Err(Malformed::NotClientHello),
    }
    let [_, high, middle, low, body @ ..] = message else { return Ok(false) };
    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    if length > MAX_MESSAGE - MESSAGE_HEADER {
        return Err(Malformed::TooLong);
    }
    if body.len() > length {
        return Err(Malformed::Trailing);
    }
    Ok(body.len() == length)
}

/// Decodes the fields of a TLS message.
struct HelloReader<'a>(&'a [u8]);

impl<'a> HelloReader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Syntax)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed::Syntax)?;
        self.0 = rest;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    /// A vector with a length of one byte before it (RFC 8446 §3.4).
    fn vector8(&mut self) -> Result<HelloReader<'a>, Malformed> {
        let length = usize::from(self.u8()?);
        self.take(length).map(HelloReader)
    }

    /// The same with a length of two bytes.
    fn vector16(&mut self) -> Result<HelloReader<'a>, Malformed> {
        let length = usize::from(self.u16()?);
        self.take(length).map(HelloReader)
    }
}

#[cfg(test)]
mod tests;
