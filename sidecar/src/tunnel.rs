//! Bytes both ways between two connections, in one task: opaque connections, and HTTP/1 after `101 Switching Protocols`.
//!
//! A direction holds a buffer only while its receiver does not take what was read for it; everything else passes through
//! one buffer of the thread.

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

/// The most bytes that a direction holds, or moves at once, but for those that it began with.
const CHUNK: usize = 32 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// The bytes between a client and an upstream.
#[derive(Default)]
pub(crate) struct Tunnel {
    to_upstream: TunnelHalf,
    to_client: TunnelHalf,
}

/// How long a tunnel waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelPatience {
    /// For a receiver to take bytes, or the end, that are there for it.
    pub(crate) stalled: Duration,
    /// For any bytes at all; `None`: for as long as the connection lives.
    pub(crate) idle: Option<Duration>,
    /// The same once one side has ended; `None`: as before.
    pub(crate) half_closed: Option<Duration>,
}

/// Whose connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TunnelError {
    Client,
    Upstream,
}

/// One direction.
#[derive(Default)]
struct TunnelHalf {
    /// Read and not written yet, from `start` on.
    held: Vec<u8>,
    counted: HeldBytes,
    start: usize,
    moved: u64,
    end: TunnelEnd,
}

/// How far the end of a direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TunnelEnd {
    /// The sender has not ended its side.
    #[default]
    Open,
    /// The sender has; the receiver does not have the end yet.
    Received,
    /// The receiver has it, too.
    PassedOn,
}

/// Which side of a direction broke.
enum Broken {
    From,
    To,
}

impl Tunnel {
    /// A tunnel that begins with what each side has sent already.
    pub(crate) fn new(from_client: &[u8], from_upstream: &[u8]) -> Self {
        Self { to_upstream: TunnelHalf::new(from_client), to_client: TunnelHalf::new(from_upstream) }
    }

    /// Passes bytes on until both sides have ended or one has failed. A wait that is too long ends by the deadline of
    /// `line`.
    pub(crate) async fn run<C, U>(
        &mut self,
        client: &mut C,
        upstream: &mut U,
        line: &Lifeline,
        patience: TunnelPatience,
    ) -> Result<(), TunnelError>
    where
        C: AsyncRead + AsyncWrite + Abort + Unpin,
        U: AsyncRead + AsyncWrite + Abort + Unpin,
    {
        let mut timed = None;
        poll_fn(|context| {
            let there = self.to_upstream.poll(context, client, upstream).map_err(|broken| match broken {
                Broken::From => TunnelError::Client,
                Broken::To => TunnelError::Upstream,
            })?;
            let back = self.to_client.poll(context, upstream, client).map_err(|broken| match broken {
                Broken::From => TunnelError::Upstream,
                Broken::To => TunnelError::Client,
            })?;
            if there.is_ready() && back.is_ready() {
                return Poll::Ready(Ok(()));
            }
            // Nothing more is read from a side that has ended, so only this shows that it is gone altogether.
            let is_gone =
                |half: &TunnelHalf, peer: &dyn Abort| half.is_over() && peer.peer_end() == PeerEnd::Both;
            if is_gone(&self.to_upstream, client) {
                return Poll::Ready(Err(TunnelError::Client));
            }
            if is_gone(&self.to_client, upstream) {
                return Poll::Ready(Err(TunnelError::Upstream));
            }
            if self.is_half_closed() {
                line.look_after(LOOK_AT_PEER);
            }
            match self.due(patience) {
                None => {
                    timed = None;
                    line.at_ease();
                }
                Some((time, wait)) => {
                    let now = Some((self.received() + self.sent(), wait));
                    if timed != now {
                        timed = now;
                        line.within(time, wait);
                    }
                }
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

    fn is_half_closed(&self) -> bool {
        self.to_upstream.is_over() || self.to_client.is_over()
    }

    /// What the tunnel waits for, and how long it may.
    fn due(&self, patience: TunnelPatience) -> Option<(Duration, Wait)> {
        if self.to_upstream.is_stalled() || self.to_client.is_stalled() {
            return Some((patience.stalled, Wait::Body));
        }
        let half_closed = patience.half_closed.filter(|_| self.is_half_closed());
        half_closed.map(|time| (time, Wait::Body)).or(patience.idle.map(|time| (time, Wait::Idle)))
    }
}

impl TunnelHalf {
    fn new(held: &[u8]) -> Self {
        Self { held: held.to_vec(), counted: HeldBytes::new(held.len()), ..Self::default() }
    }

    /// Whether the receiver is due to take something.
    fn is_stalled(&self) -> bool {
        !self.held.is_empty() || self.end == TunnelEnd::Received
    }

    /// Whether the receiver has the sender's end.
    fn is_over(&self) -> bool {
        self.end == TunnelEnd::PassedOn
    }

    /// Ready once the sender has ended its side and the receiver has that.
    fn poll<F, T>(&mut self, context: &mut Context<'_>, from: &mut F, to: &mut T) -> Poll<Result<(), Broken>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        let mut turn = Turn::new();
        loop {
            let before = self.moved;
            ready!(self.poll_write_held(context, to))?;
            match self.end {
                TunnelEnd::Open => {}
                TunnelEnd::Received => {
                    ready!(Pin::new(&mut *to).poll_shutdown(context)).map_err(|_| Broken::To)?;
                    self.end = TunnelEnd::PassedOn;
                    return Poll::Ready(Ok(()));
                }
                TunnelEnd::PassedOn => return Poll::Ready(Ok(())),
            }
            ready!(turn.poll(context));
            if self.move_some(context, from, to)?.is_pending() {
                // TLS may hold on to what the socket did not take.
                ready!(Pin::new(&mut *to).poll_flush(context)).map_err(|_| Broken::To)?;
                return Poll::Pending;
            }
            turn.spend(usize::try_from(self.moved - before).unwrap_or(usize::MAX));
        }
    }

    /// Writes what was read and not taken before.
    fn poll_write_held<T>(&mut self, context: &mut Context<'_>, to: &mut T) -> Poll<Result<(), Broken>>
    where
        T: AsyncWrite + Unpin,
    {
        while let Some(held @ [_, ..]) = self.held.get(self.start..) {
            let count = match ready!(Pin::new(&mut *to).poll_write(context, held)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::To)),
                Ok(count) => count,
            };
            self.start += count;
            self.moved += count as u64;
        }
        self.hold(&[]);
        Poll::Ready(Ok(()))
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
                self.end = TunnelEnd::Received;
                return Ok(Poll::Ready(()));
            }
            let count = match Pin::new(to).poll_write(context, bytes) {
                Poll::Pending => 0,
                Poll::Ready(Ok(0) | Err(_)) => return Err(Broken::To),
                Poll::Ready(Ok(count)) => count,
            };
            self.moved += count as u64;
            self.hold(bytes.get(count..).unwrap_or_default());
            Ok(Poll::Ready(()))
        })
    }

    /// Keeps bytes for the receiver, in place of what was held.
    fn hold(&mut self, bytes: &[u8]) {
        self.held = bytes.to_vec();
        self.counted.set(bytes.len());
        self.start = 0;
    }
}

impl TunnelError {
    /// The flag in the access log, as Envoy has it for TCP.
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::rc::Rc;
    use std::time::Instant;

    use futures_util::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::lifeline::{Cause, Ended, Registry};

    const TIME: Duration = Duration::from_secs(10);
    const FOREVER: TunnelPatience = TunnelPatience { stalled: Duration::MAX, idle: None, half_closed: None };

    /// How a tunnel whose client has ended its side ends, if it does in [`TIME`] without a byte. It is polled twice.
    async fn half_closed(patience: TunnelPatience) -> Option<Cause> {
        let registry = Registry::new();
        let line = registry.add(Rc::new(()));
        let ((mut client, mut client_end), (mut upstream, _upstream_end)) = (duplex(64), duplex(64));
        client_end.shutdown().await.unwrap();
        let mut tunnel = Tunnel::default();
        let mut running = pin!(line.guard(tunnel.run(&mut client, &mut upstream, &line, patience)));
        assert!(poll!(&mut running).is_pending());
        let start = Instant::now();
        while start.elapsed().is_zero() {}
        assert!(poll!(&mut running).is_pending());
        registry.expire(start + TIME);
        match poll!(&mut running) {
            Poll::Pending => None,
            Poll::Ready(outcome) => outcome.err().map(|Ended(cause)| cause),
        }
    }

    #[tokio::test]
    async fn looks_at_a_peer_do_not_put_a_limit_off() {
        let idle = half_closed(TunnelPatience { idle: Some(TIME), ..FOREVER }).await;
        assert_eq!(idle, Some(Cause::Deadline(Wait::Idle)));
        let half = half_closed(TunnelPatience { half_closed: Some(TIME), ..FOREVER }).await;
        assert_eq!(half, Some(Cause::Deadline(Wait::Body)));
        assert_eq!(half_closed(FOREVER).await, None);
    }

    #[tokio::test]
    async fn what_each_side_has_sent_already_comes_first_and_is_counted_once_it_is_taken() {
        let line = Lifeline::new();
        let ((mut client, mut client_end), (mut upstream, mut upstream_end)) = (duplex(64), duplex(64));
        client_end.write_all(b"more").await.unwrap();
        upstream_end.write_all(b"bytes").await.unwrap();
        let mut tunnel = Tunnel::new(b"some", b"few ");
        assert_eq!((tunnel.received(), tunnel.sent()), (0, 0));
        {
            let mut running = pin!(tunnel.run(&mut client, &mut upstream, &line, FOREVER));
            assert!(poll!(&mut running).is_pending());
            let (mut there, mut back) = ([0; 8], [0; 9]);
            upstream_end.read_exact(&mut there).await.unwrap();
            client_end.read_exact(&mut back).await.unwrap();
            assert_eq!((&there, &back), (b"somemore", b"few bytes"));
        }
        assert_eq!((tunnel.received(), tunnel.sent()), (8, 9));
    }
}
