//! How much a connection moves before the worker's others have their turn.
//!
//! A thread drives all its connections. One whose peers are both ready could go on for megabytes, and hundreds of them,
//! as after a burst of clients that ask for large answers, would keep a small request waiting for seconds.

use std::task::{Context, Poll};

/// Bytes of a turn in each direction: one full read and write of a long body.
const BYTES: usize = 64 * 1024;

/// What is left of a turn. Made anew each time that a connection is polled.
pub(crate) struct Turn {
    left: usize,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self { left: BYTES }
    }

    /// So many bytes were moved.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Ready as long as the turn lasts. After that the task is woken at once, and goes on once all others that are
    /// ready have had their turn.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.left > 0 {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use futures_util::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::lifeline::Lifeline;
    use crate::pump::{Patience, Pump};

    #[tokio::test]
    async fn a_connection_whose_both_ends_are_ready_moves_one_turn_at_a_time() {
        const ALL: usize = 1 << 20;
        let (client, mut client_end) = tokio::io::duplex(ALL);
        let (upstream, mut upstream_end) = tokio::io::duplex(ALL);
        upstream_end.write_all(&vec![b'x'; ALL]).await.unwrap();
        let line = Lifeline::new();
        let mut pump = Pump::new(client, upstream, &[]);
        let patience = Patience { stalled: std::time::Duration::MAX, idle: None };
        let mut running = Box::pin(pump.run(&line, patience));
        let (mut received, mut turns) = (BytesMut::with_capacity(ALL), 0);
        while received.len() < ALL {
            assert!(poll!(&mut running).is_pending());
            turns += 1;
            let before = received.len();
            while poll!(Box::pin(client_end.read_buf(&mut received))).is_ready() {}
            assert!(received.len() - before <= BYTES, "{}", received.len() - before);
            tokio::task::yield_now().await;
        }
        assert!(turns >= ALL / BYTES, "{turns}");
    }
}
