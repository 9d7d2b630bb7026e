//! Shuts down a process, or a part of it, without cutting its connections.
//!
//! Everything that must finish before the process ends holds a [`Watch`]: it signals that draining has started, and
//! dropping it signals completion. Waiting costs a waker, checking costs one atomic load, and both work from any thread
//! and any runtime.

use std::time::Duration;

use tokio::sync::watch;

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Signals when to finish; the drain waits while it is held.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<bool>);

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainOutcome {
    /// Every holder finished in time.
    Complete,
    /// The deadline passed while this many holders had not finished.
    DeadlinePassed {
        /// Watches that are still held.
        remaining: usize,
    },
}

/// A trigger and its first watch; clone the watch for more.
pub fn channel() -> (Trigger, Watch) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Watch(receiver))
}

impl Trigger {
    /// Signals all holders to finish, without waiting for them. A second call has no effect.
    pub fn start(&self) {
        self.0.send_if_modified(|started| !std::mem::replace(started, true));
    }

    /// Signals all holders to finish and waits until the last one has finished or `deadline` has passed. The first
    /// watch counts as well: drop it or pass it on before.
    pub async fn drain(&self, deadline: Duration) -> DrainOutcome {
        self.start();
        match tokio::time::timeout(deadline, self.0.closed()).await {
            Ok(()) => DrainOutcome::Complete,
            Err(_) => match self.remaining() {
                0 => DrainOutcome::Complete,
                remaining => DrainOutcome::DeadlinePassed { remaining },
            },
        }
    }

    /// Number of watches that are held.
    pub fn remaining(&self) -> usize {
        self.0.receiver_count()
    }

    /// Another watch, for tasks that start after the first one was passed on.
    pub fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }
}

impl Watch {
    /// Returns once draining has started. A dropped trigger counts as started, because no drain can be waiting any
    /// more.
    pub async fn started(&mut self) {
        // An error means that the trigger was dropped.
        let _ = self.0.wait_for(|started| *started).await;
    }

    /// Whether draining has started.
    pub fn is_started(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests;
