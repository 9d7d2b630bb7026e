//! HTTP/2 with prior knowledge: small responses to GETs, unary gRPC calls, and a collector of spans.

use std::io::Cursor;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::{SMALL_BYTES, SMALL_FILL};

/// What the app writes to its log once the first spans have come.
pub(crate) const SPANS_CAME: &str = "spans have come";
/// OTLP's method for spans.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The app's windows, large enough that the proxy never waits for them.
const WINDOW: u32 = 8 * 1024 * 1024;
/// The small body.
const SMALL: [u8; SMALL_BYTES as usize] = [SMALL_FILL; SMALL_BYTES as usize];
/// A gRPC message with the small body: not compressed, its length, its bytes.
const MESSAGE: [u8; 5 + SMALL_BYTES as usize] = message();
/// A gRPC message without content: what an export of spans is answered with.
const EMPTY_MESSAGE: [u8; 5] = [0; 5];

/// Serves a client whose first bytes were received already.
pub(super) async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, received: Vec<u8>) -> Result<()> {
    let (read, write) = tokio::io::split(stream);
    let stream = tokio::io::join(Cursor::new(received).chain(read), write);
    let mut connection = Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        if request.method() == Method::GET {
            let response = Response::builder().header("content-length", SMALL_BYTES).body(())?;
            respond.send_response(response, false)?.send_data(Bytes::from_static(&SMALL), true)?;
        } else {
            tokio::spawn(async move {
                // A client may disconnect before its call ends; that is not an error of the app.
                drop(call(request, respond).await);
            });
        }
    }
    Ok(())
}

/// Reads the message of a unary call and answers it.
async fn call(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let is_export = request.uri().path() == EXPORT;
    let mut body = request.into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data.context("cannot read the call")?;
        received += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    if is_export && received > EMPTY_MESSAGE.len() {
        log_first_spans();
    }
    let answer = if is_export { &EMPTY_MESSAGE[..] } else { &MESSAGE };
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from_static(answer), false)?;
    stream.send_trailers(HeaderMap::from_iter([(
        "grpc-status".parse::<http::HeaderName>()?,
        HeaderValue::from_static("0"),
    )]))?;
    Ok(())
}

/// Writes [`SPANS_CAME`] to the log, once.
fn log_first_spans() {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    if !LOGGED.swap(true, Ordering::Relaxed) {
        eprintln!("{SPANS_CAME}");
    }
}

/// A message's bytes.
const fn message() -> [u8; 5 + SMALL_BYTES as usize] {
    let mut message = [SMALL_FILL; 5 + SMALL_BYTES as usize];
    let length = (SMALL_BYTES as u32).to_be_bytes();
    message[0] = 0;
    let mut at = 0;
    while at < length.len() {
        message[1 + at] = length[at];
        at += 1;
    }
    message
}
