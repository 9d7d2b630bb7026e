//! An app that speaks HTTP/2 without TLS, as gRPC servers do.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::http2::{self, H2Body};

/// Bytes in a block of what `/bytes/<n>` answers.
const BLOCK: usize = 64 * 1024;

/// Answers each request with its own body, as `application/grpc` with `grpc-status: 0` in the trailers; `/bytes/<n>`
/// with that many bytes instead, and `/sink` with the number of bytes in the request, which it does not keep; or as a test says.
/// Ends when dropped.
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

/// An answer that a test gives.
#[derive(Clone, Debug)]
pub struct H2cAnswer {
    /// Its head.
    pub head: Response<()>,
    /// Its body; without one, it ends with its head.
    pub body: Option<H2Body>,
}

impl H2cApp {
    /// Listens.
    pub fn start(address: SocketAddr) -> Self {
        Self::echoing(address, H2cRecording(Some(Arc::default())))
    }

    /// [`H2cApp::start`] without a record of requests: for an app that runs for long, or receives much.
    pub fn unrecorded(address: SocketAddr) -> Self {
        Self::echoing(address, H2cRecording(None))
    }

    /// Answers each complete request with what `answer` returns, and records none.
    pub fn answering(
        address: SocketAddr,
        answer: impl Fn(H2cRequest) -> H2cAnswer + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        Self::listen(address, H2cRecording(None), move |request, respond| {
            respond_by(answer.clone(), request, respond)
        })
    }

    fn echoing(address: SocketAddr, requests: H2cRecording) -> Self {
        let seen = requests.clone();
        Self::listen(address, requests, move |request, respond| echo(request, respond, seen.clone()))
    }

    fn listen<F, R>(address: SocketAddr, requests: H2cRecording, serve: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + 'static,
        R: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener =
            std::net::TcpListener::bind(address).unwrap_or_else(|e| panic!("app at {address}: {e}"));
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let serve = serve.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        // A peer that disconnects ends the exchange.
                        tokio::spawn(serve(request, respond));
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

/// Reads a request, and answers it as a test says.
async fn respond_by(
    answer: Arc<impl Fn(H2cRequest) -> H2cAnswer>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (head, stream) = request.into_parts();
    let (body, trailers) = http2::read(stream).await?;
    let H2cAnswer { head, body } = answer(H2cRequest { head: Request::from_parts(head, ()), body, trailers });
    let mut send = respond.send_response(head, body.is_none())?;
    match body {
        Some(body) => body.send(&mut send).await,
        None => Ok(()),
    }
}

async fn echo(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: H2cRecording,
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
    let pieces = asked.map_or_else(|| vec![body.into()], blocks);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    H2Body { pieces, trailers }.send(&mut send).await
}

/// So many bytes, as blocks that share their memory.
fn blocks(count: usize) -> Vec<Bytes> {
    let block = Bytes::from(vec![b'x'; BLOCK]);
    let rest = block.slice(..count % BLOCK);
    (0..count / BLOCK).map(|_| block.clone()).chain([rest]).collect()
}
