//! Two directions of bytes in one task. A direction holds a buffer only while its receiver does not take what was
//! read for it; everything else passes through one buffer of the thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::held::{HeldBytes, affordable};
use crate::lifeline::{Lifeline, Wait};
use crate::stream::{Abort, LOOK_AT_PEER, PeerEnd};
use crate::telemetry::ResponseFlag;
use crate::turn::Turn;

/// The most bytes that a direction holds, or moves at once.
const CHUNK: usize = 32 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Who dialled and who was dialled, connected.
pub(crate) struct Pump<C, U> {
    client: C,
    upstream: U,
    to_upstream: PumpHalf,
    to_client: PumpHalf,
}

/// How long a pump waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a receiver to take what is there for it.
    pub(crate) stalled: Duration,
    /// For any bytes at all, if there is a limit.
    pub(crate) idle: Option<Duration>,
}

/// Whose connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Client,
    Upstream,
}

/// One direction.
#[derive(Default)]
struct PumpHalf {
    /// What was read and not written yet, from `start` on.
    held: Vec<u8>,
    counted: HeldBytes,
    start: usize,
    moved: u64,
    /// The sender is done.
    ended: bool,
    /// And the receiver knows.
    closed: bool,
}

/// Which side of a direction broke.
enum Broken {
    From,
    To,
}

impl<C, U> Pump<C, U>
where
    C: AsyncRead + AsyncWrite + Abort + Unpin,
    U: AsyncRead + AsyncWrite + Abort + Unpin,
{
    /// A pump that begins with bytes that were read from the client already.
    pub(crate) fn new(client: C, upstream: U, received: &[u8]) -> Self {
        let to_upstream = PumpHalf { held: received.to_vec(), ..PumpHalf::default() };
        Self { client, upstream, to_upstream, to_client: PumpHalf::default() }
    }

    /// Carries bytes until both sides are done, or one of them has tried our patience.
    pub(crate) async fn run(&mut self, line: &Lifeline, patience: Patience) -> Result<(), Failure> {
        let mut waits_since = None;
        if let Some(idle) = patience.idle {
            line.within(idle, Wait::Idle);
        }
        poll_fn(|context| {
            let Self { client, upstream, to_upstream, to_client } = self;
            let there = to_upstream.poll(context, client, upstream).map_err(|broken| match broken {
                Broken::From => Failure::Client,
                Broken::To => Failure::Upstream,
            })?;
            let back = to_client.poll(context, upstream, client).map_err(|broken| match broken {
                Broken::From => Failure::Upstream,
                Broken::To => Failure::Client,
            })?;
            if there.is_ready() && back.is_ready() {
                return Poll::Ready(Ok(()));
            }
            // Of a side that has ended nothing is read any more that would tell that it is gone altogether.
            let is_gone =
                |direction: &PumpHalf, peer: &dyn Abort| direction.closed && peer.peer_end() == PeerEnd::Both;
            if is_gone(to_upstream, client) {
                return Poll::Ready(Err(Failure::Client));
            }
            if is_gone(to_client, upstream) {
                return Poll::Ready(Err(Failure::Upstream));
            }
            if to_upstream.closed || to_client.closed {
                line.look_after(LOOK_AT_PEER);
            }
            let moved = to_upstream.moved + to_client.moved;
            if to_upstream.held.is_empty() && to_client.held.is_empty() {
                match patience.idle {
                    Some(idle) => line.within(idle, Wait::Idle),
                    None if waits_since.is_some() => line.at_ease(),
                    None => {}
                }
                waits_since = None;
            } else if waits_since != Some(moved) {
                waits_since = Some(moved);
                line.within(patience.stalled, Wait::Body);
            }
            Poll::Pending
        })
        .await
    }

    /// Bytes that the upstream has got.
    pub(crate) fn received(&self) -> u64 {
        self.to_upstream.moved
    }

    /// Bytes that the client has got.
    pub(crate) fn sent(&self) -> u64 {
        self.to_client.moved
    }

    /// Ends both sides by RST.
    pub(crate) fn reset(self) {
        self.client.abort();
        self.upstream.abort();
    }
}

impl PumpHalf {
    /// Ready once the sender is done and the receiver knows.
    fn poll<F, T>(&mut self, context: &mut Context<'_>, from: &mut F, to: &mut T) -> Poll<Result<(), Broken>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        let mut turn = Turn::new();
        loop {
            while let Some(held @ [_, ..]) = self.held.get(self.start..) {
                let count = ready!(Pin::new(&mut *to).poll_write(context, held)).map_err(|_| Broken::To)?;
                if count == 0 {
                    return Poll::Ready(Err(Broken::To));
                }
                self.start += count;
                self.moved += count as u64;
            }
            self.held = Vec::new();
            self.counted.set(0);
            self.start = 0;
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *to).poll_shutdown(context)).map_err(|_| Broken::To)?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            ready!(turn.poll(context));
            let before = self.moved;
            match self.move_some(context, from, to)? {
                Poll::Ready(()) => turn.spend(usize::try_from(self.moved - before).unwrap_or(usize::MAX)),
                Poll::Pending => {
                    // TLS may hold on to what the socket did not take.
                    ready!(Pin::new(&mut *to).poll_flush(context)).map_err(|_| Broken::To)?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads once and writes once.
    fn move_some<F, T>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
    ) -> Result<Poll<()>, Broken>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let size = affordable(scratch.len());
            let mut buffer = ReadBuf::new(scratch.get_mut(..size).unwrap_or_default());
            match Pin::new(from).poll_read(context, &mut buffer) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(result) => result.map_err(|_| Broken::From)?,
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.ended = true;
                return Ok(Poll::Ready(()));
            }
            let count = match Pin::new(to).poll_write(context, bytes) {
                Poll::Pending => 0,
                Poll::Ready(Ok(0) | Err(_)) => return Err(Broken::To),
                Poll::Ready(Ok(count)) => count,
            };
            self.moved += count as u64;
            self.held = bytes.get(count..).unwrap_or_default().to_vec();
            self.counted.set(self.held.len());
            Ok(Poll::Ready(()))
        })
    }
}

impl Failure {
    pub(crate) fn flag(self) -> ResponseFlag {
        match self {
            Self::Client => ResponseFlag::DownstreamConnectionTermination,
            Self::Upstream => ResponseFlag::UpstreamConnectionTermination,
        }
    }

    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Client => "downstream_remote_disconnect",
            Self::Upstream => "upstream_reset_after_connection",
        }
    }
}
