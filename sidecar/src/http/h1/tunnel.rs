//! Bytes both ways, after a connection has switched to another protocol.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::http::HttpContext;
use crate::http::buffer::{Buffer, MEDIUM};
use crate::lifeline::{Ended, Lifeline, Wait};
use crate::stream::{Abort, LOOK_AT_PEER, PeerEnd};
use crate::turn::Turn;

/// How many bytes went each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) from_client: u64,
    pub(super) to_client: u64,
}

struct Half {
    buffer: Buffer,
    state: HalfState,
    moved: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HalfState {
    Open,
    /// The sender has ended; the receiver is to be told.
    Ending,
    Ended,
}

/// Passes bytes on until both sides have ended or one fails. What each side has already sent is passed on first.
///
/// A half that is open and silent may be so for as long as the connection lives; bytes that are not taken, and a half
/// whose other half has ended, are under [`crate::limits::Limits::body`].
pub(super) async fn run<C, U>(
    client: &mut C,
    upstream: &mut U,
    from_client: Buffer,
    from_upstream: Buffer,
    line: &Lifeline,
    env: &HttpContext,
) -> (Moved, Result<(), Ended>)
where
    C: AsyncRead + AsyncWrite + Abort + Unpin,
    U: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let mut up = Half::new(from_client);
    let mut down = Half::new(from_upstream);
    let mut timed = None;
    let pump = poll_fn(|context| {
        let is_up_done = up.poll(client, upstream, env, context)?.is_ready();
        let is_down_done = down.poll(upstream, client, env, context)?.is_ready();
        if is_up_done && is_down_done {
            return Poll::Ready(Ok::<(), io::Error>(()));
        }
        // Of a side that has ended nothing is read any more that would tell that it is gone altogether.
        let is_gone = |is_done: bool, peer: &dyn Abort| is_done && peer.peer_end() == PeerEnd::Both;
        if is_gone(is_up_done, client) || is_gone(is_down_done, upstream) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if is_up_done || is_down_done {
            line.look_after(LOOK_AT_PEER);
        }
        let is_due = up.is_due() || down.is_due() || is_up_done || is_down_done;
        let moved = up.moved + down.moved;
        if !is_due {
            timed = None;
            line.at_ease();
        } else if timed != Some(moved) {
            timed = Some(moved);
            line.within(env.limits.body, Wait::Body);
        }
        Poll::Pending
    });
    let ended = line.guard(pump).await.map(|_| ());
    env.buffers.give(&mut up.buffer);
    env.buffers.give(&mut down.buffer);
    (Moved { from_client: up.moved, to_client: down.moved }, ended)
}

impl Half {
    fn new(buffer: Buffer) -> Self {
        Self { moved: buffer.len() as u64, buffer, state: HalfState::Open }
    }

    fn is_due(&self) -> bool {
        !self.buffer.is_empty() || self.state == HalfState::Ending
    }

    fn poll<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        env: &HttpContext,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut turn = Turn::new();
        loop {
            let before = self.buffer.len();
            ready!(self.buffer.poll_write_all(to, context))?;
            turn.spend(before);
            env.buffers.give(&mut self.buffer);
            match self.state {
                HalfState::Open => {
                    if self.moved > 0 {
                        ready!(Pin::new(&mut *to).poll_flush(context))?;
                    }
                    ready!(turn.poll(context));
                    match ready!(env.buffers.poll_read(&mut self.buffer, MEDIUM, from, context))? {
                        0 => self.state = HalfState::Ending,
                        count => self.moved += count as u64,
                    }
                }
                HalfState::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(context))?;
                    self.state = HalfState::Ended;
                }
                HalfState::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}
