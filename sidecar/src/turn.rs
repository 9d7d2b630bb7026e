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
mod tests;
