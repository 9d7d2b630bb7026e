//! The same random requests straight to the app and through two sidecars: app and client get the same bytes, except for the
//! headers that the user docs list as the sidecars' own.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use tidegate_tests::app::{App, Conversation};
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::client::{Client, Connection};
use tidegate_tests::http1::{Message, MessageKind};
use tidegate_tests::mesh::Options;

const REQUESTS: u64 = 2000;
const CONVERSATIONS: u64 = 100;
/// Connections on which requests follow each other, in pieces.
const SEQUENCES: u64 = 150;
/// What sidecars add, and what belongs to one connection.
const OWN: [&str; 7] = [
    "connection",
    "keep-alive",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-client-cert",
    "x-request-id",
];

/// Numbers that look random and are the same in each run (xorshift64*).
struct Random(u64);

impl Random {
    fn of_case(number: u64) -> Self {
        Self(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    /// Up to `most` of these, joined.
    fn some_of(&mut self, choices: &[&str], most: usize) -> String {
        (0..self.below(most + 1)).map(|_| self.one_of(choices)).collect()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }

    /// Header lines of names and values that RFC 9110 permits.
    fn fields(&mut self) -> String {
        let names = ["X-a", "x-A", "x-long-name", "Accept", "cookie", "User-Agent", "x!#$%&'*+.^`|~9", "Via"];
        let values = ["a", "B", "\"q, r\"", " ", "\t", "=", ";", ",", "é", "\\", "%00", "{}", "0"];
        (0..self.below(8))
            .map(|_| format!("{}: {}\r\n", self.one_of(&names), self.some_of(&values, 20)))
            .collect()
    }

    /// A body with the lines that delimit it.
    fn body(&mut self) -> (String, Vec<u8>) {
        let sizes = [0, 1, 15, 16, 1460, 4096, 16 * 1024, 70_000];
        let size = sizes[self.below(sizes.len())];
        if self.below(2) == 0 {
            let body = self.bytes(size);
            return (format!("Content-Length: {}\r\n", body.len()), body);
        }
        let mut body = Vec::new();
        for _ in 0..self.below(5) {
            let chunk = self.bytes(size);
            if !chunk.is_empty() {
                write!(body, "{:x}\r\n", chunk.len()).unwrap();
                body.extend(chunk);
                body.extend(b"\r\n");
            }
        }
        let trailers = self.one_of(&["", "x-sum: 1\r\n", "x-sum: 1\r\nX-more: two words\r\n"]);
        write!(body, "0\r\n{trailers}\r\n").unwrap();
        ("Transfer-Encoding: chunked\r\n".to_owned(), body)
    }

    fn request(&mut self, number: u64) -> (MessageKind, Vec<u8>) {
        let method =
            self.one_of(&["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PURGE", "x-Y_z"]);
        let parts = [
            "/", "a", "B", "..", ".", "%2F", "%2f", "%C3%A9", "é", ";", "=", ":", "@", "|", "\"", "<", "[",
            "~",
        ];
        let query = ["?", "a=b", "&", "%", "+", "/", "é", "'", "{", "^"];
        let target = format!("/{}{}", self.some_of(&parts, 12), self.some_of(&query, 8));
        let host = self.one_of(&["a", "called", "called.httpbin:80", "EXAMPLE.com", "[::1]:8080", ""]);
        let fields = self.fields();
        let (framing, body) = if matches!(method, "GET" | "HEAD") { Default::default() } else { self.body() };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nX-Case: {number}\r\n{fields}{framing}\r\n"
        );
        let kind = if method == "HEAD" { MessageKind::ResponseToHead } else { MessageKind::Response };
        (kind, [head.into_bytes(), body].concat())
    }

    fn response(&mut self, is_head: bool) -> Vec<u8> {
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
        let (framing, body) = if has_body { self.body() } else { Default::default() };
        let head = format!("HTTP/1.1 {status}\r\n{fields}{framing}\r\n");
        [head.into_bytes(), body].concat()
    }
}

/// What the app got.
type Received = Arc<Mutex<Vec<Message>>>;

/// An app that answers a request by its number.
fn app(address: SocketAddr) -> (App, Received) {
    let received = Received::default();
    let all = received.clone();
    let answer = move |conversation: &mut Conversation| {
        while let Some(request) = conversation.request()? {
            let number = request.value("x-case").unwrap().parse::<u64>().unwrap();
            let is_head = request.method() == "HEAD";
            all.lock().unwrap().push(request);
            conversation.write(&Random::of_case(number + REQUESTS).response(is_head))?;
        }
        Ok(())
    };
    (App::unrecorded(address, answer), received)
}

/// What must be the same on both ways.
#[derive(Debug, PartialEq)]
struct Seen {
    first_line: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
}

impl Seen {
    fn of(message: Message) -> Self {
        let is_own = |name: &str| OWN.iter().any(|own| name.eq_ignore_ascii_case(own));
        let Message { first_line, fields, body, trailers, .. } = message;
        let fields = fields.into_iter().filter(|(name, _)| !is_own(name)).collect();
        Self { first_line, fields, body, trailers }
    }
}

/// What the app got since the last time.
fn taken(received: &Received) -> Vec<Seen> {
    std::mem::take(&mut *received.lock().unwrap()).into_iter().map(Seen::of).collect()
}

/// A client's connection, which is made again when it was closed.
struct Way {
    client: Client,
    connection: Option<Connection>,
}

impl Way {
    fn to(address: SocketAddr) -> Self {
        Self { client: Client::to(address), connection: None }
    }

    fn exchange(&mut self, kind: MessageKind, request: &[u8]) -> Message {
        let mut connection = self.connection.take().unwrap_or_else(|| self.client.connect().unwrap());
        connection.write(request);
        let response = connection.response(kind).unwrap_or_else(|end| {
            panic!("{end:?}: {}", String::from_utf8_lossy(&request[..request.len().min(2000)]))
        });
        if !response.closes() {
            self.connection = Some(connection);
        }
        response
    }
}

#[test]
fn requests_and_responses_are_the_same_through_two_sidecars_as_without() {
    let mesh = CallerMesh::start(Options::default());
    let (_app, received) = app(mesh.mesh.app_address());
    let mut straight = Way::to(mesh.mesh.app_address());
    let mut meshed = Way::to(mesh.mesh.way_out());
    for number in 0..REQUESTS {
        let (kind, request) = Random::of_case(number).request(number);
        let [expected, actual] = [&mut straight, &mut meshed].map(|way| {
            let response = way.exchange(kind, &request);
            (taken(&received), Seen::of(response))
        });
        assert_eq!(expected, actual, "request {number}: {}", String::from_utf8_lossy(&request));
    }
}

/// Sends bytes in pieces that end anywhere, and reads as many answers as there are requests.
fn converse_in_pieces(client: &Client, bytes: &[u8], ends: &[usize], kinds: &[MessageKind]) -> Vec<Seen> {
    let mut connection = client.connect().unwrap();
    let mut from = 0;
    for end in ends {
        connection.write(&bytes[from..*end]);
        from = *end;
    }
    connection.write(&bytes[from..]);
    let answers = kinds.iter().map(|kind| connection.response(*kind).unwrap());
    answers.map(Seen::of).collect()
}

#[test]
fn requests_in_a_row_whose_bytes_come_in_pieces_are_the_same_through_two_sidecars_as_without() {
    let mesh = CallerMesh::start(Options::default());
    let (_app, received) = app(mesh.mesh.app_address());
    let ways = [mesh.mesh.app_address(), mesh.mesh.way_out()].map(Client::to);
    for sequence in 0..SEQUENCES {
        let mut random = Random::of_case(2 * REQUESTS + sequence);
        let count = 1 + random.below(5) as u64;
        let requests = (0..count).map(|at| Random::of_case(5 * sequence + at).request(5 * sequence + at));
        let (kinds, requests): (Vec<_>, Vec<_>) = requests.unzip();
        let bytes = requests.concat();
        let mut ends: Vec<_> = (0..random.below(8)).map(|_| random.below(bytes.len())).collect();
        ends.sort_unstable();
        let [expected, actual] = [&ways[0], &ways[1]].map(|client| {
            let answers = converse_in_pieces(client, &bytes, &ends, &kinds);
            (taken(&received), answers)
        });
        assert_eq!(
            expected,
            actual,
            "sequence {sequence}: {}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(2000)])
        );
    }
}

/// Sends all bytes and reads all, each at its own pace.
fn converse(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    writing.join().unwrap();
    answer
}

#[test]
fn opaque_bytes_are_the_same_through_two_sidecars_as_without() {
    let options = Options { port_name: "tcp", ..Options::default() };
    let mesh = CallerMesh::calling("tcp", options);
    let app = App::tcp_echo(mesh.mesh.app_address());
    for number in 0..CONVERSATIONS {
        let bytes = Random::of_case(number).bytes(200_000);
        assert_eq!(converse(app.address(), &bytes), bytes, "conversation {number}");
        assert_eq!(converse(mesh.mesh.way_out(), &bytes), bytes, "conversation {number}");
    }
}
