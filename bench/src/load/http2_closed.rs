//! Many small exchanges over HTTP/2: GETs, or unary gRPC calls.

use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::task::JoinSet;

use super::LoadMeasurement;
use super::connection::LoadEndpoint;
use super::window::{ResponseRecorder, UsageMeter};
use super::{http2, kinds};
use crate::app::SMALL_BYTES;

/// Bytes before a gRPC message: whether it is compressed, and its length.
const MESSAGE_PREFIX: u64 = 5;
/// A gRPC message without content.
const EMPTY_MESSAGE: [u8; MESSAGE_PREFIX as usize] = [0; MESSAGE_PREFIX as usize];

/// What is exchanged on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Http2Exchange {
    /// A GET, answered with the small response.
    Get,
    /// A unary gRPC call with an empty message, answered with a small one.
    Grpc,
}

/// How many exchanges run at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConcurrentStreams {
    /// What is exchanged on each.
    pub(super) exchange: Http2Exchange,
    /// Number of connections.
    pub(super) connections: usize,
    /// Number of streams of each.
    pub(super) streams: usize,
}

/// One exchange at a time on each stream.
pub(super) async fn closed(
    endpoint: LoadEndpoint,
    watched: &[u32],
    streams: ConcurrentStreams,
    warm_up: f64,
    seconds: f64,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let mut tasks = JoinSet::new();
    for _ in 0..streams.connections {
        let (client, connection) = http2::connect(&endpoint).await?;
        tasks.spawn(async move {
            // Its error is that of each exchange on it.
            drop(connection.await);
        });
        for _ in 0..streams.streams {
            tasks.spawn(repeat(client.clone(), streams.exchange, recorder.clone()));
        }
    }
    kinds::in_window(meter, recorder, warm_up, seconds).await
}

/// One exchange after another; each failure counts.
async fn repeat(mut client: SendRequest<Bytes>, exchange: Http2Exchange, recorder: ResponseRecorder) {
    loop {
        let sent = Instant::now();
        match exchange.on(&mut client).await {
            Ok(bytes) => recorder.answered(sent.elapsed(), bytes),
            Err(error) => {
                recorder.failed(&error);
                tokio::time::sleep(kinds::RECONNECT_PAUSE).await;
            }
        }
    }
}

impl Http2Exchange {
    /// Fails unless the response is complete and as expected; returns the length of its body.
    async fn on(self, client: &mut SendRequest<Bytes>) -> Result<u64> {
        std::future::poll_fn(|context| client.poll_ready(context)).await?;
        let (answer, mut request_body) = client.send_request(self.request()?, self == Self::Get)?;
        if self == Self::Grpc {
            request_body.send_data(Bytes::from_static(&EMPTY_MESSAGE), true)?;
        }
        let answer = answer.await.context("no answer")?;
        ensure!(answer.status() == 200, "answer has status {}", answer.status());
        let mut body = answer.into_body();
        let received = http2::download(&mut body).await.context("cannot read the answer")?;
        ensure!(received == self.body_bytes(), "body of {received} bytes");
        if self == Self::Grpc {
            let trailers =
                body.trailers().await.context("cannot read the trailers")?.context("no trailers")?;
            let status = trailers.get("grpc-status").context("no grpc-status")?;
            ensure!(status == "0", "grpc-status {status:?}");
        }
        Ok(received)
    }

    /// The request, without its body.
    fn request(self) -> Result<Request<()>> {
        let request = match self {
            Self::Get => Request::get("http://httpbin/1k"),
            Self::Grpc => Request::post("http://httpbin/bench.Bench/Unary")
                .header("content-type", "application/grpc")
                .header("te", "trailers"),
        };
        Ok(request.header("user-agent", "tidegate-bench").body(())?)
    }

    /// Expected length of the response's body.
    fn body_bytes(self) -> u64 {
        match self {
            Self::Get => SMALL_BYTES,
            Self::Grpc => MESSAGE_PREFIX + SMALL_BYTES,
        }
    }
}

/// As a flag's value.
impl fmt::Display for Http2Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Get => "get",
            Self::Grpc => "grpc",
        })
    }
}
