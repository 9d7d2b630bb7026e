//! HTTP/2 from clients, on the h2 crate. Each stream carries one request and is authorized on its own.
//!
//! Start at [`serve`], which runs a connection. `stream` runs one stream, `exchange` its request and response.
//! `deadlines` has the deadlines of a connection, `progress` those of a stream, `flood_guard` the bound for floods of
//! frames, `malformed` the handling of malformed requests. How much of a body is buffered is bounded in [`crate::flow`].

mod answer;
mod checked;
mod deadlines;
mod exchange;
mod flood_guard;
mod headers;
mod keepalive;
mod malformed;
mod progress;
mod repetition;
mod request;
mod request_log;
mod stream;
mod streams;
mod transport;
mod upload;

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use h2::Reason;
use h2::malformed::Observer;
use h2::server::{Builder, Connection};
use tokio::io::{AsyncRead, AsyncWrite};

use self::deadlines::Deadlines;
use self::exchange::Exchanges;
pub(super) use self::headers::set_http2_target;
use self::keepalive::KeepAlive;
pub use self::streams::Streams;
use self::transport::ClientTransport;
use super::HttpContext;
use super::handler::Handler;
use crate::flow::SEND_BUFFER;
use crate::flow::outbox::Piece;
use crate::flow::windows::{self, Windows};
use crate::lifeline::{Cause, Lifeline, Phase, Wait};
use crate::limits::Limits;

/// Budget for DATA frames of less than 256 bytes that are buffered; h2 ends the connection when it is exceeded. Allows
/// for 40 streams of a client that fills windows of 32 KiB with 20 bytes per frame, and for more windows of the largest
/// size than make all connections fall back to small ones.
const SMALL_FRAME_BUDGET: usize = 16 * 1024 * 1024;
/// Maximum number of streams that a client has reset before they were accepted. Browsers and gRPC clients stay far
/// below; a rapid reset attack does not (CVE-2023-44487, RUSTSEC-2024-0003).
const PENDING_RESETS: usize = 32;
/// Maximum number of streams that were reset because of the client's errors; see [`PENDING_RESETS`].
const ERROR_RESETS: usize = 64;
/// How long an idle client may take to close after GOAWAY.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves one connection until it ends, and closes it. `first` are bytes that were already read from the stream.
///
/// Must run on a [`tokio::runtime::LocalRuntime`], because each stream is spawned as a local task.
pub async fn serve<S>(stream: S, first: BytesMut, handler: Handler, line: Lifeline, env: Rc<HttpContext>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let windows = Rc::new(Windows::new(&env.limits, env.streams.held().clone()));
    let deadlines = Rc::new(Deadlines::new(line.clone(), &env.limits, windows));
    let transport = ClientTransport::new(stream, first, deadlines.clone());
    let builder = builder(&env.limits, deadlines.windows().of_connection());
    let telemetry = env.telemetry.clone();
    let exchanges = Rc::new(Exchanges::new(handler, env, deadlines.clone()));

    let mut connection = match line.guard(builder.handshake::<_, Piece>(transport)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return log_end(Err(error)),
        Err(ended) => return tracing::debug!(cause = ?ended.0, "HTTP/2 connection ended before it began"),
    };
    let mut driver = Driver { keep_alive: KeepAlive::new(connection.ping_pong()), deadlines, exchanges };
    match line.guard_open(driver.drive(&mut connection)).await {
        Ok(outcome) => {
            if driver.deadlines.is_flooded() {
                telemetry.limited("http2_flood");
            }
            return log_end(outcome);
        }
        Err(ended) => tracing::debug!(cause = ?ended.0, "HTTP/2 connection is to end"),
    }
    connection.graceful_shutdown();
    match line.phase() {
        Phase::Closed(Cause::Deadline(Wait::Idle)) => {
            // Nothing is in flight; do not wait for a client that does not even read the GOAWAY.
            let _ = tokio::time::timeout(GOAWAY_TIMEOUT, driver.drive(&mut connection)).await;
        }
        // The place is needed now: send GOAWAY only if the socket accepts it at once.
        Phase::Closed(cause @ (Cause::MadeRoom | Cause::NoRoom)) => {
            let reason = if cause == Cause::MadeRoom { Reason::NO_ERROR } else { Reason::ENHANCE_YOUR_CALM };
            connection.abrupt_shutdown(reason);
            let _ = driver.drive(&mut connection).now_or_never();
        }
        Phase::Closed(_) => {}
        Phase::Open | Phase::Leaving(_) | Phase::Finishing(_) => {
            if let Ok(outcome) = line.guard(driver.drive(&mut connection)).await {
                log_end(outcome);
            }
        }
    }
}

/// State that serves an open connection.
struct Driver {
    keep_alive: KeepAlive,
    deadlines: Rc<Deadlines>,
    exchanges: Rc<Exchanges>,
}

impl Driver {
    /// Accepts requests, each in its own task, until the connection ends.
    async fn drive<S>(&mut self, connection: &mut Connection<S, Piece>) -> Result<(), h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        poll_fn(|context| {
            loop {
                self.deadlines.windows().adjust(connection);
                if self.keep_alive.poll(self.deadlines.read(), context).is_ready() {
                    tracing::debug!("HTTP/2 client does not answer");
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                }
                let observer: Rc<dyn Observer> = self.exchanges.clone();
                let accepted = h2::malformed::observed(&observer, || connection.poll_accept(context));
                match accepted {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        tokio::task::spawn_local(stream::serve(request, respond, self.exchanges.clone()));
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

/// Runs hyper's tasks on the connection's thread.
#[cfg(test)]
#[derive(Clone, Copy)]
struct LocalExecutor;

#[cfg(test)]
impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// h2's settings for connections of clients.
fn builder(limits: &Limits, connection_window: u32) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .initial_connection_window_size(connection_window)
        .initial_window_size(windows::MIN_WINDOW)
        .data_frame_budget(SMALL_FRAME_BUDGET)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// Errors of clients are for debugging only: any client can cause them.
fn log_end(outcome: Result<(), h2::Error>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "HTTP/2 connection failed");
    }
}
