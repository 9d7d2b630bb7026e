//! A gRPC server that breaks off its calls or their connections: the server side of gRPC's negative HTTP/2 interoperability
//! tests (`test/http2_test` of grpc/grpc).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::http2;

/// Bytes in the payload of each answer (`largeRespSize`).
const PAYLOAD: usize = 314_159;
/// Bytes between two pings.
const CHUNK: usize = 16 * 1024;

/// What a server does to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum H2Fault {
    /// Announces with each call that the connection takes no further ones.
    GoAway,
    /// Resets a call after the head of its answer.
    ResetAfterHead,
    /// Resets a call in the middle of its answer.
    ResetDuringData,
    /// Resets a call in place of the trailers of its answer.
    ResetAfterData,
    /// Sends a PING after each chunk of an answer, and waits until it is acknowledged.
    Pings,
    /// Allows one call at a time on a connection.
    OneStream,
}

/// A running server. Ends when dropped.
#[derive(Debug)]
pub struct FaultyGrpcServer {
    runtime: Option<Runtime>,
    seen: Arc<FaultRecord>,
}

/// What a server has seen.
#[derive(Debug, Default)]
struct FaultRecord {
    connections: AtomicUsize,
    /// The number of the connection of each call.
    calls: Mutex<Vec<usize>>,
    acknowledged: AtomicUsize,
}

/// A connection, as its calls see it.
#[derive(Clone)]
struct FaultyConnection {
    fault: H2Fault,
    pings: Arc<tokio::sync::Mutex<PingPong>>,
    seen: Arc<FaultRecord>,
}

impl FaultyGrpcServer {
    /// Listens.
    pub fn start(address: SocketAddr, fault: H2Fault) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(address)
            .unwrap_or_else(|error| panic!("server at {address}: {error}"));
        listener.set_nonblocking(true).unwrap();
        let seen = Arc::<FaultRecord>::default();
        let record = seen.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, fault, record.clone()));
            }
        });
        Self { runtime: Some(runtime), seen }
    }

    /// The number of the connection of each call so far.
    pub fn calls(&self) -> Vec<usize> {
        self.seen.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many PINGs were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.seen.acknowledged.load(Ordering::Relaxed)
    }
}

impl Drop for FaultyGrpcServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its address is free afterwards.
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

/// Serves one connection.
async fn serve(stream: TcpStream, fault: H2Fault, seen: Arc<FaultRecord>) {
    let number = seen.connections.fetch_add(1, Ordering::Relaxed);
    let mut builder = server::Builder::new();
    if fault == H2Fault::OneStream {
        builder.max_concurrent_streams(1);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let pings = Arc::new(tokio::sync::Mutex::new(connection.ping_pong().unwrap()));
    let shared = FaultyConnection { fault, pings, seen };
    while let Some(Ok((request, respond))) = connection.accept().await {
        shared.seen.calls.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        if fault == H2Fault::GoAway {
            connection.graceful_shutdown();
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            // A peer that disconnects ends the call.
            let _ = shared.answer(request, respond).await;
        });
    }
}

impl FaultyConnection {
    async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), h2::Error> {
        http2::read(request.into_body()).await?;
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut send = respond.send_response(head, false)?;
        let message = message();
        let sent = match self.fault {
            H2Fault::ResetAfterHead => 0,
            H2Fault::ResetDuringData => message.len() / 2,
            _ => message.len(),
        };
        for chunk in message[..sent].chunks(CHUNK) {
            http2::send_data(&mut send, Bytes::copy_from_slice(chunk), false).await?;
            if self.fault == H2Fault::Pings {
                self.ping().await?;
            }
        }
        match self.fault {
            H2Fault::ResetAfterHead | H2Fault::ResetDuringData | H2Fault::ResetAfterData => {
                // A reset discards what is queued. The acknowledgement shows that it was written.
                self.ping().await?;
                self.ping().await?;
                send.send_reset(Reason::NO_ERROR);
                Ok(())
            }
            H2Fault::GoAway | H2Fault::Pings | H2Fault::OneStream => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                send.send_trailers(trailers)
            }
        }
    }

    /// Sends a PING, and waits until it is acknowledged.
    async fn ping(&self) -> Result<(), h2::Error> {
        self.pings.lock().await.ping(Ping::opaque()).await?;
        self.seen.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A message of gRPC: a `SimpleResponse` (`grpc.testing`) with a payload of zeros.
fn message() -> Vec<u8> {
    let field = |tag: u8, content: Vec<u8>| {
        let mut bytes = vec![tag];
        let mut length = content.len();
        while length > 0x7f {
            bytes.push(0x80 | (length & 0x7f) as u8);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(content);
        bytes
    };
    // `Payload.body` is field 2, `SimpleResponse.payload` field 1.
    let response = field(0x0a, field(0x12, vec![0; PAYLOAD]));
    let length = u32::try_from(response.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], &response].concat()
}
