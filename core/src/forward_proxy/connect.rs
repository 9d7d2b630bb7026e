//! `CONNECT`: the request for a tunnel, and the proxy's answer (RFC 9110 §9.3.6, RFC 9112).
//!
//! Bytes in, bytes out: the caller reads, writes and has the deadlines. What follows the head of the answer belongs to the
//! tunnel, because a server may speak first, so [`ConnectDecoder::feed`] says how many bytes it has consumed.

use std::fmt;

use super::ProxyCredentials;

/// The most bytes of heads that an answer may have, those of interim answers included.
pub const MAX_HEAD: usize = 64 * 1024;

/// The most characters of a proxy's own words that are kept.
const MAX_WORDS: usize = 256;

/// Fields in which proxies say why they refuse: Squid's own, RFC 9209, RFC 9110 §11.7.1.
const TELLING: [&str; 3] = ["X-Squid-Error", "Proxy-Status", "Proxy-Authenticate"];

/// The target cannot be written as an authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not host:port")]
pub struct InvalidConnectTarget(pub Box<str>);

/// The request for a tunnel to `target`, which is `host:port` with a name rather than its address: proxies decide by
/// name.
pub fn connect_request(
    target: &str,
    credentials: Option<&ProxyCredentials>,
) -> Result<Vec<u8>, InvalidConnectTarget> {
    let has_port = target.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && !port.is_empty());
    if !has_port || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(InvalidConnectTarget(target.into()));
    }
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(credentials) = credentials {
        request.push_str("Proxy-Authorization: ");
        request.push_str(credentials.authorization());
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    Ok(request.into_bytes())
}

/// Reads an answer as it arrives.
#[derive(Debug, Default)]
pub struct ConnectDecoder {
    head: Vec<u8>,
    /// Bytes of interim answers before this head.
    before: usize,
    /// Where its last complete line ends.
    line: usize,
}

/// The result of some more bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Fed {
    /// How many of them belong to the answer.
    pub consumed: usize,
    /// The answer, once its head is complete.
    pub answer: Option<ConnectAnswer>,
}

/// What a proxy answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectAnswer {
    /// Any 2xx: all further bytes are the target's.
    Tunnel,
    /// Anything else.
    Refused(ProxyRefusal),
}

/// A refusal in the proxy's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRefusal {
    /// Its status.
    pub status: u16,
    /// Its reason phrase and the fields that explain it, such as `Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0`. Visible
    /// ASCII and spaces, at most 256 characters.
    pub words: Box<str>,
}

/// The answer cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedAnswer {
    /// It does not begin as HTTP/1, or has a malformed status line.
    #[error("the answer is not HTTP/1")]
    NotHttp,
    /// Its head does not end in time.
    #[error("the head of the answer is larger than {MAX_HEAD} bytes")]
    TooLarge,
}

impl ConnectDecoder {
    /// Takes over bytes up to the end of the answer's head. Interim answers (1xx) are skipped.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Fed, MalformedAnswer> {
        for (i, byte) in bytes.iter().enumerate() {
            if self.before + self.head.len() >= MAX_HEAD {
                return Err(MalformedAnswer::TooLarge);
            }
            self.head.push(*byte);
            if !begins_as_http(&self.head) {
                return Err(MalformedAnswer::NotHttp);
            }
            if *byte != b'\n' {
                continue;
            }
            let line = self.head.get(self.line..).unwrap_or_default();
            let is_end = self.line > 0 && matches!(line, b"\n" | b"\r\n");
            self.line = self.head.len();
            if !is_end {
                continue;
            }
            let (status, reason) = status_line(&self.head).ok_or(MalformedAnswer::NotHttp)?;
            let answer = match status {
                // 101 would switch to a protocol that was not offered.
                100 | 102..=199 => {
                    self.before += self.head.len();
                    self.head.clear();
                    self.line = 0;
                    continue;
                }
                200..=299 => ConnectAnswer::Tunnel,
                status => ConnectAnswer::Refused(ProxyRefusal { status, words: words(reason, &self.head) }),
            };
            return Ok(Fed { consumed: i + 1, answer: Some(answer) });
        }
        Ok(Fed { consumed: bytes.len(), answer: None })
    }
}

impl fmt::Display for ProxyRefusal {
    /// `403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if self.words.is_empty() { Ok(()) } else { write!(f, " {}", self.words) }
    }
}

impl ProxyRefusal {
    /// Of a response with this status, and the values of the fields that explain it.
    pub fn of_response<'v>(status: u16, fields: impl IntoIterator<Item = (&'v [u8], &'v [u8])>) -> Self {
        let mut words = String::new();
        for (name, value) in fields {
            if TELLING.iter().any(|telling| telling.as_bytes().eq_ignore_ascii_case(name)) {
                add_words(&mut words, &[name, b": ", value]);
            }
        }
        Self { status, words: words.into() }
    }
}

/// Whether a head may go on as a status line of HTTP/1.
fn begins_as_http(head: &[u8]) -> bool {
    let (expected, count) = (b"HTTP/1.", head.len().min(7));
    head.get(..count) == expected.get(..count)
}

/// The status and the reason phrase of a head.
fn status_line(head: &[u8]) -> Option<(u16, &[u8])> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (minor, rest) = line.strip_prefix(b"HTTP/1.")?.split_first()?;
    let (code, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let is_valid = minor.is_ascii_digit()
        && code.iter().all(u8::is_ascii_digit)
        && (reason.is_empty() || reason.starts_with(b" "));
    let status = std::str::from_utf8(code).ok()?.parse().ok()?;
    (is_valid && (100..=599).contains(&status)).then_some((status, reason.trim_ascii()))
}

/// What a head says of its reason.
fn words(reason: &[u8], head: &[u8]) -> Box<str> {
    let mut words = String::new();
    add_words(&mut words, &[reason]);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        for telling in TELLING.iter().filter(|telling| name.eq_ignore_ascii_case(telling.as_bytes())) {
            add_words(&mut words, &[telling.as_bytes(), b": ", value.get(1..).unwrap_or_default()]);
        }
    }
    words.into()
}

/// Adds an item to a list; what is not visible ASCII becomes `?`.
fn add_words(words: &mut String, parts: &[&[u8]]) {
    if parts.iter().all(|part| part.trim_ascii().is_empty()) {
        return;
    }
    let separator: &[u8] = if words.is_empty() { b"" } else { b", " };
    let trimmed = parts.iter().map(|part| if *part == b": " { part } else { part.trim_ascii() });
    for byte in std::iter::once(separator).chain(trimmed).flatten() {
        if words.len() < MAX_WORDS {
            words.push(if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' });
        }
    }
}

#[cfg(test)]
mod tests;
