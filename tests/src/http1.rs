//! As much of HTTP/1 as tests need to read; heads are kept byte for byte.

/// A message: its head as received, its fields, its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The first line, without its end.
    pub first_line: String,
    /// Name as received, value without surrounding whitespace.
    pub fields: Vec<(String, String)>,
    /// The body, chunks joined.
    pub body: Vec<u8>,
    /// Everything as received, framing and trailers included.
    pub raw: Vec<u8>,
    /// Fields of the trailer section.
    pub trailers: Vec<(String, String)>,
}

/// The content of a buffer.
#[derive(Debug)]
pub enum Parsed {
    /// A message, and its length in bytes.
    Whole(Message, usize),
    /// The beginning of a message.
    Partial,
    /// Not HTTP.
    Garbage,
}

/// The kind of message, which determines its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// A request.
    Request,
    /// The answer to one.
    Response,
    /// The answer to HEAD.
    ResponseToHead,
}

impl Message {
    /// Values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        fields.map(|(_, value)| value.as_str()).collect()
    }

    /// The first value of a field.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).first().copied()
    }

    /// The status of a response; 0 if there is none.
    pub fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    /// Method of a request.
    pub fn method(&self) -> &str {
        self.first_line.split(' ').next().unwrap_or_default()
    }

    /// Target of a request.
    pub fn target(&self) -> &str {
        self.first_line.split(' ').nth(1).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the connection ends after it.
    pub fn closes(&self) -> bool {
        let tokens = self.values("connection").join(",").to_ascii_lowercase();
        let has = |token| tokens.split(',').any(|given| given.trim() == token);
        has("close") || (self.first_line.contains("HTTP/1.0") && !has("keep-alive"))
    }

    /// Whether the body of a response lasts until the connection ends.
    pub(crate) fn is_delimited_by_close(&self, kind: MessageKind) -> bool {
        kind == MessageKind::Response
            && !has_no_body(self.status())
            && self.value("content-length").is_none()
            && self.value("transfer-encoding").is_none()
    }
}

/// Parses one message from the beginning of a buffer. The body of a response that lasts until the connection ends is
/// left out.
pub fn parse(bytes: &[u8], kind: MessageKind) -> Parsed {
    let Some(end) = find(bytes, b"\r\n\r\n").map(|at| at + 4) else { return Parsed::Partial };
    let head = String::from_utf8_lossy(&bytes[..end - 4]).into_owned();
    let mut lines = head.split("\r\n");
    let first_line = lines.next().unwrap_or_default().to_owned();
    if !first_line.contains("HTTP/1.") {
        return Parsed::Garbage;
    }
    let mut message = Message { first_line, fields: lines.map(field).collect(), ..Message::default() };
    let framed = match (kind, message.value("transfer-encoding"), message.value("content-length")) {
        (MessageKind::ResponseToHead, ..) => Some(0),
        (MessageKind::Response, ..) if has_no_body(message.status()) => Some(0),
        (_, Some(_), _) => chunked(&bytes[end..], &mut message),
        (_, None, Some(length)) => match length.parse() {
            Ok(length) => bytes.get(end..end + length).map(|body| {
                message.body = body.to_vec();
                length
            }),
            Err(_) => return Parsed::Garbage,
        },
        (_, None, None) => Some(0),
    };
    let Some(length) = framed else { return Parsed::Partial };
    message.raw = bytes[..end + length].to_vec();
    Parsed::Whole(message, end + length)
}

/// Parses every message of a buffer; a rest that cannot be parsed is dropped.
pub fn parse_all(mut bytes: &[u8], kind: MessageKind) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Parsed::Whole(message, length) = parse(bytes, kind) {
        messages.push(message);
        bytes = &bytes[length..];
    }
    messages
}

/// Where a sequence of bytes begins.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn has_no_body(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
}

/// Length of a chunked body as received, if complete.
fn chunked(bytes: &[u8], message: &mut Message) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = &bytes[at..at + find(&bytes[at..], b"\r\n")?];
        let size = String::from_utf8_lossy(line.split(|byte| *byte == b';').next()?).trim().to_owned();
        let size = usize::from_str_radix(&size, 16).ok()?;
        at += line.len() + 2;
        if size == 0 {
            break;
        }
        message.body.extend_from_slice(bytes.get(at..at + size)?);
        bytes.get(at + size..at + size + 2)?;
        at += size + 2;
    }
    loop {
        let length = find(&bytes[at..], b"\r\n")?;
        let line = String::from_utf8_lossy(&bytes[at..at + length]).into_owned();
        at += length + 2;
        if line.is_empty() {
            return Some(at);
        }
        message.trailers.push(field(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_one_after_the_other() {
        let bytes =
            b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nt: 1\r\n\r\n\
            GET /b HTTP/1.1\r\nHost:  x \r\n\r\nPUT";
        let messages = parse_all(bytes, MessageKind::Request);
        let seen: Vec<_> = messages.iter().map(|m| (m.method(), m.target(), m.text())).collect();
        assert_eq!(seen, [("POST", "/a", "abc".to_owned()), ("GET", "/b", String::new())]);
        assert_eq!(messages[0].trailers, [("t".to_owned(), "1".to_owned())]);
        assert_eq!(messages[1].value("host"), Some("x"));
    }

    #[test]
    fn a_body_that_is_not_all_there_is_waited_for() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab";
        assert!(matches!(parse(bytes, MessageKind::Response), Parsed::Partial));
        assert!(matches!(parse(bytes, MessageKind::ResponseToHead), Parsed::Whole(_, 38)));
    }
}
