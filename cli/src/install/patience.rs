//! Polls a cluster until a deadline, tolerating failed requests.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Polling interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// A deadline, and the messages printed so far.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Instant,
    said: BTreeSet<String>,
}

impl Patience {
    /// A deadline `limit` from now.
    pub(super) fn new(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, said: BTreeSet::new() }
    }

    /// Whether the deadline has passed.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Prints on standard error what the command waits for, once per `key`.
    pub(super) fn say(&mut self, key: impl Into<String>, what: impl Display) {
        if self.said.insert(key.into()) {
            eprintln!("waiting: {what}");
        }
    }

    /// Returns when the next poll is due.
    pub(super) async fn pause(&self) {
        sleep_until(self.deadline.min(Instant::now() + INTERVAL)).await;
    }

    /// Continues after a failed request, because the API server may be unavailable for a moment. Returns the error once
    /// the deadline has passed.
    pub(super) async fn bear(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if self.is_over() {
            return Err(error);
        }
        self.say(error.to_string(), format_args!("{error:#}"));
        self.pause().await;
        Ok(())
    }
}
