//! Apps behind the server's sidecar that speak HTTP.

use std::convert::Infallible;
use std::error::Error;
use std::sync::{Mutex, PoisonError};

use ::http::{HeaderMap, Request, Response, Version};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

/// A request as an app has received it.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) line: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map_or("", |value| value.to_str().unwrap());
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }
}

/// What an app has received.
pub(super) type Log = Arc<Mutex<Vec<Received>>>;

/// An app that records each request, in either version of HTTP, and returns its body and its trailers.
pub(super) async fn echo() -> (SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, log) = (listener.local_addr().unwrap(), Log::default());
    let shared = log.clone();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let log = shared.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, log.clone()));
                serve(io, service).await;
            });
        }
    });
    (address, log)
}

/// Everything that was received so far.
pub(super) fn received(log: &Log) -> Vec<Received> {
    log.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Serves a connection in the version of HTTP that its client speaks.
pub(super) async fn serve<S, B>(io: TcpStream, service: S)
where
    S: HttpService<Incoming, ResBody = B, Error = Infallible> + Send,
    S::Future: Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let speaks_http2 = is_http2(&io).await;
    let io = TokioIo::new(io);
    // The client notices a connection that ends with an error.
    if speaks_http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(io, service).await;
    } else {
        let builder = hyper::server::conn::http1::Builder::new();
        let _ = builder.serve_connection(io, service).with_upgrades().await;
    }
}

async fn is_http2(io: &TcpStream) -> bool {
    let mut start = [0; 3];
    while let Ok(count @ 1..) = io.peek(&mut start).await {
        if count == start.len() || !b"PRI".starts_with(&start[..count]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    &start == b"PRI"
}

async fn answer(
    request: Request<Incoming>,
    log: Log,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(Response::new(Full::default().boxed())) };
    let trailers = body.trailers().cloned();
    let body = body.to_bytes();
    let line = format!("{} {} {:?}", head.method, head.uri, head.version);
    let received = Received { line, headers: head.headers, body: body.clone(), trailers: trailers.clone() };
    log.lock().unwrap_or_else(PoisonError::into_inner).push(received);
    let Some(trailers) = trailers.filter(|_| head.version == Version::HTTP_2) else {
        return Ok(Response::new(Full::new(body).boxed()));
    };
    let frames = [Frame::data(body), Frame::trailers(trailers)].map(Ok);
    Ok(Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))))
}

/// An app that plays each connection with this function, until it is dropped.
pub(super) async fn playing<F, R>(play: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(play(io));
        }
    });
    address
}

/// Reads up to and including the end of a head; `None` if the stream ends before.
pub(super) async fn read_head(io: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// The head and the body of the next response.
pub(super) async fn read_response(io: &mut TcpStream) -> (String, String) {
    let reading = async {
        let head = read_head(io).await.expect("a response");
        let body = read_body(io, &head).await;
        (head, String::from_utf8(body).unwrap())
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("no response")
}

/// The body after a head, without its framing.
pub(super) async fn read_body(io: &mut TcpStream, head: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let head = head.to_ascii_lowercase();
    if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        loop {
            let mut size = Vec::new();
            while !size.ends_with(b"\r\n") {
                size.push(io.read_u8().await.unwrap());
            }
            let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            io.read_exact(&mut chunk).await.unwrap();
            if size == 0 {
                return body;
            }
            body.extend(&chunk[..size]);
        }
    }
    if let Some(length) = head.split("\r\ncontent-length: ").nth(1) {
        body.resize(length.split("\r\n").next().unwrap().parse().unwrap(), 0);
        io.read_exact(&mut body).await.unwrap();
    }
    body
}

/// Sends a request and reads its response: status and body.
pub(super) async fn ask(io: &mut TcpStream, request: &str) -> (u16, String) {
    io.write_all(request.as_bytes()).await.unwrap();
    let (head, body) = read_response(io).await;
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}
