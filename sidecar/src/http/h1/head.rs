//! Heads of HTTP/1 messages (RFC 9112): read by `httparse`, and then judged more strictly than it does.
//!
//! Everything that two parsers could read in two ways is refused: line feeds alone, folded lines, a blank before a
//! colon, several framings or a doubtful one, a doubtful host. Of an app's answer, line feeds alone and folded lines are
//! written anew as what they stand for, unless framing is in doubt. Start at [`parse_request`]; the fuzz targets call it
//! with any bytes.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use crate::http::headers::{Field, classify, has_token, is_protected, is_stream, tokens};
use crate::http::local_reply::{self, LocalReply};
use crate::http::request::{Request, Version};
use crate::http::target::{is_host, is_path};
use crate::limits::Limits;

/// Most header fields that a head may have, whatever [`Limits::header_count`] says.
pub const MAX_FIELDS: usize = 256;

/// Most options that a `connection` field may list: each is compared with every other field's name.
const MAX_CONNECTION_OPTIONS: usize = 32;

/// Most bytes of empty lines before a request.
const MAX_BLANK: usize = 16;

/// Memory for the fields of one head; lives on the stack while a head is looked at.
pub struct Storage<'b> {
    lines: [MaybeUninit<Header<'b>>; MAX_FIELDS],
    kinds: [Field; MAX_FIELDS],
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes; zero if there is no body.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// A request's head.
pub struct RequestHead<'h> {
    /// What policy and logs see of it.
    pub request: Request<'h>,
    /// Its bytes, blank lines before it included.
    pub length: usize,
    /// How its body ends.
    pub framing: Framing,
    /// Whether the client keeps the connection open for another one.
    pub keep_alive: bool,
    /// Whether it asks to switch to a protocol that is passed on.
    pub upgrade: bool,
    /// Whether it waits for the app's word before it sends its body.
    pub expects_continue: bool,
    /// Whether the authority comes from the target, and takes the place of `host`.
    pub is_absolute: bool,
    /// Its fields.
    pub fields: HeadFields<'h>,
}

/// A response's head.
pub struct ResponseHead<'h> {
    /// Status code.
    pub status: u16,
    /// Reason phrase; empty if there is none, or one that is not ASCII.
    pub reason: &'h str,
    /// Its bytes.
    pub length: usize,
    /// How its body ends.
    pub framing: Framing,
    /// Whether it says so by `transfer-encoding: chunked`, also where no body follows.
    pub is_chunked: bool,
    /// Whether the app keeps the connection open for another request.
    pub keep_alive: bool,
    /// Whether values of fields go on in further lines, which are to be joined by blanks (RFC 9112 §5.2).
    pub is_folded: bool,
    /// Its fields.
    pub fields: HeadFields<'h>,
}

/// The fields of a head, each with what it is.
#[derive(Clone, Copy)]
pub struct HeadFields<'h> {
    lines: &'h [Header<'h>],
    kinds: &'h [Field],
    /// Whether a `connection` field names others.
    names_fields: bool,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A line that ends in a line feed alone.
    #[error("line feed without carriage return")]
    BareLineFeed,
    /// No `method target version` line, a method that is no token, or too many empty lines before it.
    #[error("malformed first line")]
    FirstLine,
    /// A target in none of the forms of RFC 9112 §3.2, or one that the method may not have.
    #[error("malformed request target")]
    Target,
    /// A version other than 1.0 and 1.1.
    #[error("unsupported version")]
    Version,
    /// A field's name that is no token, a blank before the colon, or a folded line.
    #[error("malformed field name")]
    FieldName,
    /// A control character in a field's value.
    #[error("malformed field value")]
    FieldValue,
    /// A folded line in a field that frames, routes or names others.
    #[error("folded line")]
    FoldedLine,
    /// Bytes of the head past the limit.
    #[error("head too large")]
    TooLarge,
    /// A first line past the limit.
    #[error("request target too long")]
    TargetTooLong,
    /// Fields past the limit.
    #[error("too many fields")]
    TooManyFields,
    /// `host` missing, twice, or neither empty nor a host with an optional port.
    #[error("missing, repeated or malformed host")]
    Host,
    /// `content-length` that is not one number.
    #[error("malformed content-length")]
    ContentLength,
    /// `transfer-encoding` that is not exactly `chunked`, or in HTTP/1.0.
    #[error("unsupported transfer-encoding")]
    TransferEncoding,
    /// Both `content-length` and `transfer-encoding`.
    #[error("both content-length and transfer-encoding")]
    TwoFramings,
    /// `connection` with too many options.
    #[error("too many connection options")]
    ConnectionOptions,
    /// `CONNECT`.
    #[error("CONNECT is not served")]
    Connect,
}

/// Reads the head of a request from its first byte; `None` while more bytes are needed.
pub fn parse_request<'h>(
    bytes: &'h [u8],
    storage: &'h mut Storage<'h>,
    limits: &Limits,
) -> Result<Option<RequestHead<'h>>, HeadError> {
    // RFC 9112 §2.2: empty lines before a request are no part of it.
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
    let target = Target::parse(method, target.as_bytes())?;

    let mut facts = Facts::default();
    let lines: &'h [Header<'h>] = parsed.headers;
    let kinds = facts.gather(lines, &mut storage.kinds)?;
    let framing = facts.framing(version)?.unwrap_or(Framing::Length(0));
    let authority = match (target.authority, facts.host) {
        (_, Host::Several) => return Err(HeadError::Host),
        // A target without an authority has an empty `host` (RFC 9112 §3.2).
        (_, Host::One(host)) if !host.is_empty() && !is_host(host) => return Err(HeadError::Host),
        (_, Host::None) if version == Version::Http11 => return Err(HeadError::Host),
        (Some(authority), _) => authority,
        (None, Host::One(host)) => host,
        (None, Host::None) => b"",
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

/// Reads the head of a response to a request (`is_head`: to a `HEAD` request); `None` while more bytes are needed.
pub fn parse_response<'h>(
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
    let mut facts = Facts::default();
    let lines: &'h [Header<'h>] = parsed.headers;
    let kinds = facts.gather(lines, &mut storage.kinds)?;
    let head = bytes.get(..length).unwrap_or_default();
    let is_folded = head.windows(2).any(|bytes| matches!(bytes, [b'\n', b' ' | b'\t']));
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

/// A line of a head's fields as it came.
pub(super) struct FieldLine<'h> {
    /// What is before the colon; for a line that goes on with the one before, the name of that one.
    pub(super) name: &'h [u8],
    /// From the colon on.
    pub(super) value: &'h [u8],
    /// Whether it goes on with the line before.
    pub(super) is_folded: bool,
}

/// The lines after the first, up to the empty one. For what is rare: heads that are folded or refused.
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

/// Reads a trailer section, up to and with its empty line, and shows each of its fields; `None` while more bytes are
/// needed.
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

/// As [`whole`], of a head in which a line feed alone is refused.
fn complete(status: Status<usize>, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
    let length = if let Status::Complete(length) = status { length } else { bytes.len() };
    let head = bytes.get(..length).unwrap_or_default();
    if head.first() == Some(&b'\n') || has_bare_line_feed(head) {
        return Err(HeadError::BareLineFeed);
    }
    whole(status, bytes, limits)
}

/// The length of a head that is all there; the limits hold for one that is not, too.
fn whole(status: Status<usize>, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
    let length = if let Status::Complete(length) = status { length } else { bytes.len() };
    let head = bytes.get(..length).unwrap_or_default();
    if length > limits.head_bytes || (status.is_partial() && length == limits.head_bytes) {
        return Err(if head.contains(&b'\n') { HeadError::TooLarge } else { HeadError::TargetTooLong });
    }
    Ok(status.is_complete().then_some(length))
}

/// Trailers have no first line to be too long.
fn in_trailers(error: HeadError) -> HeadError {
    if error == HeadError::TargetTooLong { HeadError::TooLarge } else { error }
}

/// Whether a line feed follows anything but a carriage return. The first byte follows what is not known, and passes.
pub(super) fn has_bare_line_feed(bytes: &[u8]) -> bool {
    let mut before = b'\r';
    bytes.iter().any(|byte| {
        let is_bare = *byte == b'\n' && before != b'\r';
        before = *byte;
        is_bare
    })
}

/// What the fields say of the message's framing and of the connection.
#[derive(Default)]
struct Facts<'h> {
    host: Host<'h>,
    content_length: Option<u64>,
    transfer_encodings: usize,
    is_chunked: bool,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrade: bool,
    expects_continue: bool,
    names_fields: bool,
    connection_options: usize,
}

#[derive(Clone, Copy, Default)]
enum Host<'h> {
    #[default]
    None,
    One(&'h [u8]),
    Several,
}

impl<'h> Facts<'h> {
    fn gather(
        &mut self,
        lines: &'h [Header<'h>],
        kinds: &'h mut [Field; MAX_FIELDS],
    ) -> Result<&'h [Field], HeadError> {
        for (line, kind) in lines.iter().zip(kinds.iter_mut()) {
            *kind = classify(line.name.as_bytes());
            match *kind {
                Field::Host => {
                    self.host =
                        if let Host::None = self.host { Host::One(line.value) } else { Host::Several };
                }
                Field::ContentLength => self.content_length(line.value)?,
                Field::TransferEncoding => {
                    self.transfer_encodings += 1;
                    self.is_chunked = line.value.eq_ignore_ascii_case(b"chunked");
                }
                Field::Connection => self.connection(line.value)?,
                Field::Upgrade => self.upgrade |= upgrade_protocols(line.value).next().is_some(),
                Field::Expect => self.expects_continue |= line.value.eq_ignore_ascii_case(b"100-continue"),
                _ => {}
            }
        }
        let kinds: &'h [Field; MAX_FIELDS] = kinds;
        kinds.get(..lines.len()).ok_or(HeadError::TooManyFields)
    }

    /// Digits only; a list, or several fields, only if all say the same (RFC 9112 §6.3).
    fn content_length(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for item in value.split(|byte| *byte == b',') {
            let item = if value.len() == item.len() { item } else { item.trim_ascii() };
            if item.is_empty() || item.len() > 19 || !item.iter().all(u8::is_ascii_digit) {
                return Err(HeadError::ContentLength);
            }
            // At most 19 digits: no overflow.
            let length = item.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
            if self.content_length.is_some_and(|before| before != length) {
                return Err(HeadError::ContentLength);
            }
            self.content_length = Some(length);
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for option in tokens(value) {
            self.connection_options += 1;
            if self.connection_options > MAX_CONNECTION_OPTIONS {
                return Err(HeadError::ConnectionOptions);
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            } else if !is_protected(option) {
                self.names_fields = true;
            }
        }
        Ok(())
    }

    fn framing(&self, version: Version) -> Result<Option<Framing>, HeadError> {
        match (self.transfer_encodings, self.content_length) {
            (0, length) => Ok(length.map(Framing::Length)),
            (_, Some(_)) => Err(HeadError::TwoFramings),
            (1, None) if self.is_chunked && version == Version::Http11 => Ok(Some(Framing::Chunked)),
            _ => Err(HeadError::TransferEncoding),
        }
    }
}

/// A request target, taken apart (RFC 9112 §3.2).
struct Target<'h> {
    authority: Option<&'h [u8]>,
    path: &'h [u8],
}

impl<'h> Target<'h> {
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
            // A query right after the authority has no path to be sent on with.
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
    /// Whether its body may be silent for long: [`is_stream`].
    pub(super) fn is_stream(&self) -> bool {
        let is_type = |name: &[u8]| name.eq_ignore_ascii_case(b"content-type");
        self.framing != Framing::Length(0)
            && self.fields.iter().any(|(_, name, value)| is_type(name) && is_stream(value))
    }
}

impl<'h> HeadFields<'h> {
    /// Each field with what it is.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Field, &'h [u8], &'h [u8])> + use<'h> {
        let fields = self.lines.iter().zip(self.kinds);
        fields.map(|(line, kind)| (*kind, line.name.as_bytes(), line.value))
    }

    /// The values of all fields of this kind.
    pub(super) fn values(&self, kind: Field) -> impl Iterator<Item = &'h [u8]> + use<'h> {
        self.iter().filter(move |(field, ..)| *field == kind).map(|(_, _, value)| value)
    }

    /// Whether a `connection` field names this one, so that it ends here (RFC 9110 §7.6.1).
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        self.names_fields && !is_protected(name) && {
            let name = std::str::from_utf8(name).unwrap_or_default();
            self.values(Field::Connection).any(|options| has_token(options, name))
        }
    }
}

impl HeadError {
    /// The answer to a request whose head is refused.
    pub fn reply(self) -> LocalReply {
        match self {
            Self::Version => local_reply::version_not_supported(),
            Self::Connect => local_reply::method_not_allowed(),
            Self::TargetTooLong => local_reply::uri_too_long(),
            Self::TooLarge => local_reply::header_fields_too_large("http1.headers_too_large"),
            Self::TooManyFields => local_reply::header_fields_too_large("http1.too_many_headers"),
            Self::BareLineFeed => local_reply::bad_request("http1.bare_line_feed"),
            Self::FirstLine => local_reply::bad_request("http1.codec_error"),
            Self::Target => local_reply::bad_request("http1.invalid_url"),
            Self::FieldName | Self::FieldValue => local_reply::bad_request("http1.invalid_header"),
            Self::FoldedLine => local_reply::bad_request("http1.folded_line"),
            Self::Host => local_reply::bad_request("http1.invalid_host"),
            Self::ContentLength => local_reply::bad_request("http1.invalid_content_length"),
            Self::TransferEncoding => local_reply::bad_request("http1.invalid_transfer_encoding"),
            Self::TwoFramings => local_reply::bad_request("http1.content_length_and_chunked_not_allowed"),
            Self::ConnectionOptions => local_reply::bad_request("http1.too_many_connection_options"),
        }
    }
}

/// The protocols of an `upgrade` field that may be switched to. HTTP/2 and TLS are not: the request is served as it
/// is (RFC 9110 §7.8 lets a server ignore the field).
pub(super) fn upgrade_protocols(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    tokens(value).filter(|protocol| {
        let is_tls = protocol.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"tls"));
        let is_http = protocol.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"http"));
        !is_tls && !is_http && !protocol.eq_ignore_ascii_case(b"h2c") && !protocol.eq_ignore_ascii_case(b"h2")
    })
}

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

/// Whether the first line ends in a well-formed version, which then is one that is not served.
fn names_other_version(text: &[u8]) -> bool {
    let line = text.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let version = line.split(|byte| *byte == b' ').nth(2).unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}
