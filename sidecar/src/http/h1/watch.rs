//! Watches an exchange: whether its client is still connected, and how long each wait may take.

use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::http::HttpContext;
use crate::http::buffer::{Buffer, SMALL};
use crate::lifeline::{Lifeline, Wait};
use crate::limits::Limits;
use crate::stream::{Abort, LOOK_AT_PEER, PeerEnd};

/// Watches a client that has sent its request and may only send further requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClientWatch {
    /// Whether the client has half-closed: it has gone, or waits for the rest of the response (allowed by RFC 9112
    /// §9.6).
    pub(super) has_ended: bool,
}

/// Sets the deadlines of an exchange.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Incremented when bytes move.
    progress: u32,
    /// [`Pace::progress`] and the wait for which the deadline was set, if one is.
    timed: Option<(u32, Wait)>,
}

/// What an exchange waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// More of the request, or that a body can be written.
    Body,
    /// The beginning of the response.
    Answer,
    /// More of a response that has begun; `is_stream`: its app sends events as they happen.
    More {
        /// See [`crate::http::headers::is_stream`].
        is_stream: bool,
    },
}

impl ClientWatch {
    /// Ready once the client is gone. What it sends meanwhile is kept in `inbound`, at most one small buffer.
    pub(super) fn poll<C>(
        &mut self,
        client: &mut C,
        inbound: &mut Buffer,
        (line, env): (&Lifeline, &HttpContext),
        context: &mut Context<'_>,
    ) -> Poll<()>
    where
        C: AsyncRead + AsyncWrite + Abort + Unpin,
    {
        while !self.has_ended && (inbound.size() == 0 || inbound.len() < inbound.size()) {
            match ready!(env.buffers.poll_read(inbound, SMALL, client, context)) {
                Ok(0) => self.has_ended = true,
                Ok(_) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        match client.peer_end() {
            PeerEnd::Open => {}
            PeerEnd::Half => self.has_ended = true,
            PeerEnd::Both => return Poll::Ready(()),
        }
        line.look_after(LOOK_AT_PEER);
        Poll::Pending
    }
}

impl Pace {
    /// Records progress.
    pub(super) fn step(&mut self) {
        self.progress = self.progress.wrapping_add(1);
    }

    /// Sets the deadline again after progress, or for another wait. A response that has not begun has no deadline while
    /// its client stays connected: it takes as long as the app takes.
    pub(super) fn keep(&mut self, due: Due, watch: ClientWatch, line: &Lifeline, limits: &Limits) {
        let (time, wait) = match due {
            Due::Body => (limits.body, Wait::Body),
            Due::Answer | Due::More { .. } if watch.has_ended => (limits.half_close, Wait::HalfClose),
            Due::More { is_stream: true } => (limits.stream_idle, Wait::Stream),
            Due::More { is_stream: false } => (limits.body, Wait::Body),
            Due::Answer => {
                self.timed = None;
                return line.at_ease();
            }
        };
        if self.timed != Some((self.progress, wait)) {
            self.timed = Some((self.progress, wait));
            line.within(time, wait);
        }
    }
}
