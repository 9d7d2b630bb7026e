//! Polls a cluster until a deadline, tolerating failed requests.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A deadline, and the messages printed so far.
#[derive(Debug)]
pub(crate) struct Patience {
    deadline: Instant,
    interval: Duration,
    /// Keys of the messages that were printed, so that each is printed once.
    said: BTreeSet<String>,
}

impl Patience {
    /// A deadline `limit` from now, and the time between two polls.
    pub(crate) fn new(limit: Duration, interval: Duration) -> Self {
        Self { deadline: Instant::now() + limit, interval, said: BTreeSet::new() }
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Prints on standard error what the command waits for, once per `key`.
    pub(crate) fn say(&mut self, key: impl Into<String>, what: impl Display) {
        if self.said.insert(key.into()) {
            eprintln!("waiting: {what}");
        }
    }

    /// Returns when the next poll is due.
    pub(crate) async fn pause(&self) {
        sleep_until(self.deadline.min(Instant::now() + self.interval)).await;
    }

    /// Continues after a failed request, because the API server may be unavailable for a moment. Returns the error once
    /// the deadline has passed.
    pub(crate) async fn bear(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if self.is_over() {
            return Err(error);
        }
        self.say(error.to_string(), format_args!("{error:#}"));
        self.pause().await;
        Ok(())
    }
}
