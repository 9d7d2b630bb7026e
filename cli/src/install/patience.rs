//! Waiting for what a cluster does, where one look at it may fail.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How often is looked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Until when is waited, and what was said meanwhile.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Instant,
    said: BTreeSet<String>,
}

impl Patience {
    /// From now on.
    pub(super) fn new(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, said: BTreeSet::new() }
    }

    /// Whether the time is over.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Says on standard error what is waited for, unless that was said before: `key` tells.
    pub(super) fn say(&mut self, key: impl Into<String>, what: impl Display) {
        if self.said.insert(key.into()) {
            eprintln!("waiting: {what}");
        }
    }

    /// Returns when the next look is due.
    pub(super) async fn pause(&self) {
        sleep_until(self.deadline.min(Instant::now() + INTERVAL)).await;
    }

    /// Goes on after a look that failed: the API server may be away for a moment, and what was begun is not given up for
    /// that. The error once the time is over.
    pub(super) async fn bear(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if self.is_over() {
            return Err(error);
        }
        self.say(error.to_string(), format_args!("{error:#}"));
        self.pause().await;
        Ok(())
    }
}
