//! Returns memory of a past peak to the system.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tracing::debug;

/// Interval between checks.
const LOOK: Duration = Duration::from_secs(5);
/// How much more than its minimum the process must hold before the allocator is trimmed.
const WORTHWHILE: u64 = 8 * 1024 * 1024;
/// Pause after a trim that released less than an eighth of that: the memory is in use.
const IN_USE: Duration = Duration::from_secs(60);

/// State between checks.
struct Looks {
    /// Minimum memory at any check.
    least: u64,
    /// CPU time used until the last check.
    used: Duration,
    /// Earliest time of the next trim.
    next: Instant,
}

/// Makes the allocator release free memory whenever the process holds more than it did and is idle, which means less
/// than a quarter of one CPU. Never returns.
pub async fn give_back() {
    let Some(least) = resident() else { return };
    let mut looks = Looks { least, used: processor_time(), next: Instant::now() };
    loop {
        tokio::time::sleep(LOOK).await;
        looks.look();
    }
}

impl Looks {
    fn look(&mut self) {
        let Some(held) = resident() else { return };
        let used = processor_time();
        let is_idle = used.saturating_sub(self.used) < LOOK / 4;
        self.used = used;
        self.least = self.least.min(held);
        let now = Instant::now();
        if !is_idle || now < self.next || held < self.least + WORTHWHILE {
            return;
        }
        tidegate_system::memory::trim();
        let given = held.saturating_sub(resident().unwrap_or(held));
        debug!(held, given, "free memory went back to the system");
        if given < WORTHWHILE / 8 {
            self.next = now + IN_USE;
        }
    }
}

/// Resident memory of the process, in bytes.
pub fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
