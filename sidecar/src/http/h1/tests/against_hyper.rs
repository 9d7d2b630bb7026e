//! The comparison with hyper. The fuzz target includes this file, too.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::http::h1::body::BodyError;
use crate::http::h1::head::HeadError;
use crate::http::h1::transcript::{self, Transcript, TranscriptError, TranscriptMessage};
use crate::limits::Limits;

/// Input that we refuse and hyper accepts, and why.
const STRICTER: &[(TranscriptError, &str)] = &[
    (
        TranscriptError::Head(HeadError::BareLineFeed),
        "RFC 9112 §2.2 allows it; another parser of the same bytes may not end the line there",
    ),
    (TranscriptError::Head(HeadError::Host), "RFC 9112 §3.2 demands 400; hyper leaves it to the application"),
    (TranscriptError::Head(HeadError::TwoFramings), "RFC 9112 §6.1 allows to refuse; hyper drops the length"),
    (
        TranscriptError::Head(HeadError::TransferEncoding),
        "only `chunked` is spoken; hyper takes any list that ends in it",
    ),
    (
        TranscriptError::Head(HeadError::Target),
        "no fragment may be sent, and each form of target belongs to its methods; hyper is lax",
    ),
    (
        TranscriptError::Head(HeadError::Connect),
        "there is nothing to tunnel to; hyper leaves it to the application",
    ),
    (TranscriptError::Head(HeadError::FirstLine), "more than eight empty lines before a request"),
    (
        TranscriptError::Head(HeadError::ConnectionOptions),
        "each option is compared with every name: a bound on work",
    ),
    (
        TranscriptError::Head(HeadError::ContentLength),
        "twenty digits are more than any length; next to chunks hyper does not look",
    ),
    (
        TranscriptError::Body(BodyError::Chunk),
        "control characters in extensions, and sizes of more than 16 digits",
    ),
    (TranscriptError::Body(BodyError::Extensions), "256 bytes a line; hyper allows 16 KiB in a body"),
    (
        TranscriptError::Body(BodyError::Trailers(HeadError::FieldName)),
        "trailers are read like heads; hyper drops what it cannot read",
    ),
    (TranscriptError::Body(BodyError::Trailers(HeadError::FieldValue)), "as above"),
    (TranscriptError::Body(BodyError::Trailers(HeadError::BareLineFeed)), "as above"),
];

/// Input that we accept and hyper refuses: `content-length: 5, 5`, which RFC 9110 §8.6 allows to merge.
fn is_folded_length(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input).to_ascii_lowercase();
    text.split("\r\n").any(|line| line.starts_with("content-length:") && line.contains(','))
}

/// The requests that hyper parses from these bytes.
pub(crate) async fn hypers(input: &[u8]) -> Vec<TranscriptMessage> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: ::http::Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                seen.borrow_mut().push(TranscriptMessage {
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
    // The outcome does not matter, only what the service has seen.
    let _ = builder.serve_connection(TokioIo::new(far), service).await;
    let mut answers = Vec::new();
    near.read_to_end(&mut answers).await.unwrap();
    seen.take()
}

/// Compares our parsing of these bytes with hyper's; the error shows both.
pub(crate) async fn compare(input: &[u8]) -> Result<(), String> {
    let Transcript { requests: ours, refusal } = transcript::read(input, &Limits::default());
    let hypers = hypers(input).await;
    let differ = || format!("{}\nours: {ours:?} {refusal:?}\nhyper's: {hypers:?}", input.escape_ascii());
    let common = ours.iter().zip(&hypers).take_while(|(ours, hypers)| ours == hypers).count();
    let is_listed = || STRICTER.iter().any(|(known, _)| Some(*known) == refusal);
    if common < ours.len() {
        return if is_folded_length(input) { Ok(()) } else { Err(differ()) };
    }
    if hypers.len() > ours.len() && !is_listed() {
        return Err(differ());
    }
    Ok(())
}
