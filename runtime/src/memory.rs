//! Memory that a peak has left behind goes back to the system.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tracing::debug;

/// From one look to the next.
const LOOK: Duration = Duration::from_secs(5);
/// How much more than at its least the process holds before its allocator is asked for anything.
const WORTHWHILE: u64 = 8 * 1024 * 1024;
/// The pause after a request that gave back less than an eighth of that: what is held is in use.
const IN_USE: Duration = Duration::from_secs(60);

/// What is known from the looks before.
struct Looks {
    /// The least that was held at any look.
    least: u64,
    /// Processor time that was used by the last look.
    used: Duration,
    /// Not before then.
    next: Instant,
}

/// Gives back what the allocator keeps free, whenever the process holds more than it did and is idle: less than a quarter
/// of one processor is used. Never returns.
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
        tidegate_memory::trim();
        let given = held.saturating_sub(resident().unwrap_or(held));
        debug!(held, given, "free memory went back to the system");
        if given < WORTHWHILE / 8 {
            self.next = now + IN_USE;
        }
    }
}

/// Bytes of memory that the process holds.
pub fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
