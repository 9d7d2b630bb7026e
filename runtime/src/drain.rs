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
mod tests {
    use std::future::pending;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_drain_ends_when_the_last_holder_is_done() {
        let (trigger, watch) = channel();
        let holders: Vec<_> = (0..3)
            .map(|_| {
                let mut watch = watch.clone();
                tokio::spawn(async move { watch.started().await })
            })
            .collect();
        drop(watch);
        assert_eq!(trigger.drain(LONG).await, DrainOutcome::Complete);
        for holder in holders {
            holder.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_holder_that_never_ends_is_given_up_at_the_deadline() {
        let (trigger, watch) = channel();
        let other = watch.clone();
        assert_eq!(
            trigger.drain(Duration::from_millis(1)).await,
            DrainOutcome::DeadlinePassed { remaining: 2 }
        );
        assert!(watch.is_started() && other.is_started());
    }

    #[tokio::test]
    async fn who_comes_after_the_start_learns_of_it_at_once() {
        let (trigger, watch) = channel();
        assert!(!watch.is_started());
        trigger.start();
        let mut late = trigger.watch();
        late.started().await;
        assert!(late.is_started() && watch.is_started());
    }

    #[tokio::test]
    async fn a_trigger_that_is_gone_counts_as_started() {
        let (trigger, mut watch) = channel();
        drop(trigger);
        watch.started().await;
        assert!(watch.is_started());
    }

    #[test]
    fn holders_may_live_on_other_threads_and_runtimes() {
        fn block_on<F: Future>(future: F) -> F::Output {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
        }
        let (trigger, watch) = channel();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let mut watch = watch.clone();
                std::thread::spawn(move || {
                    block_on(async {
                        tokio::select! {
                            () = watch.started() => {}
                            () = pending() => {}
                        }
                    });
                })
            })
            .collect();
        drop(watch);
        assert_eq!(block_on(trigger.drain(LONG)), DrainOutcome::Complete);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
