//! Detects clients that disappeared without closing the connection, with pings.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// How long a client may be silent before it is sent a ping.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long the client may take to respond to a ping.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Pings a silent client.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    sleep: Pin<Box<Sleep>>,
    /// Number of bytes that had been received when the timer was set.
    read: u64,
    is_ping_sent: bool,
}

impl KeepAlive {
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self { pings, sleep: Box::pin(tokio::time::sleep(INTERVAL)), read: 0, is_ping_sent: false }
    }

    /// Ready if the client did not respond. `read`: number of bytes received so far.
    pub(super) fn poll(&mut self, read: u64, context: &mut Context<'_>) -> Poll<()> {
        if let Some(pings) = &mut self.pings {
            // A pong counts as received bytes like any other frame.
            let _ = pings.poll_pong(context);
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            let is_silent = read == self.read;
            if is_silent && self.is_ping_sent {
                return Poll::Ready(());
            }
            self.is_ping_sent = is_silent && self.send_ping();
            self.read = read;
            let wait = if self.is_ping_sent { TIMEOUT } else { INTERVAL };
            self.sleep.as_mut().reset(Instant::now() + wait);
        }
        Poll::Pending
    }

    /// Sends a ping, if possible.
    fn send_ping(&mut self) -> bool {
        self.pings.as_mut().is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok())
    }
}
