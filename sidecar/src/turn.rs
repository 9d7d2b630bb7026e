//! Limits how much a connection moves before other connections of the worker get their turn.
//!
//! One thread drives all of its connections. A connection whose peers are both ready could move megabytes, and hundreds
//! of them, as after a burst of clients that request large responses, would delay a small request for seconds. So a
//! connection yields after each turn, and when more than [`AT_ONCE`] connections have yielded, the others wait in a
//! queue. Between two groups of them, the worker serves every connection that has become ready meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// Bytes per turn in each direction: one full read and write of a long body.
const TURN_BYTES: usize = 64 * 1024;

/// Turns that follow each other before the worker looks for other work: about half a millisecond.
const AT_ONCE: usize = 16;

/// The longest queue. An event may wake a connection that waits, and it then waits twice; beyond this, connections
/// continue as if there were no queue.
const MAX_WAITING: usize = 32 * 1024;

thread_local! {
    static QUEUE: TurnQueue = const { TurnQueue::new() };
}

/// The remaining budget of a turn. Created each time a connection is polled.
pub(crate) struct Turn {
    left: usize,
}

/// A worker's connections that wait for their next turn.
struct TurnQueue {
    waiting: RefCell<VecDeque<Waker>>,
    /// Turns that may begin before the worker looks for other work.
    left: Cell<usize>,
    /// Whether [`serve`] runs on this thread.
    is_served: Cell<bool>,
    /// Of [`serve`] while the queue is empty.
    server: Cell<Option<Waker>>,
}

/// Empties the queue when [`serve`] ends.
struct Serving;

/// Gives the connections of this thread their turns. Each worker runs it as a task.
pub(crate) async fn serve() {
    QUEUE.with(|queue| queue.is_served.set(true));
    let _serving = Serving;
    loop {
        poll_fn(|context| QUEUE.with(|queue| queue.poll_waiting(context))).await;
        QUEUE.with(TurnQueue::begin_turns);
        // Returns once the runtime has looked for events and has run what they woke.
        tokio::task::yield_now().await;
    }
}

impl Turn {
    /// A full budget.
    pub(crate) fn new() -> Self {
        Self { left: TURN_BYTES }
    }

    /// Records that this many bytes were moved.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Ready as long as the turn lasts. Afterwards the task is woken for its next turn.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.left > 0 {
            return Poll::Ready(());
        }
        QUEUE.with(|queue| queue.enter(context.waker()));
        Poll::Pending
    }
}

impl TurnQueue {
    const fn new() -> Self {
        Self {
            waiting: RefCell::new(VecDeque::new()),
            left: Cell::new(AT_ONCE),
            is_served: Cell::new(false),
            server: Cell::new(None),
        }
    }

    /// Wakes the task at once if there is a turn left, and otherwise when [`serve`] gets to it.
    fn enter(&self, task: &Waker) {
        let left = self.left.get();
        if left > 0 || !self.is_served.get() {
            self.left.set(left.saturating_sub(1));
            task.wake_by_ref();
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        // Both directions of a connection may end their turns in one poll.
        if waiting.back().is_some_and(|last| last.will_wake(task)) {
            return;
        }
        if waiting.len() >= MAX_WAITING {
            task.wake_by_ref();
            return;
        }
        waiting.push_back(task.clone());
        drop(waiting);
        if let Some(server) = self.server.take() {
            server.wake();
        }
    }

    fn poll_waiting(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.waiting.borrow().is_empty() {
            self.server.set(Some(context.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Wakes the tasks that have waited longest, and leaves the rest of [`AT_ONCE`] to those that come.
    fn begin_turns(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let count = waiting.len().min(AT_ONCE);
        self.left.set(AT_ONCE - count);
        waiting.drain(..count).for_each(Waker::wake);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The thread's last tasks may be dropped after its local values.
        let _ = QUEUE.try_with(|queue| {
            queue.is_served.set(false);
            queue.waiting.take().into_iter().for_each(Waker::wake);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use bytes::BytesMut;
    use futures_util::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::lifeline::Lifeline;
    use crate::tunnel::{Tunnel, TunnelPatience};

    #[tokio::test]
    async fn a_connection_whose_both_ends_are_ready_moves_one_turn_at_a_time() {
        const ALL: usize = 1 << 20;
        let (mut client, mut client_end) = tokio::io::duplex(ALL);
        let (mut upstream, mut upstream_end) = tokio::io::duplex(ALL);
        upstream_end.write_all(&vec![b'x'; ALL]).await.unwrap();
        let line = Lifeline::new();
        let mut tunnel = Tunnel::default();
        let patience = TunnelPatience { stalled: std::time::Duration::MAX, idle: None, half_closed: None };
        let mut running = Box::pin(tunnel.run(&mut client, &mut upstream, &line, patience));
        let (mut received, mut turns) = (BytesMut::with_capacity(ALL), 0);
        while received.len() < ALL {
            assert!(poll!(&mut running).is_pending());
            turns += 1;
            let before = received.len();
            while poll!(Box::pin(client_end.read_buf(&mut received))).is_ready() {}
            assert!(received.len() - before <= TURN_BYTES, "{}", received.len() - before);
            tokio::task::yield_now().await;
        }
        assert!(turns >= ALL / TURN_BYTES, "{turns}");
    }

    /// Moves bytes without end, a turn each time that it is polled.
    async fn move_forever(turns: Rc<Cell<usize>>) {
        poll_fn(|context| {
            let mut turn = Turn::new();
            turn.spend(TURN_BYTES);
            turns.set(turns.get() + 1);
            turn.poll(context)
        })
        .await;
    }

    #[test]
    fn a_ready_connection_waits_for_few_turns_however_many_others_move_bytes() {
        const MOVING: usize = 500;
        let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            tokio::task::spawn_local(serve());
            tokio::task::yield_now().await;
            let turns = Rc::new(Cell::new(0));
            for _ in 0..MOVING {
                tokio::task::spawn_local(move_forever(turns.clone()));
            }
            // Each has had its first turn, and waits in the queue.
            while turns.get() < 2 * MOVING {
                tokio::task::yield_now().await;
            }
            for _ in 0..10 * MOVING / AT_ONCE {
                let before = turns.get();
                tokio::task::yield_now().await;
                let between = turns.get() - before;
                assert!((1..=AT_ONCE).contains(&between), "{between}");
            }
        });
    }
}
