//! HTTP/2 from clients, on hyper: every stream is one request that passes the gate by itself.
//!
//! Start at [`serve`], a connection's life. `exchange` is one stream's story, [`Upstreams`] the connections to the
//! app, `pulse` what the connection as a whole waits for, `meter` what ends a flood, `malformed` what becomes of
//! requests that are none.

mod account;
mod answer;
mod exchange;
mod headers;
mod malformed;
mod meter;
mod pulse;
mod request;
mod transport;
mod upstream;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use self::exchange::Exchanges;
pub(super) use self::headers::http2_target;
use self::malformed::Observed;
use self::pulse::Pulse;
use self::transport::Transport;
pub use self::upstream::{UpstreamBody, UpstreamError, Upstreams};
use super::Env;
use crate::lifeline::{Cause, Lifeline, Phase, Wait};
use crate::limits::Limits;
use crate::session::Gate;

/// Received and not yet taken by the app, for one stream. With [`Limits::streams`] this is what bounds a connection's
/// memory: 4 MiB by default.
const STREAM_WINDOW: u32 = 32 * 1024;
/// The same for all streams together; more than they can use, so that a stream that is not taken never holds up
/// others. h2 lets half of it be spent on the overhead of frames of less than 256 bytes that wait to be taken, and
/// ends the connection then: so much is room for 20 streams of a client that fills their windows with 20 bytes a frame.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Waiting for a client's window, for each stream.
const SEND_BUFFER: usize = 32 * 1024;
/// Streams that a client reset before they were looked at, and streams that we reset for its errors. Browsers and
/// gRPC clients stay far below; a rapid reset does not (CVE-2023-44487, RUSTSEC-2024-0003).
const PENDING_RESETS: usize = 32;
/// See [`PENDING_RESETS`].
const ERROR_RESETS: usize = 64;
/// A client that is gone without a word is noticed by a ping.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// For the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// For an idle client to take leave after GOAWAY.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one connection until it ends, and closes it. `first` are bytes that were already read from the stream.
///
/// To be called within a [`tokio::task::LocalSet`]: each stream is a task of its own.
pub async fn serve<S>(stream: S, first: BytesMut, gate: Rc<Gate>, line: Lifeline, env: Rc<Env>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let pulse = Rc::new(Pulse::new(line.clone(), &env.limits));
    let transport = Transport::new(stream, first, pulse.clone());
    let builder = builder(&env.limits);
    let exchanges = Rc::new(Exchanges::new(gate, env, pulse));
    let observer = exchanges.clone();
    let service = service_fn(move |request| {
        let exchanges = exchanges.clone();
        async move { Ok::<_, Infallible>(exchanges.answer(request).await) }
    });
    let connection = Box::pin(builder.serve_connection(TokioIo::new(transport), service));
    let mut connection = Observed { connection, observer };

    match line.guard_open(&mut connection).await {
        Ok(outcome) => return log_end(outcome),
        Err(ended) => tracing::debug!(cause = ?ended.0, "HTTP/2 connection is to end"),
    }
    connection.connection.as_mut().graceful_shutdown();
    match line.phase() {
        Phase::Closed(Cause::Deadline(Wait::Idle)) => {
            // Nothing is in flight; a client that does not even take a GOAWAY is not waited for.
            let _ = tokio::time::timeout(FAREWELL, connection).await;
        }
        Phase::Closed(_) => {}
        Phase::Open | Phase::Leaving(_) | Phase::Finishing(_) => {
            if let Ok(outcome) = line.guard(connection).await {
                log_end(outcome);
            }
        }
    }
}

/// Runs hyper's tasks on the thread that owns the connection.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A body whose type does not matter.
type DynBody = Pin<Box<dyn http_body::Body<Data = bytes::Bytes, Error = BoxError>>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn builder(limits: &Limits) -> Builder<LocalExecutor> {
    let mut builder = Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

fn log_end(outcome: hyper::Result<()>) {
    if let Err(error) = outcome {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, source, "HTTP/2 connection failed");
    }
}
