//! Each attack held against its bounds.

use std::fmt;
use std::time::Duration;

use crate::cost::Spent;
use crate::victim::Span;

/// What the healthy client's 99th percentile may be, times what it was before.
const MOST_DELAY: f64 = 2.0;
/// A percentile below this is good, whatever it was before: attacker, client and mesh share two processors here.
const UNNOTICED: Duration = Duration::from_millis(50);
/// What one byte of the attacker's may cost in memory.
const MOST_MEMORY: f64 = 10.0;
/// Memory that is not worth an alarm.
const SMALL: u64 = 16 << 20;

/// The result of every attack.
#[derive(Default)]
pub(crate) struct Report(pub(crate) Vec<Finding>);

/// What one attack came to.
pub(crate) struct Finding {
    pub(crate) attack: &'static str,
    pub(crate) before: Span,
    pub(crate) during: Span,
    pub(crate) cost: Spent,
    /// Bytes of the attacker's.
    pub(crate) sent: u64,
}

impl Report {
    pub(crate) fn is_well(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(Finding::is_well)
    }
}

impl Finding {
    fn is_well(&self) -> bool {
        let delay = self.during.p99.as_secs_f64() / self.before.p99.as_secs_f64().max(1e-6);
        let is_heard = self.during.requests > 0 && self.during.failed == 0;
        let is_quick = delay < MOST_DELAY || self.during.p99 < UNNOTICED;
        is_heard && is_quick && (self.cost.memory < SMALL || self.memory_per_byte() <= MOST_MEMORY)
    }

    fn memory_per_byte(&self) -> f64 {
        self.cost.memory as f64 / self.sent.max(1) as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| attack | healthy client: p99 before → during (ms) | failed of requests | sent (MB) | memory (MB) | \
             memory per byte | processor (s) | processor per MB (ms) | |\n|---|---|---:|---:|---:|---:|---:|---:|---|"
        )?;
        for finding in &self.0 {
            let Finding { attack, before, during, cost, sent } = finding;
            let ms = |time: Duration| time.as_secs_f64() * 1000.0;
            let (sent_mb, memory_mb) = (*sent as f64 / 1e6, cost.memory as f64 / 1e6);
            let processor = cost.processor.as_secs_f64();
            writeln!(
                f,
                "| {attack} | {:.1} → {:.1} | {} of {} | {sent_mb:.1} | {memory_mb:.1} | {:.1} | {processor:.1} | {:.0} | {} |",
                ms(before.p99),
                ms(during.p99),
                during.failed,
                during.requests,
                finding.memory_per_byte(),
                processor * 1000.0 / sent_mb.max(1e-3),
                if finding.is_well() { "" } else { "**not well**" }
            )?;
        }
        writeln!(f, "\n{}", if self.is_well() { "All is well." } else { "Not well." })
    }
}
