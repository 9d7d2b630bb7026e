//! How an attempt ends that has no answer for the client, and the next one begins: the same bytes are written to another
//! endpoint.

use std::time::Duration;

use tidegate_core::route::retry::{Failure, RequestBody};
use tokio::io::{AsyncRead, AsyncWrite};

use super::exchange::{Download, Exchange, ExchangeOutcome, UploadState};
use super::replay::Replay;
use super::{After, ClientConnection, is_of_upstream};
use crate::http::HttpContext;
use crate::http::handler::{Attempts, FailedResponse, Forward};
use crate::http::local_reply::{self, LocalReply};
use crate::http::mirror;
use crate::lifeline::Ended;
use crate::stream::Abort;
use crate::upstream::{TimedOut, UpstreamError};

/// How an attempt ended.
pub(super) enum AttemptEnd {
    /// No connection was made, or the endpoint has vanished and there is no other; the request may be sent again.
    NotConnected(UpstreamError),
    /// The answer is not passed on: another attempt follows after this wait.
    Retry(Duration),
    /// The response did not arrive completely. `has_vanished`: the endpoint has stopped acknowledging data.
    Broken { outcome: ExchangeOutcome, has_vanished: bool },
    /// Its time, or the request's, has passed.
    TimedOut(TimedOut),
}

impl<S: AsyncRead + AsyncWrite + Abort + Unpin> ClientConnection<'_, S> {
    /// Prepares the next attempt (`None`), or gives the client the failure.
    pub(super) async fn end_attempt(&mut self, forward: &mut Forward, end: AttemptEnd) -> Option<After> {
        let is_uploaded = self.exchange.up.state == UploadState::Done;
        let (failure, outcome) = match end {
            AttemptEnd::Retry(wait) => return Box::pin(self.pause(forward, wait)).await,
            AttemptEnd::NotConnected(error) => {
                let failure = (!matches!(error, UpstreamError::Overflow(_))).then_some(Failure::Connect);
                (failure, ExchangeOutcome::Failed(self.unanswered(&error)))
            }
            AttemptEnd::TimedOut(which) => {
                if is_uploaded {
                    forward.failed();
                }
                let failure = (which == TimedOut::Attempt).then_some(Failure::Timeout);
                (failure, ExchangeOutcome::Failed(local_reply::timed_out(which)))
            }
            AttemptEnd::Broken { outcome: ExchangeOutcome::Stale, .. } => {
                forward.failed();
                (Some(Failure::Reset), ExchangeOutcome::Failed(local_reply::connection_terminated()))
            }
            AttemptEnd::Broken { outcome, has_vanished } => {
                let is_of_upstream = outcome.flag().is_some_and(is_of_upstream);
                if is_of_upstream && has_vanished {
                    forward.vanished();
                } else if is_of_upstream {
                    forward.failed();
                }
                (is_of_upstream.then_some(Failure::Reset), outcome)
            }
        };
        let outcome = match outcome {
            ExchangeOutcome::Failed(reply) => self.exchange.fail(reply),
            outcome => outcome,
        };
        match outcome {
            ExchangeOutcome::Failed(reply) => {
                if let Some(wait) = failure.and_then(|failure| self.exchange.next_attempt(failure, self.env))
                {
                    return Box::pin(self.pause(forward, wait)).await;
                }
                self.tell(&reply);
                Some(self.reply(reply).await)
            }
            ExchangeOutcome::Aborted(flag, details) => {
                self.tell_end(self.exchange.down.status, flag, details);
                Some(After::Abort)
            }
            // An outcome of another kind is not a failure.
            _ => Some(After::Abort),
        }
    }

    /// The reply to a request that the upstream has not answered; counts the limit or notes the connection error behind it.
    pub(super) fn unanswered(&mut self, error: &UpstreamError) -> LocalReply {
        if let Some(limit) = error.limit() {
            self.env.telemetry.limited(limit);
        }
        self.exchange.note_unreachable(error);
        local_reply::upstream_failed(error)
    }

    /// Waits for the next attempt.
    async fn pause(&mut self, forward: &mut Forward, wait: Duration) -> Option<After> {
        self.line.at_ease();
        if let Err(Ended(cause)) = self.line.guard(Box::pin(tokio::time::sleep(wait))).await {
            return Some(self.cut_off(cause).await);
        }
        forward.change_endpoint();
        self.exchange.begin_again(self.env);
        None
    }
}

impl Exchange {
    /// Keeps what is written to the app, if the request may be sent more than once.
    pub(super) fn begin_attempts(&mut self, attempts: Option<Box<Attempts>>, env: &HttpContext) {
        self.attempts = attempts;
        if let Some(attempts) = self.attempts.as_ref().filter(|attempts| attempts.keeps_request()) {
            attempts.begin(&env.retry_budgets);
            // A request that is not repeatable has no body: it is a head alone.
            let head = self.repeatable.map_or(self.up.out.len(), |repeatable| repeatable.length as usize);
            self.up.replay = Some(Box::new(Replay::new(&self.up.out, head, &env.buffers)));
        }
    }

    /// The app has got all of the request: its copies leave. None of an upgrade does.
    pub(super) fn send_copies(&mut self, env: &HttpContext) {
        let copies = self.attempts.as_mut().and_then(|attempts| attempts.take_copies());
        let Some(copies) = copies.filter(|_| !self.asked.upgrade) else { return };
        match self.up.replay.as_ref().and_then(|replay| replay.request(env)) {
            Some((head, body)) => mirror::send_copies(env, copies, &head, &body),
            None => env.telemetry.limited("mirror_body"),
        }
    }

    /// How long to wait before the next attempt after this failure; `None`: there is none.
    fn next_attempt(&mut self, failure: Failure, env: &HttpContext) -> Option<Duration> {
        let body = self.up.replay.as_ref().map_or(RequestBody::Gone, |replay| replay.body());
        let failed = FailedResponse { failure, pushback: None };
        self.attempts.as_mut()?.next(env, &failed, body)
    }

    /// The request as it is to be written again. What the client has not sent yet of its body follows it.
    fn begin_again(&mut self, env: &HttpContext) {
        let buffers = &env.buffers;
        for buffer in [&mut self.up.out, &mut self.down.input, &mut self.down.out] {
            buffers.give(buffer);
        }
        if let Some(replay) = &self.up.replay {
            self.up.out = replay.copy(buffers);
        }
        self.up.begin_again();
        self.down = Download::new();
        self.fault = None;
    }
}
