//! A client that is gone without a word is noticed by a ping.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// Without a byte from the client, before it is asked.
const INTERVAL: Duration = Duration::from_secs(30);
/// For the answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks a silent client whether it is there.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    sleep: Pin<Box<Sleep>>,
    /// What had been read when the sleep began.
    read: u64,
    is_asked: bool,
}

impl KeepAlive {
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self { pings, sleep: Box::pin(tokio::time::sleep(INTERVAL)), read: 0, is_asked: false }
    }

    /// Ready once the client has not answered. `read`: bytes that have come from it so far.
    pub(super) fn poll(&mut self, read: u64, context: &mut Context<'_>) -> Poll<()> {
        if let Some(pings) = &mut self.pings {
            // An answer is a byte read like any other.
            let _ = pings.poll_pong(context);
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            let is_silent = read == self.read;
            if is_silent && self.is_asked {
                return Poll::Ready(());
            }
            self.is_asked = is_silent && self.ask();
            self.read = read;
            let wait = if self.is_asked { TIMEOUT } else { INTERVAL };
            self.sleep.as_mut().reset(Instant::now() + wait);
        }
        Poll::Pending
    }

    fn ask(&mut self) -> bool {
        self.pings.as_mut().is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok())
    }
}
