//! Random requests and answers, the same in each run, whichever version of HTTP carries them.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version};
use tidegate_tests::http1::MessageKind;
use tidegate_tests::http2::H2Body;

/// Numbers that look random and are the same in each run (xorshift64*).
pub(crate) struct Random(u64);

/// A request. Each has its number in a field, by which the app chooses its answer.
#[derive(Clone, Debug)]
pub(crate) struct RandomRequest {
    method: &'static str,
    target: String,
    host: &'static str,
    fields: RandomFields,
    body: Option<RandomBody>,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub(crate) struct RandomAnswer {
    status: &'static str,
    fields: RandomFields,
    body: Option<RandomBody>,
}

/// Fields of names and values that RFC 9110 permits, in any order and number.
#[derive(Clone, Debug)]
struct RandomFields(Vec<(&'static str, String)>);

/// A body in the pieces that its sender writes.
#[derive(Clone, Debug)]
struct RandomBody {
    pieces: Vec<Vec<u8>>,
    /// Whether the head has `content-length`; if so, no trailers follow.
    has_length: bool,
    trailers: &'static [(&'static str, &'static str)],
}

impl Random {
    pub(crate) fn of_case(number: u64) -> Self {
        Self(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Up to `most` of these, joined.
    fn some_of(&mut self, choices: &[&str], most: usize) -> String {
        (0..self.below(most + 1)).map(|_| self.one_of(choices)).collect()
    }

    fn fields(&mut self) -> RandomFields {
        let names = ["X-a", "x-A", "x-long-name", "Accept", "cookie", "User-Agent", "x!#$%&'*+.^`|~9", "Via"];
        let values = ["a", "B", "\"q, r\"", " ", "\t", "=", ";", ",", "é", "\\", "%00", "{}", "0"];
        let count = self.below(8);
        RandomFields((0..count).map(|_| (self.one_of(&names), self.some_of(&values, 20))).collect())
    }

    fn body(&mut self) -> RandomBody {
        let size = self.one_of(&[0, 1, 15, 16, 1460, 4096, 16 * 1024, 70_000]);
        if self.below(2) == 0 {
            return RandomBody { pieces: vec![self.bytes(size)], has_length: true, trailers: &[] };
        }
        let count = self.below(5);
        let mut pieces: Vec<_> = (0..count).map(|_| self.bytes(size)).collect();
        // In HTTP/1, an empty chunk is the end.
        pieces.retain(|piece| !piece.is_empty());
        let trailers: [&[_]; 3] = [&[], &[("x-sum", "1")], &[("x-sum", "1"), ("X-more", "two words")]];
        RandomBody { pieces, has_length: false, trailers: self.one_of(&trailers) }
    }

    pub(crate) fn request(&mut self, number: u64) -> RandomRequest {
        let method =
            self.one_of(&["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PURGE", "x-Y_z"]);
        let parts = [
            "/", "a", "B", "..", ".", "%2F", "%2f", "%C3%A9", "é", ";", "=", ":", "@", "|", "\"", "<", "[",
            "~",
        ];
        let query = ["?", "a=b", "&", "%", "+", "/", "é", "'", "{", "^"];
        let target = format!("/{}{}", self.some_of(&parts, 12), self.some_of(&query, 8));
        let host = self.one_of(&["a", "called", "called.httpbin:80", "EXAMPLE.com", "[::1]:8080", ""]);
        let mut fields = self.fields();
        fields.0.insert(0, ("X-Case", number.to_string()));
        let body = (!matches!(method, "GET" | "HEAD")).then(|| self.body());
        RandomRequest { method, target, host, fields, body }
    }

    pub(crate) fn answer(&mut self, is_head: bool) -> RandomAnswer {
        let status = self.one_of(&[
            "200 OK",
            "201 Created",
            "204 No Content",
            "206 ",
            "304 Not Modified",
            "302 Found",
            "404 Not here",
            "418 I'm a teapot",
            "500 Oops",
            "599 x",
        ]);
        let fields = self.fields();
        let has_body = !is_head && !status.starts_with("204") && !status.starts_with("304");
        RandomAnswer { status, fields, body: has_body.then(|| self.body()) }
    }
}

impl RandomRequest {
    /// How the bytes of its answer are read.
    pub(crate) fn answered_by(&self) -> MessageKind {
        if self.method == "HEAD" { MessageKind::ResponseToHead } else { MessageKind::Response }
    }

    pub(crate) fn http1(&self) -> Vec<u8> {
        let Self { method, target, host, .. } = self;
        message(&format!("{method} {target} HTTP/1.1\r\nHost: {host}"), &self.fields, self.body.as_ref())
    }

    pub(crate) fn http2(&self) -> (Request<()>, Option<H2Body>) {
        let mut request = Request::new(());
        *request.method_mut() = self.method.parse().unwrap();
        *request.headers_mut() = self.fields.map(self.body.as_ref());
        if self.host.is_empty() {
            // A request for no host; h2 sends it if it says to come from HTTP/1.
            *request.version_mut() = Version::HTTP_11;
            *request.uri_mut() = self.target.parse().unwrap();
            request.headers_mut().insert(http::header::HOST, HeaderValue::from_static(""));
        } else {
            let uri = Uri::builder().scheme("http").authority(self.host).path_and_query(&*self.target);
            *request.uri_mut() = uri.build().unwrap();
            *request.version_mut() = Version::HTTP_2;
        }
        (request, self.body.as_ref().map(RandomBody::http2))
    }
}

impl RandomAnswer {
    pub(crate) fn http1(&self) -> Vec<u8> {
        message(&format!("HTTP/1.1 {}", self.status), &self.fields, self.body.as_ref())
    }

    pub(crate) fn http2(&self) -> (Response<()>, Option<H2Body>) {
        let mut response = Response::new(());
        *response.status_mut() = self.status[..3].parse().unwrap();
        *response.headers_mut() = self.fields.map(self.body.as_ref());
        (response, self.body.as_ref().map(RandomBody::http2))
    }
}

impl RandomFields {
    /// As HTTP/2 has them, with the length of a body that says its length: names in lower case, values without whitespace around
    /// them.
    fn map(&self, body: Option<&RandomBody>) -> HeaderMap {
        let mut map = http2_fields(self.0.iter().map(|(name, value)| (*name, &**value)));
        if let Some(body) = body.filter(|body| body.has_length) {
            map.insert(http::header::CONTENT_LENGTH, body.pieces.concat().len().into());
        }
        map
    }
}

impl RandomBody {
    fn http2(&self) -> H2Body {
        let mut pieces: Vec<_> = self.pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
        // Many clients end a body of unknown length with an empty piece.
        pieces.extend((!self.has_length).then(Bytes::new));
        H2Body { pieces, trailers: http2_fields(self.trailers.iter().copied()) }
    }

    /// The line that delimits it, and its bytes with those that delimit them.
    fn http1(&self) -> (String, Vec<u8>) {
        if self.has_length {
            let body = self.pieces.concat();
            return (format!("Content-Length: {}\r\n", body.len()), body);
        }
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            bytes.extend(piece);
            bytes.extend(b"\r\n");
        }
        let trailers: String =
            self.trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        bytes.extend(format!("0\r\n{trailers}\r\n").into_bytes());
        ("Transfer-Encoding: chunked\r\n".to_owned(), bytes)
    }
}

fn http2_fields<'f>(fields: impl Iterator<Item = (&'f str, &'f str)>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().unwrap();
        map.append(name, HeaderValue::from_bytes(value.trim_matches([' ', '\t']).as_bytes()).unwrap());
    }
    map
}

/// The bytes of HTTP/1.
fn message(first: &str, fields: &RandomFields, body: Option<&RandomBody>) -> Vec<u8> {
    let fields: String = fields.0.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let (framing, body) = body.map(RandomBody::http1).unwrap_or_default();
    [format!("{first}\r\n{fields}{framing}\r\n").into_bytes(), body].concat()
}
