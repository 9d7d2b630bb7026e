//! Two directions of bytes in one task. A direction holds a buffer only while its receiver does not take what was
//! read for it; everything else passes through one buffer of the thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::lifeline::{Lifeline, Wait};
use crate::stream::ClientStream;
use crate::telemetry::ResponseFlag;

/// The most bytes that a direction holds, or moves at once.
const CHUNK: usize = 32 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// A client and the app, connected.
pub(super) struct Pump {
    client: ClientStream,
    app: TcpStream,
    to_app: Direction,
    to_client: Direction,
}

/// Whose connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Client,
    App,
}

/// One direction.
#[derive(Default)]
struct Direction {
    /// What was read and not written yet, from `start` on.
    held: Vec<u8>,
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

impl Pump {
    /// A pump that begins with bytes that were read from the client already.
    pub(super) fn new(client: ClientStream, app: TcpStream, received: &[u8]) -> Self {
        let to_app = Direction { held: received.to_vec(), ..Direction::default() };
        Self { client, app, to_app, to_client: Direction::default() }
    }

    /// Carries bytes until both sides are done. A receiver that takes nothing for this long has failed.
    pub(super) async fn run(&mut self, line: &Lifeline, patience: Duration) -> Result<(), Failure> {
        let mut waits_since = None;
        poll_fn(|context| {
            let Self { client, app, to_app, to_client } = self;
            let there = to_app.poll(context, client, app).map_err(|broken| match broken {
                Broken::From => Failure::Client,
                Broken::To => Failure::App,
            })?;
            let back = to_client.poll(context, app, client).map_err(|broken| match broken {
                Broken::From => Failure::App,
                Broken::To => Failure::Client,
            })?;
            if there.is_ready() && back.is_ready() {
                return Poll::Ready(Ok(()));
            }
            let moved = to_app.moved + to_client.moved;
            if to_app.held.is_empty() && to_client.held.is_empty() {
                if waits_since.take().is_some() {
                    line.at_ease();
                }
            } else if waits_since != Some(moved) {
                waits_since = Some(moved);
                line.within(patience, Wait::Body);
            }
            Poll::Pending
        })
        .await
    }

    /// Bytes that the app has got.
    pub(super) fn received(&self) -> u64 {
        self.to_app.moved
    }

    /// Bytes that the client has got.
    pub(super) fn sent(&self) -> u64 {
        self.to_client.moved
    }

    pub(super) fn into_parts(self) -> (ClientStream, TcpStream) {
        (self.client, self.app)
    }
}

impl Direction {
    /// Ready once the sender is done and the receiver knows.
    fn poll<F, T>(&mut self, context: &mut Context<'_>, from: &mut F, to: &mut T) -> Poll<Result<(), Broken>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
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
            self.start = 0;
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *to).poll_shutdown(context)).map_err(|_| Broken::To)?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            match self.move_some(context, from, to)? {
                Poll::Ready(()) => {}
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
            let mut buffer = ReadBuf::new(scratch);
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
            Ok(Poll::Ready(()))
        })
    }
}

impl Failure {
    pub(super) fn flag(self) -> ResponseFlag {
        match self {
            Self::Client => ResponseFlag::DownstreamConnectionTermination,
            Self::App => ResponseFlag::UpstreamConnectionTermination,
        }
    }

    pub(super) fn details(self) -> &'static str {
        match self {
            Self::Client => "downstream_remote_disconnect",
            Self::App => "upstream_reset_after_connection",
        }
    }
}
