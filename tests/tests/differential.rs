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

use self::random::Random;

#[path = "differential/http2.rs"]
mod http2;
#[path = "differential/random.rs"]
mod random;

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
            conversation.write(&Random::of_case(number + REQUESTS).answer(is_head).http1())?;
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
        let Message { first_line, fields, body, trailers, .. } = message;
        let fields = fields.into_iter().filter(|(name, _)| !is_own(name)).collect();
        Self { first_line, fields, body, trailers }
    }
}

fn is_own(name: &str) -> bool {
    OWN.iter().any(|own| name.eq_ignore_ascii_case(own))
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
        let request = Random::of_case(number).request(number);
        let (kind, request) = (request.answered_by(), request.http1());
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
        let numbers = (0..count).map(|at| 5 * sequence + at);
        let requests = numbers.map(|number| Random::of_case(number).request(number));
        let (kinds, requests): (Vec<_>, Vec<_>) =
            requests.map(|request| (request.answered_by(), request.http1())).unzip();
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
