//! The healthy client that is watched, and the innocuous load for its baseline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::attacks::Attack;
use crate::site::{HostileSite, OTHER_CLIENTS};

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// Until the next check whether the daemon is busy enough.
const IDLE: Duration = Duration::from_millis(2);

/// The running client.
pub(crate) struct Victim {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<AnswersSeen>,
}

/// Every request: when it was made, how long it took, and whether it was answered.
pub(crate) struct AnswersSeen(Vec<(Instant, Duration, bool)>);

/// The client's results in a span of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeSpan {
    pub(crate) requests: usize,
    pub(crate) failed: usize,
    pub(crate) p99: Duration,
}

impl Victim {
    /// Starts the healthy client of an attack's target.
    pub(crate) fn start(site: &HostileSite, attack: &Attack) -> Self {
        let (mut client, ends) = ((attack.healthy)(site, 0), Arc::new(AtomicBool::new(false)));
        let stop = ends.clone();
        let run = move || {
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let is_answered = client.request();
                seen.push((begun, begun.elapsed(), is_answered));
                thread::park_timeout(PAUSE);
            }
            AnswersSeen(seen)
        };
        Self { ends, thread: site.shares.as_client(|| thread::spawn(run)) }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> AnswersSeen {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Waits while clients and attack run.
pub(crate) fn wait(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// Keeps an attack's target busy for this long with healthy clients instead of the attacker: up to this share of a
/// processor, or as much as the clients can.
pub(crate) fn keep_busy(site: &HostileSite, attack: &Attack, share: f64, time: Duration) {
    let daemon = site.daemon(attack.target);
    let (begun, before) = (Instant::now(), daemon.processor_time());
    let is_behind = || {
        let spent = daemon.processor_time().saturating_sub(before);
        spent.as_secs_f64() < share * begun.elapsed().as_secs_f64()
    };
    let is_behind = &is_behind;
    site.shares.as_attacker(|| {
        thread::scope(|scope| {
            for number in 1..=OTHER_CLIENTS {
                let mut client = (attack.healthy)(site, number);
                scope.spawn(move || {
                    while begun.elapsed() < time {
                        if is_behind() {
                            client.request();
                        } else {
                            thread::park_timeout(IDLE);
                        }
                    }
                });
            }
        });
    });
}

impl AnswersSeen {
    /// Results before this moment.
    pub(crate) fn until(&self, end: Instant) -> TimeSpan {
        TimeSpan::of(self.0.iter().filter(|(at, ..)| *at < end))
    }

    /// Results between two moments.
    pub(crate) fn between(&self, begin: Instant, end: Instant) -> TimeSpan {
        TimeSpan::of(self.0.iter().filter(|(at, ..)| (begin..end).contains(at)))
    }
}

impl TimeSpan {
    fn of<'a>(requests: impl Iterator<Item = &'a (Instant, Duration, bool)>) -> Self {
        let (mut times, mut failed) = (Vec::new(), 0);
        for (_, time, is_answered) in requests {
            times.push(*time);
            failed += usize::from(!is_answered);
        }
        times.sort();
        let p99 = times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
        Self { requests: times.len(), failed, p99 }
    }
}
