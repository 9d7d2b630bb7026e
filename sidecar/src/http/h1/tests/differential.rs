//! The same bytes for our reader of requests and for hyper's: ours must be as strict, or stricter for a reason that
//! stands here.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::smuggling::{PASSED, REFUSED};
use crate::http::buffer::{Buffer, Buffers};
use crate::http::h1::body::{BodyError, Decoder};
use crate::http::h1::head::{self, HeadError, Storage};
use crate::limits::Limits;

/// A request that was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    method: Vec<u8>,
    path: Vec<u8>,
    body: Vec<u8>,
}

/// How a reader's last byte was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A request's last byte, or one that more would have to follow, or one after a request that ended the connection.
    Fine,
    Head(HeadError),
    Body(BodyError),
}

/// What we refuse and hyper does not, and why.
const STRICTER: &[(End, &str)] = &[
    (
        End::Head(HeadError::BareLineFeed),
        "RFC 9112 §2.2 allows it; who else reads the line may not take it for an end",
    ),
    (End::Head(HeadError::Host), "RFC 9112 §3.2 demands 400; hyper leaves it to the application"),
    (End::Head(HeadError::TwoFramings), "RFC 9112 §6.1 allows to refuse; hyper drops the length"),
    (
        End::Head(HeadError::TransferEncoding),
        "only `chunked` is spoken; hyper takes any list that ends in it",
    ),
    (
        End::Head(HeadError::Target),
        "no fragment may be sent, and each form of target belongs to its methods; hyper is lax",
    ),
    (End::Head(HeadError::Connect), "there is nothing to tunnel to; hyper leaves it to the application"),
    (End::Head(HeadError::FirstLine), "more than eight empty lines before a request"),
    (End::Head(HeadError::ConnectionOptions), "each option is compared with every name: a bound on work"),
    (
        End::Head(HeadError::ContentLength),
        "twenty digits are more than any length; next to chunks hyper does not look",
    ),
    (End::Body(BodyError::Chunk), "control characters in extensions, and sizes of more than 16 digits"),
    (End::Body(BodyError::Extensions), "256 bytes a line; hyper allows 16 KiB in a body"),
    (
        End::Body(BodyError::Trailers(HeadError::FieldName)),
        "trailers are read like heads; hyper drops what it cannot read",
    ),
    (End::Body(BodyError::Trailers(HeadError::FieldValue)), "as above"),
    (End::Body(BodyError::Trailers(HeadError::BareLineFeed)), "as above"),
];

/// What we take and hyper does not: `content-length: 5, 5`, which RFC 9110 §8.6 allows to fold.
fn is_folded_length(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input).to_ascii_lowercase();
    text.split("\r\n").any(|line| line.starts_with("content-length:") && line.contains(','))
}

fn ours(input: &[u8]) -> (Vec<Seen>, End) {
    let (buffers, limits) = (Buffers::default(), Limits::default());
    let (mut rest, mut seen) = (Buffer::default(), Vec::new());
    rest.push(input);
    loop {
        let mut storage = Storage::new();
        let head = match head::parse_request(rest.bytes(), &mut storage, &limits) {
            Ok(Some(head)) => head,
            Ok(None) => return (seen, End::Fine),
            Err(error) => return (seen, End::Head(error)),
        };
        let (method, path) = (head.request.method.to_vec(), head.request.path.to_vec());
        let (framing, length, keep_alive) = (head.framing, head.length, head.keep_alive);
        rest.consume(length);
        let (mut decoder, mut body) = (Decoder::new(framing), Vec::new());
        while !decoder.is_done() {
            let (before, mut output) = (rest.len(), Buffer::default());
            if let Err(error) = decoder.transfer(&mut rest, &mut output, false, &buffers, &limits) {
                return (seen, End::Body(error));
            }
            body.extend_from_slice(output.bytes());
            if rest.len() == before {
                return (seen, End::Fine);
            }
        }
        seen.push(Seen { method, path, body });
        if !keep_alive {
            return (seen, End::Fine);
        }
    }
}

async fn hypers(input: &[u8]) -> Vec<Seen> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: ::http::Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                seen.borrow_mut().push(Seen {
                    method: head.method.as_str().into(),
                    path: head.uri.path_and_query().map_or("", |path| path.as_str()).into(),
                    body: body.to_bytes().to_vec(),
                });
            }
            Ok::<_, Infallible>(::http::Response::new(Full::new(Bytes::new())))
        }
    });
    let (mut near, far) = tokio::io::duplex(1024 * 1024);
    near.write_all(input).await.unwrap();
    near.shutdown().await.unwrap();
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.half_close(true).max_headers(128);
    // How it ends does not matter: what the service has seen does.
    let _ = builder.serve_connection(TokioIo::new(far), service).await;
    let mut answers = Vec::new();
    near.read_to_end(&mut answers).await.unwrap();
    seen.take()
}

async fn compare(input: &[u8]) -> Result<(), String> {
    let (ours, end) = ours(input);
    let hypers = hypers(input).await;
    let differ = || format!("{}\nours: {ours:?} {end:?}\nhyper's: {hypers:?}", input.escape_ascii());
    let common = ours.iter().zip(&hypers).take_while(|(ours, hypers)| ours == hypers).count();
    let is_listed = || STRICTER.iter().any(|(known, _)| *known == end);
    if common < ours.len() {
        return if is_folded_length(input) { Ok(()) } else { Err(differ()) };
    }
    if hypers.len() > ours.len() && !is_listed() {
        return Err(differ());
    }
    Ok(())
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
        (End::Head(HeadError::BareLineFeed), "GET / HTTP/1.1\nHost: a\n\n".to_owned()),
        (End::Head(HeadError::Host), "GET / HTTP/1.1\r\n\r\n".to_owned()),
        (End::Head(HeadError::TwoFramings), field("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        (End::Head(HeadError::TransferEncoding), field("Transfer-Encoding: gzip, chunked")),
        (End::Head(HeadError::Target), "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        (End::Head(HeadError::Connect), "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".to_owned()),
        (End::Head(HeadError::FirstLine), blank),
        (End::Head(HeadError::ConnectionOptions), many),
        (End::Head(HeadError::ContentLength), field("Transfer-Encoding: chunked\r\nContent-Length: x")),
        (End::Body(BodyError::Chunk), chunked("00000000000000001\r\nx\r\n0\r\n\r\n")),
        (End::Body(BodyError::Extensions), chunked(&extension)),
    ];
    for (expected, input) in examples {
        let (seen, end) = ours(input.as_bytes());
        assert_eq!((seen.len(), end), (0, expected), "{input}");
        assert_eq!(
            hypers(input.as_bytes()).await.len(),
            1,
            "hyper is as strict: take it off the list: {input}"
        );
    }
    let folded = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx";
    assert_eq!((ours(folded).0.len(), hypers(folded).await.len()), (1, 0));
}

/// Pieces that a parser may trip over.
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn mutated_requests_differ_from_hyper_only_as_listed(
        seed in 0..(REFUSED.len() + PASSED.len()),
        changes in prop::collection::vec(change(), 0..4),
    ) {
        let input = match REFUSED.get(seed) {
            Some((_, input, _)) => input,
            None => PASSED[seed - REFUSED.len()].1,
        };
        let input = apply(input, &changes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let compared = runtime.block_on(compare(&input));
        prop_assert!(compared.is_ok(), "{}", compared.unwrap_err());
    }
}
