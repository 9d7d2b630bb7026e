//! What an attack costs the daemon: peak memory, CPU time, lines in its log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tidegate_tests::daemon::Daemon;
use tidegate_tests::process::resident_bytes;

use crate::share::ProcessorShares;

/// Between two samples of memory.
const INTERVAL: Duration = Duration::from_millis(50);

/// A running measurement.
pub(crate) struct Cost<'a> {
    daemon: &'a Daemon,
    memory: u64,
    processor: Duration,
    log: u64,
    ends: Arc<AtomicBool>,
    peak: JoinHandle<u64>,
}

/// The result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Growth of resident bytes, at the peak.
    pub(crate) memory: u64,
    pub(crate) processor: Duration,
    /// Bytes of its log, including the healthy client's lines.
    pub(crate) log: u64,
}

impl<'a> Cost<'a> {
    /// Notes the daemon's usage, and samples its memory on the client's processor until [`Cost::end`].
    pub(crate) fn begin(daemon: &'a Daemon, shares: ProcessorShares) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (stop, pid) = (ends.clone(), daemon.pid());
        let watch = move || {
            let mut peak = 0;
            while !stop.load(Ordering::Relaxed) {
                // 0 if the daemon has ended.
                peak = resident_bytes(pid).unwrap_or_default().max(peak);
                thread::park_timeout(INTERVAL);
            }
            peak
        };
        Self {
            daemon,
            memory: daemon.resident_bytes(),
            processor: daemon.processor_time(),
            log: daemon.log_bytes(),
            ends,
            peak: shares.as_client(|| thread::spawn(watch)),
        }
    }

    /// The usage since the beginning; memory is that of the highest sample.
    pub(crate) fn end(self) -> Spent {
        self.ends.store(true, Ordering::Relaxed);
        let peak = self.peak.join().unwrap();
        Spent {
            memory: peak.saturating_sub(self.memory),
            processor: self.daemon.processor_time().saturating_sub(self.processor),
            log: self.daemon.log_bytes().saturating_sub(self.log),
        }
    }
}
