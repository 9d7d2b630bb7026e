//! The healthy client: a request at a time over mutual TLS, on connections that it makes anew now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::site::Site;

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// Requests on a connection.
const PER_CONNECTION: usize = 20;

/// The client while it runs.
pub(crate) struct Victim {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// Every request: when it was made, how long it took, and whether it was answered.
pub(crate) struct Seen(Vec<(Instant, Duration, bool)>);

/// What the client saw in a span of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) requests: usize,
    pub(crate) failed: usize,
    pub(crate) p99: Duration,
}

impl Victim {
    /// Starts.
    pub(crate) fn start(site: &Site) -> Self {
        let (client, ends) = (site.healthy(), Arc::new(AtomicBool::new(false)));
        let stop = ends.clone();
        let thread = thread::spawn(move || {
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let Ok(mut connection) = client.connect() else {
                    seen.push((begun, begun.elapsed(), false));
                    thread::park_timeout(PAUSE);
                    continue;
                };
                for _ in 0..PER_CONNECTION {
                    let begun = Instant::now();
                    let is_answered = connection.get("/get").is_ok_and(|answer| answer.status() == 200);
                    seen.push((begun, begun.elapsed(), is_answered));
                    if !is_answered || stop.load(Ordering::Relaxed) {
                        break;
                    }
                    thread::park_timeout(PAUSE);
                }
            }
            Seen(seen)
        });
        Self { ends, thread }
    }

    /// Lets it run for a while.
    pub(crate) fn wait(&self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
        }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Seen {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Seen {
    /// What was seen before this moment.
    pub(crate) fn until(&self, end: Instant) -> Span {
        Span::of(self.0.iter().filter(|(at, ..)| *at < end))
    }

    /// What was seen between two moments.
    pub(crate) fn between(&self, begin: Instant, end: Instant) -> Span {
        Span::of(self.0.iter().filter(|(at, ..)| (begin..end).contains(at)))
    }
}

impl Span {
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
