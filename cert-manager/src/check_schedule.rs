//! When a background task checks what it keeps.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// When a background task checks what it keeps: at once when a watch wakes it, and in any case once per interval. The
/// interval covers what no watch reports: files, the clock, and a watch that hangs.
#[derive(Debug, Clone)]
pub struct CheckSchedule {
    /// Notified after a change. One task waits for it; a notification during a check leads to another check.
    pub wake: Arc<Notify>,
    /// The longest time between two checks.
    pub interval: Duration,
}

impl CheckSchedule {
    /// The interval from now on. A check that takes longer than the interval delays the next one.
    pub(crate) fn ticks(&self) -> Interval {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }
}

impl Default for CheckSchedule {
    /// Every second, and when woken.
    fn default() -> Self {
        Self { wake: Arc::default(), interval: Duration::from_secs(1) }
    }
}
