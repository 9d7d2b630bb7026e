//! What an attack costs the daemon: memory at its peak, processor time.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tidegate_tests::daemon::Daemon;

/// Between two looks at memory.
const INTERVAL: Duration = Duration::from_millis(50);

/// A measurement that goes on.
pub(crate) struct Cost<'a> {
    daemon: &'a Daemon,
    memory: u64,
    processor: Duration,
    ends: Arc<AtomicBool>,
    peak: JoinHandle<u64>,
}

/// What it came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Resident bytes more than before, at the peak.
    pub(crate) memory: u64,
    pub(crate) processor: Duration,
}

impl<'a> Cost<'a> {
    pub(crate) fn begin(daemon: &'a Daemon) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (stop, pid) = (ends.clone(), daemon.pid());
        let peak = thread::spawn(move || {
            let mut peak = 0;
            while !stop.load(Ordering::Relaxed) {
                peak = resident(pid).max(peak);
                thread::park_timeout(INTERVAL);
            }
            peak
        });
        Self { daemon, memory: daemon.resident_bytes(), processor: daemon.processor_time(), ends, peak }
    }

    pub(crate) fn end(self) -> Spent {
        self.ends.store(true, Ordering::Relaxed);
        let peak = self.peak.join().unwrap();
        Spent {
            memory: peak.saturating_sub(self.memory),
            processor: self.daemon.processor_time().saturating_sub(self.processor),
        }
    }
}

/// Resident bytes of a process; 0 if it is gone.
fn resident(pid: u32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default();
    pages * 4096
}
