//! Heads of HTTP/1 messages (RFC 9112): parsed by `httparse`, then validated more strictly.
//!
//! Everything that two parsers could read differently is refused: bare line feeds, folded lines, whitespace before a
//! colon, multiple or ambiguous framings, an ambiguous host. In responses, bare line feeds and folded lines are
//! accepted and normalised, unless they affect framing. Start at [`parse_request`]; the fuzz targets call it with
//! arbitrary bytes.

mod error;
mod facts;

use std::mem::MaybeUninit;

use httparse::{Header, Status};

pub use self::error::HeadError;

use self::facts::{HeadFacts, HostField};

use crate::http::headers::{Field, classify, has_token, is_protected, is_stream, tokens};
use crate::http::request::{Request, Version};
use crate::http::target::{is_host, is_path};
use crate::limits::Limits;

/// Maximum number of header fields in a head, whatever [`Limits::header_count`] allows.
pub(crate) const MAX_FIELDS: usize = 256;

/// Maximum bytes of empty lines before a request.
const MAX_BLANK: usize = 16;

/// Memory for the fields of one head. Lives on the stack while a head is processed.
pub struct Storage<'b> {
    lines: [MaybeUninit<Header<'b>>; MAX_FIELDS],
    kinds: [Field; MAX_FIELDS],
}

/// How the end of a body is determined (RFC 9112 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes; zero if there is no body.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// A parsed request head.
pub struct RequestHead<'h> {
    /// The request as policy and logs see it.
    pub request: Request<'h>,
    /// Length in bytes, including empty lines before it.
    pub length: usize,
    /// How its body ends.
    pub framing: Framing,
    /// Whether the client keeps the connection open for another request.
    pub keep_alive: bool,
    /// Whether it asks to upgrade to a protocol that may be tunnelled.
    pub upgrade: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the authority comes from the request target and replaces `host`.
    pub is_absolute: bool,
    /// Header fields.
    pub fields: HeadFields<'h>,
}

/// A parsed response head.
pub(crate) struct ResponseHead<'h> {
    /// Status code.
    pub status: u16,
    /// Reason phrase; empty if absent or not ASCII.
    pub reason: &'h str,
    /// Length in bytes.
    pub length: usize,
    /// How its body ends.
    pub framing: Framing,
    /// Whether `transfer-encoding: chunked` is present, even if no body follows.
    pub is_chunked: bool,
    /// Whether the app keeps the connection open for another request.
    pub keep_alive: bool,
    /// Whether field values are folded over several lines, which must be joined with spaces (RFC 9112 §5.2).
    pub is_folded: bool,
    /// Header fields.
    pub fields: HeadFields<'h>,
}

/// The fields of a head, each classified.
#[derive(Clone, Copy)]
pub struct HeadFields<'h> {
    lines: &'h [Header<'h>],
    kinds: &'h [Field],
    /// Whether a `connection` field names other fields.
    names_fields: bool,
}

/// Parses a request head; `None` while more bytes are needed.
///
/// # Errors
///
/// As soon as no further byte could make the head valid, or when a limit is exceeded.
pub fn parse_request<'h>(
    bytes: &'h [u8],
    storage: &'h mut Storage<'h>,
    limits: &Limits,
) -> Result<Option<RequestHead<'h>>, HeadError> {
    // RFC 9112 §2.2: empty lines before a request are ignored.
    let blank = bytes.chunks(2).take_while(|line| line == b"\r\n").count() * 2;
    if blank > MAX_BLANK {
        return Err(HeadError::FirstLine);
    }
    let text = bytes.get(blank..).unwrap_or_default();
    let mut parsed = httparse::Request::new(&mut []);
    let lines = storage.lines.get_mut(..limits.header_count.min(MAX_FIELDS)).unwrap_or_default();
    let status = parsed.parse_with_uninit_headers(text, lines).map_err(|error| request_error(error, text))?;
    let Some(length) = complete(status, text, limits)? else { return Ok(None) };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::FirstLine);
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let method = method.as_bytes();
    if method == b"CONNECT" {
        return Err(HeadError::Connect);
    }
    let target = RequestTarget::parse(method, target.as_bytes())?;

    let mut facts = HeadFacts::default();
    let lines: &'h [Header<'h>] = parsed.headers;
    let kinds = facts.gather(lines, &mut storage.kinds)?;
    let framing = facts.framing(version)?.unwrap_or(Framing::Length(0));
    let authority = match (target.authority, facts.host) {
        (_, HostField::Several) => return Err(HeadError::Host),
        // Where the target has no authority, `host` may be empty (RFC 9112 §3.2).
        (_, HostField::One(host)) if !host.is_empty() && !is_host(host) => return Err(HeadError::Host),
        (_, HostField::None) if version == Version::Http11 => return Err(HeadError::Host),
        (Some(authority), _) => authority,
        (None, HostField::One(host)) => host,
        (None, HostField::None) => b"",
    };
    let is_http11 = version == Version::Http11;
    Ok(Some(RequestHead {
        request: Request::from_lines(method, authority, target.path, version, lines),
        length: blank + length,
        framing,
        keep_alive: !facts.close && (is_http11 || facts.keep_alive),
        upgrade: is_http11 && facts.connection_upgrade && facts.upgrade,
        expects_continue: is_http11 && facts.expects_continue,
        is_absolute: target.authority.is_some(),
        fields: HeadFields { lines, kinds, names_fields: facts.names_fields },
    }))
}

/// Parses a response head (`is_head`: the response to a `HEAD` request); `None` while more bytes are needed.
///
/// # Errors
///
/// As soon as no further byte could make the head valid, or when a limit is exceeded.
pub(crate) fn parse_response<'h>(
    bytes: &'h [u8],
    storage: &'h mut Storage<'h>,
    limits: &Limits,
    is_head: bool,
) -> Result<Option<ResponseHead<'h>>, HeadError> {
    let mut parsed = httparse::Response::new(&mut []);
    let lines = storage.lines.get_mut(..limits.header_count.min(MAX_FIELDS)).unwrap_or_default();
    let mut config = httparse::ParserConfig::default();
    config.allow_obsolete_multiline_headers_in_responses(true);
    let status =
        config.parse_response_with_uninit_headers(&mut parsed, bytes, lines).map_err(
            |error| match error {
                httparse::Error::HeaderName => HeadError::FieldName,
                httparse::Error::HeaderValue => HeadError::FieldValue,
                httparse::Error::TooManyHeaders => HeadError::TooManyFields,
                httparse::Error::Version => HeadError::Version,
                httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => {
                    HeadError::FirstLine
                }
            },
        )?;
    let Some(length) = whole(status, bytes, limits)? else { return Ok(None) };
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else { return Err(HeadError::FirstLine) };
    if status < 100 {
        return Err(HeadError::FirstLine);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let mut facts = HeadFacts::default();
    let lines: &'h [Header<'h>] = parsed.headers;
    let kinds = facts.gather(lines, &mut storage.kinds)?;
    let head = bytes.get(..length).unwrap_or_default();
    let mut feeds = memchr::memchr_iter(b'\n', head);
    let is_folded = feeds.any(|at| matches!(head.get(at + 1), Some(b' ' | b'\t')));
    if is_folded && field_lines(head).any(|line| line.is_folded && classify(line.name) != Field::Other) {
        return Err(HeadError::FoldedLine);
    }
    let stated = facts.framing(version)?;
    let has_body = !is_head && !matches!(status, 100..=199 | 204 | 304);
    Ok(Some(ResponseHead {
        status,
        reason: parsed.reason.unwrap_or_default(),
        length,
        framing: if has_body { stated.unwrap_or(Framing::UntilClose) } else { Framing::Length(0) },
        is_chunked: stated == Some(Framing::Chunked),
        keep_alive: !facts.close && (version == Version::Http11 || facts.keep_alive),
        is_folded,
        fields: HeadFields { lines, kinds, names_fields: facts.names_fields },
    }))
}

/// One raw line of a head's fields.
pub(super) struct FieldLine<'h> {
    /// Everything before the colon; for a continuation line, the name of the field that it continues.
    pub(super) name: &'h [u8],
    /// Everything from the colon on.
    pub(super) value: &'h [u8],
    /// Whether it continues the line before.
    pub(super) is_folded: bool,
}

/// The lines after the first, up to the empty one. Only for rare cases: heads that are folded or refused.
pub(super) fn field_lines(head: &[u8]) -> impl Iterator<Item = FieldLine<'_>> {
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.take_while(|line| !line.is_empty()).scan(&[][..], |last, line| {
        let is_folded = matches!(line, [b' ' | b'\t', ..]);
        let end = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = if is_folded { (*last, line) } else { line.split_at(end) };
        *last = name;
        Some(FieldLine { name, value, is_folded })
    })
}

/// Parses a trailer section, including its final empty line, and visits each field; `None` while more bytes are needed.
pub(super) fn parse_trailers(
    bytes: &[u8],
    limits: &Limits,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<Option<usize>, HeadError> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let allowed = lines.get_mut(..limits.header_count.min(MAX_FIELDS)).unwrap_or_default();
    let status = httparse::parse_headers(bytes, allowed).map_err(|error| match error {
        httparse::Error::HeaderName => HeadError::FieldName,
        httparse::Error::TooManyHeaders => HeadError::TooManyFields,
        _ => HeadError::FieldValue,
    })?;
    let Status::Complete((length, lines)) = status else {
        return complete(Status::Partial, bytes, limits).map_err(in_trailers);
    };
    complete(Status::Complete(length), bytes, limits).map_err(in_trailers)?;
    lines.iter().for_each(|line| visit(line.name.as_bytes(), line.value));
    Ok(Some(length))
}

/// Like [`whole`], but refuses bare line feeds.
fn complete(status: Status<usize>, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
    let length = if let Status::Complete(length) = status { length } else { bytes.len() };
    let head = bytes.get(..length).unwrap_or_default();
    if head.first() == Some(&b'\n') || has_bare_line_feed(head) {
        return Err(HeadError::BareLineFeed);
    }
    whole(status, bytes, limits)
}

/// The length of a complete head. The limits apply to incomplete heads, too.
fn whole(status: Status<usize>, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
    let length = if let Status::Complete(length) = status { length } else { bytes.len() };
    let head = bytes.get(..length).unwrap_or_default();
    if length > limits.head_bytes || (status.is_partial() && length == limits.head_bytes) {
        return Err(if head.contains(&b'\n') { HeadError::TooLarge } else { HeadError::TargetTooLong });
    }
    Ok(status.is_complete().then_some(length))
}

/// Trailers have no first line that could be too long.
fn in_trailers(error: HeadError) -> HeadError {
    if error == HeadError::TargetTooLong { HeadError::TooLarge } else { error }
}

/// Whether a line feed follows anything but a carriage return. A line feed as the first byte is accepted, because the
/// byte before it is unknown.
pub(super) fn has_bare_line_feed(bytes: &[u8]) -> bool {
    let mut feeds = memchr::memchr_iter(b'\n', bytes);
    feeds.any(|at| at.checked_sub(1).is_some_and(|before| bytes.get(before) != Some(&b'\r')))
}

/// A request target split into its parts (RFC 9112 §3.2).
struct RequestTarget<'h> {
    authority: Option<&'h [u8]>,
    path: &'h [u8],
}

impl<'h> RequestTarget<'h> {
    fn parse(method: &[u8], target: &'h [u8]) -> Result<Self, HeadError> {
        if target == b"*" {
            return if method == b"OPTIONS" {
                Ok(Self { authority: None, path: target })
            } else {
                Err(HeadError::Target)
            };
        }
        if target.first() == Some(&b'/') {
            return if is_path(target) {
                Ok(Self { authority: None, path: target })
            } else {
                Err(HeadError::Target)
            };
        }
        let scheme_length = ["http://", "https://"].into_iter().map(str::len).find(|length| {
            target.get(..*length).is_some_and(|scheme| {
                scheme.eq_ignore_ascii_case(b"http://") || scheme.eq_ignore_ascii_case(b"https://")
            })
        });
        let rest = scheme_length.and_then(|length| target.get(length..)).ok_or(HeadError::Target)?;
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if !is_host(authority) {
            return Err(HeadError::Host);
        }
        match path.first() {
            None => Ok(Self { authority: Some(authority), path: b"/" }),
            Some(_) if is_path(path) => Ok(Self { authority: Some(authority), path }),
            // A query directly after the authority leaves no path to forward.
            _ => Err(HeadError::Target),
        }
    }
}

impl<'b> Storage<'b> {
    /// Memory for one head.
    pub fn new() -> Self {
        Self { lines: [const { MaybeUninit::uninit() }; MAX_FIELDS], kinds: [Field::Other; MAX_FIELDS] }
    }
}

impl Default for Storage<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl ResponseHead<'_> {
    /// Whether the body may be silent for long: [`is_stream`].
    pub(super) fn is_stream(&self) -> bool {
        let is_type = |name: &[u8]| name.eq_ignore_ascii_case(b"content-type");
        self.framing != Framing::Length(0)
            && self.fields.iter().any(|(_, name, value)| is_type(name) && is_stream(value))
    }
}

impl<'h> ResponseHead<'h> {
    /// The first value of a field, if it is text. `name` may be of any case.
    pub(super) fn text(&self, name: &str) -> Option<&'h str> {
        let (.., value) =
            self.fields.iter().find(|(_, known, _)| known.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(value).ok()
    }
}

impl<'h> HeadFields<'h> {
    /// Each field with its class.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Field, &'h [u8], &'h [u8])> + use<'h> {
        let fields = self.lines.iter().zip(self.kinds);
        fields.map(|(line, kind)| (*kind, line.name.as_bytes(), line.value))
    }

    /// The values of all fields of this class.
    pub(super) fn values(&self, kind: Field) -> impl Iterator<Item = &'h [u8]> + use<'h> {
        self.iter().filter(move |(field, ..)| *field == kind).map(|(_, _, value)| value)
    }

    /// Whether a `connection` field names this field, which makes it hop-by-hop (RFC 9110 §7.6.1).
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        self.names_fields && !is_protected(name) && {
            let name = std::str::from_utf8(name).unwrap_or_default();
            self.values(Field::Connection).any(|options| has_token(options, name))
        }
    }
}

/// The protocols of an `upgrade` field that may be tunnelled. HTTP/2 and TLS are ignored, which RFC 9110 §7.8 allows:
/// the request is served as HTTP/1.1.
pub(super) fn upgrade_protocols(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    tokens(value).filter(|protocol| {
        let is_tls = protocol.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"tls"));
        let is_http = protocol.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"http"));
        !is_tls && !is_http && !protocol.eq_ignore_ascii_case(b"h2c") && !protocol.eq_ignore_ascii_case(b"h2")
    })
}

/// Maps httparse's error; a bare line feed takes precedence, because httparse reports it as something else.
fn request_error(error: httparse::Error, text: &[u8]) -> HeadError {
    if text.first() == Some(&b'\n')
        || has_bare_line_feed(text.get(..text.len().min(4096)).unwrap_or_default())
    {
        return HeadError::BareLineFeed;
    }
    match error {
        httparse::Error::HeaderName => HeadError::FieldName,
        httparse::Error::HeaderValue => HeadError::FieldValue,
        httparse::Error::TooManyHeaders => HeadError::TooManyFields,
        httparse::Error::Version if names_other_version(text) => HeadError::Version,
        _ => HeadError::FirstLine,
    }
}

/// Whether the first line ends in a well-formed version, which is then unsupported.
fn names_other_version(text: &[u8]) -> bool {
    let line = text.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let version = line.split(|byte| *byte == b' ').nth(2).unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}
