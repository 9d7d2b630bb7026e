//! An app that speaks HTTP/2 without TLS, as gRPC servers do.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Answers each request with its own body, as `application/grpc` with `grpc-status: 0` in the trailers; `/bytes/<n>`
/// with that many bytes instead, and `/sink` with the number of bytes in the request, which it does not keep. Ends when dropped.
#[derive(Debug)]
pub struct H2cApp {
    runtime: Option<Runtime>,
    requests: H2cRecording,
}

/// Complete requests that were received; empty if they are not recorded.
#[derive(Clone, Debug)]
struct H2cRecording(Option<Arc<Mutex<Vec<H2cRequest>>>>);

/// A request as received.
#[derive(Clone, Debug)]
pub struct H2cRequest {
    /// Its head.
    pub head: Request<()>,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl H2cApp {
    /// Listens.
    pub fn start(address: SocketAddr) -> Self {
        Self::listen(address, H2cRecording(Some(Arc::default())))
    }

    /// [`H2cApp::start`] without a record of requests: for an app that runs for long, or receives much.
    pub fn unrecorded(address: SocketAddr) -> Self {
        Self::listen(address, H2cRecording(None))
    }

    fn listen(address: SocketAddr, requests: H2cRecording) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener =
            std::net::TcpListener::bind(address).unwrap_or_else(|e| panic!("app at {address}: {e}"));
        listener.set_nonblocking(true).unwrap();
        let seen = requests.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let seen = seen.clone();
                        tokio::spawn(async move {
                            // A peer that disconnects ends the exchange.
                            let _ = answer(request, respond, &seen).await;
                        });
                    }
                });
            }
        });
        Self { runtime: Some(runtime), requests }
    }

    /// The complete requests that were received.
    pub fn requests(&self) -> Vec<H2cRequest> {
        self.requests.0.as_ref().map(|requests| requests.lock().unwrap().clone()).unwrap_or_default()
    }
}

impl Drop for H2cApp {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: &H2cRecording,
) -> Result<(), h2::Error> {
    let (head, mut stream) = request.into_parts();
    let asked = (head.method != Method::HEAD).then(|| super::requested_bytes(head.uri.path())).flatten();
    let is_sink = head.uri.path() == "/sink";
    let (mut body, mut count) = (Vec::new(), 0);
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        count += data.len();
        if !is_sink {
            body.extend_from_slice(&data);
        }
    }
    if is_sink {
        body = count.to_string().into_bytes();
    }
    let trailers = stream.trailers().await?;
    if let Some(requests) = &seen.0 {
        let request = H2cRequest { head: Request::from_parts(head, ()), body: body.clone(), trailers };
        requests.lock().unwrap().push(request);
    }
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut send = respond.send_response(head, false)?;
    match asked {
        Some(count) => send_bytes(&mut send, count).await?,
        None => send.send_data(body.into(), false)?,
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    send.send_trailers(trailers)
}

/// Sends so many bytes, as the client's windows allow.
async fn send_bytes(send: &mut SendStream<Bytes>, count: usize) -> Result<(), h2::Error> {
    let mut left = count;
    while left > 0 {
        send.reserve_capacity(left);
        let Some(granted) = poll_fn(|context| send.poll_capacity(context)).await else { return Ok(()) };
        let granted = granted?.min(left);
        send.send_data(vec![b'x'; granted].into(), false)?;
        left -= granted;
    }
    Ok(())
}
