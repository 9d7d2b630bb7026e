//! Changes that take longer than the interval between two of them.

use std::thread::{self, JoinHandle};

/// One change at a time, in its own thread.
#[derive(Default)]
pub(super) struct BackgroundLoad {
    running: Option<JoinHandle<Result<bool, String>>>,
    done: u32,
    problems: Vec<String>,
}

impl BackgroundLoad {
    /// Starts a change unless the previous one is still running; returns whether it did. The change returns whether it
    /// has changed something, or why it could not.
    pub(super) fn begin(&mut self, change: impl FnOnce() -> Result<bool, String> + Send + 'static) -> bool {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return false;
        }
        self.join();
        self.running = Some(thread::spawn(change));
        true
    }

    /// Waits for the running change; returns every problem.
    pub(super) fn finish(&mut self) -> Vec<String> {
        self.join();
        std::mem::take(&mut self.problems)
    }

    /// How many have changed something.
    pub(super) fn done(&self) -> u32 {
        self.done
    }

    fn join(&mut self) {
        match self.running.take().map(|running| running.join().unwrap()) {
            Some(Ok(has_changed)) => self.done += u32::from(has_changed),
            Some(Err(problem)) => self.problems.push(problem),
            None => {}
        }
    }
}
