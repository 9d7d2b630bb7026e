//! Parses the same bytes with our parser and with hyper's: ours must be as strict, or stricter for a reason that is
//! listed here.

use proptest::prelude::*;

use super::against_hyper::{compare, hypers};
use super::smuggling::{PASSED, REFUSED};
use super::world::World;
use crate::connection_info::ServedConnection;
use crate::http::buffer::{Buffer, Buffers};
use crate::http::h1::body::{BodyError, Decoder};
use crate::http::h1::forward;
use crate::http::h1::head::{self, Framing, HeadError, Storage};
use crate::http::h1::transcript::{self, Transcript, TranscriptError};
use crate::limits::Limits;

/// What the app receives for these bytes, after every request was answered.
fn passed_on(input: &[u8], connection: &ServedConnection) -> Vec<u8> {
    let (buffers, limits) = (Buffers::default(), Limits::default());
    let (mut rest, mut app) = (Buffer::default(), Vec::new());
    rest.push(input);
    loop {
        let mut storage = Storage::new();
        let Ok(Some(head)) = head::parse_request(rest.bytes(), &mut storage, &limits) else { return app };
        let mut out = Buffer::default();
        forward::write_request(&head, (connection, None), (None, None), &mut out);
        let (mut decoder, is_chunked) = (Decoder::new(head.framing), head.framing == Framing::Chunked);
        let (length, keep_alive) = (head.length, head.keep_alive);
        rest.consume(length);
        while !decoder.is_done() {
            let before = rest.len();
            let moved = decoder.transfer(&mut rest, &mut out, is_chunked, &buffers, &limits);
            if moved.is_err() || rest.len() == before {
                return app;
            }
        }
        app.extend_from_slice(out.bytes());
        if !keep_alive {
            return app;
        }
    }
}

#[tokio::test]
async fn the_tables_differ_from_hyper_only_as_listed() {
    let inputs = REFUSED.iter().map(|(_, input, _)| input).chain(PASSED.iter().map(|(_, input, _)| input));
    for input in inputs {
        compare(input).await.unwrap();
    }
}

#[tokio::test]
async fn every_listed_difference_is_one() {
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n", "a,".repeat(40));
    let blank = format!("{}GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n".repeat(9));
    let extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(300));
    let chunked =
        |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let field = |field: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n0\r\n\r\n");
    let examples = [
        (TranscriptError::Head(HeadError::BareLineFeed), "GET / HTTP/1.1\nHost: a\n\n".to_owned()),
        (TranscriptError::Head(HeadError::Host), "GET / HTTP/1.1\r\n\r\n".to_owned()),
        (
            TranscriptError::Head(HeadError::TwoFramings),
            field("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        ),
        (TranscriptError::Head(HeadError::TransferEncoding), field("Transfer-Encoding: gzip, chunked")),
        (TranscriptError::Head(HeadError::Target), "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        (
            TranscriptError::Head(HeadError::Connect),
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".to_owned(),
        ),
        (TranscriptError::Head(HeadError::FirstLine), blank),
        (TranscriptError::Head(HeadError::ConnectionOptions), many),
        (
            TranscriptError::Head(HeadError::ContentLength),
            field("Transfer-Encoding: chunked\r\nContent-Length: x"),
        ),
        (TranscriptError::Body(BodyError::Chunk), chunked("00000000000000001\r\nx\r\n0\r\n\r\n")),
        (TranscriptError::Body(BodyError::Extensions), chunked(&extension)),
    ];
    for (expected, input) in examples {
        let Transcript { requests, refusal } = transcript::read(input.as_bytes(), &Limits::default());
        assert_eq!((requests.len(), refusal), (0, Some(expected)), "{input}");
        assert_eq!(
            hypers(input.as_bytes()).await.len(),
            1,
            "hyper is as strict: take it off the list: {input}"
        );
    }
    let folded = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx";
    let ours = transcript::read(folded, &Limits::default());
    assert_eq!((ours.requests.len(), hypers(folded).await.len()), (1, 0));
}

/// Fragments that a parser may get wrong.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0",
    b"5",
    b"+",
    b"-",
    b"_",
    b"#",
    b"?",
    b"/",
    b"*",
    b"\xff",
    b"\xc3\xa4",
    b"\x7f",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Host: b\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"http://b",
    b"Upgrade: x\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n\r\n",
    b"A: b\r\n",
    b"@",
    b"[",
    b"]",
    b"%",
];

#[derive(Clone, Debug)]
enum Change {
    Insert(usize, usize),
    Replace(usize, usize),
    Remove(usize, usize),
    Flip(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let (at, piece) = (0..512_usize, 0..PIECES.len());
    prop_oneof![
        4 => (at.clone(), piece.clone()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        2 => (at.clone(), piece).prop_map(|(at, piece)| Change::Replace(at, piece)),
        2 => (at.clone(), 1..8_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (at, any::<u8>()).prop_map(|(at, byte)| Change::Flip(at, byte)),
    ]
}

fn apply(input: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for change in changes {
        let place = |at: usize| at % (bytes.len() + 1);
        match *change {
            Change::Insert(at, piece) => {
                let at = place(at);
                bytes.splice(at..at, PIECES[piece].iter().copied());
            }
            Change::Replace(at, piece) => {
                let at = place(at);
                let end = (at + PIECES[piece].len()).min(bytes.len());
                bytes.splice(at..end, PIECES[piece].iter().copied());
            }
            Change::Remove(at, count) => {
                let at = place(at);
                let end = (at + count).min(bytes.len());
                bytes.drain(at..end);
            }
            Change::Flip(at, byte) => {
                let at = place(at);
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
        }
    }
    bytes
}

fn seed() -> impl Strategy<Value = &'static [u8]> {
    let refused = REFUSED.iter().map(|(_, input, _)| *input);
    let inputs: Vec<_> = refused.chain(PASSED.iter().map(|(_, input, _)| *input)).collect();
    prop::sample::select(inputs)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn the_app_s_parser_finds_the_same_requests_as_ours(
        seeds in prop::collection::vec((seed(), prop::collection::vec(change(), 0..3)), 1..4),
    ) {
        let input: Vec<u8> = seeds.iter().flat_map(|(seed, changes)| apply(seed, changes)).collect();
        let ours = transcript::read(&input, &Limits::default()).requests;
        let hypers = run(async {
            let world = World::new().await;
            hypers(&passed_on(&input, world.handler().connection())).await
        });
        prop_assert_eq!(ours, hypers, "{}", input.escape_ascii());
    }

    #[test]
    fn mutated_requests_differ_from_hyper_only_as_listed(
        seed in seed(),
        changes in prop::collection::vec(change(), 0..4),
    ) {
        let compared = run(compare(&apply(seed, &changes)));
        prop_assert!(compared.is_ok(), "{}", compared.unwrap_err());
    }
}
