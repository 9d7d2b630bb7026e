//! Lines that others cause, no more of them than a log can bear: a few of each source and of all, the rest counted.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::drain;

/// How many lines there may be in a window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRate {
    /// How long a window is.
    pub window: Duration,
    /// Lines of one source in it.
    pub per_source: u32,
    /// Lines of all sources in it.
    pub all: u32,
    /// Sources that are told apart in it.
    pub sources: usize,
}

/// Says which lines may be written. A source is whatever can be told apart: an address, an identity.
#[derive(Debug)]
pub struct LogThrottle<K> {
    rate: LogRate,
    window: Mutex<Window<K>>,
}

/// What was left out in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed<K> {
    /// The sources of the most lines, and how many; at most [`NAMED`].
    pub by_source: Vec<(K, u64)>,
    /// Lines of all others.
    pub others: u64,
}

/// `10.0.0.1: 1598, others: 3`.
impl<K: fmt::Display> fmt::Display for Suppressed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (source, count)) in self.by_source.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{source}: {count}")?;
        }
        match self.others {
            0 => Ok(()),
            others if self.by_source.is_empty() => write!(f, "others: {others}"),
            others => write!(f, ", others: {others}"),
        }
    }
}

/// The most sources that a [`Suppressed`] names.
pub const NAMED: usize = 10;

#[derive(Debug)]
struct Window<K> {
    began: Option<Instant>,
    lines: u32,
    sources: HashMap<K, Source>,
    /// Lines left out of sources that are not told apart.
    others: u64,
}

#[derive(Debug, Default)]
struct Source {
    lines: u32,
    suppressed: u64,
}

impl Default for LogRate {
    /// Ten lines of a source and 300 in all within ten seconds; a thousand sources.
    fn default() -> Self {
        Self { window: Duration::from_secs(10), per_source: 10, all: 300, sources: 1000 }
    }
}

impl<K: Clone + Eq + Hash> Default for LogThrottle<K> {
    fn default() -> Self {
        Self::new(LogRate::default())
    }
}

impl<K: Clone + Eq + Hash> LogThrottle<K> {
    /// Nothing was written yet.
    pub fn new(rate: LogRate) -> Self {
        let window = Window { began: None, lines: 0, sources: HashMap::new(), others: 0 };
        Self { rate, window: Mutex::new(window) }
    }

    /// How long a window is: how often [`LogThrottle::take_suppressed`] is to be called.
    pub fn window(&self) -> Duration {
        self.rate.window
    }

    /// Whether a line about this source may be written. One that may not is counted.
    pub fn admits(&self, source: &K, now: Instant) -> bool {
        let mut window = self.lock();
        let began = *window.began.get_or_insert(now);
        if now.saturating_duration_since(began) >= self.rate.window {
            window.begin(now);
        }
        let is_full = window.lines >= self.rate.all;
        if !window.sources.contains_key(source) && window.sources.len() >= self.rate.sources {
            window.others += 1;
            return false;
        }
        let of_source = window.sources.entry(source.clone()).or_default();
        if is_full || of_source.lines >= self.rate.per_source {
            of_source.suppressed += 1;
            return false;
        }
        of_source.lines += 1;
        window.lines += 1;
        true
    }

    /// What was left out since the last call; nothing if nothing was.
    pub fn take_suppressed(&self) -> Option<Suppressed<K>> {
        let mut window = self.lock();
        let mut others = std::mem::take(&mut window.others);
        let counted = window.sources.iter_mut().filter(|(_, source)| source.suppressed > 0);
        let mut by_source: Vec<_> =
            counted.map(|(key, source)| (key.clone(), std::mem::take(&mut source.suppressed))).collect();
        drop(window);
        by_source.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        others += by_source.split_off(by_source.len().min(NAMED)).iter().map(|(_, count)| count).sum::<u64>();
        (others > 0 || !by_source.is_empty()).then_some(Suppressed { by_source, others })
    }

    /// Says after each window what was left out in it, until the drain starts.
    pub async fn summarize(&self, mut drain: drain::Watch, say: impl Fn(Suppressed<K>)) {
        let mut interval = tokio::time::interval(self.rate.window);
        loop {
            tokio::select! {
                () = drain.started() => return,
                _ = interval.tick() => {}
            }
            if let Some(suppressed) = self.take_suppressed() {
                say(suppressed);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Window<K>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Window<K> {
    /// A new one; what was left out in the one before stays until it is taken.
    fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.lines = 0;
        self.sources.retain(|_, source| {
            source.lines = 0;
            source.suppressed > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: LogRate = LogRate { window: Duration::from_secs(10), per_source: 2, all: 5, sources: 3 };

    fn admitted(throttle: &LogThrottle<u32>, source: u32, count: u32, now: Instant) -> usize {
        (0..count).filter(|_| throttle.admits(&source, now)).count()
    }

    #[test]
    fn each_source_has_its_lines_and_the_rest_is_counted() {
        let (throttle, now) = (LogThrottle::new(RATE), Instant::now());
        assert_eq!(admitted(&throttle, 1, 1600, now), 2);
        assert_eq!(admitted(&throttle, 2, 1, now), 1);
        let left_out = throttle.take_suppressed().unwrap();
        assert_eq!(left_out, Suppressed { by_source: vec![(1, 1598)], others: 0 });
        assert_eq!(throttle.take_suppressed(), None);
        // In the next window it has lines again.
        assert_eq!(admitted(&throttle, 1, 3, now + Duration::from_secs(9)), 0);
        assert_eq!(admitted(&throttle, 1, 3, now + Duration::from_secs(10)), 2);
        assert_eq!(throttle.take_suppressed().unwrap().by_source, [(1, 4)]);
    }

    #[test]
    fn many_sources_have_no_more_lines_and_memory_than_all_may() {
        let (throttle, now) = (LogThrottle::new(RATE), Instant::now());
        let total: usize = (0..1000).map(|source| admitted(&throttle, source, 3, now)).sum();
        assert_eq!(total, 5);
        assert_eq!(throttle.lock().sources.len(), 3);
        let left_out = throttle.take_suppressed().unwrap();
        assert_eq!(left_out.by_source.iter().map(|(_, count)| count).sum::<u64>() + left_out.others, 2995);
        // A source without lines left to report is forgotten.
        assert_eq!(admitted(&throttle, 7, 1, now + Duration::from_secs(10)), 1);
        assert_eq!(throttle.lock().sources.len(), 1);
    }

    #[test]
    fn only_the_loudest_are_named() {
        let rate = LogRate { sources: 100, per_source: 0, ..RATE };
        let (throttle, now) = (LogThrottle::new(rate), Instant::now());
        for source in 0..50 {
            admitted(&throttle, source, source + 1, now);
        }
        let left_out = throttle.take_suppressed().unwrap();
        assert_eq!(left_out.by_source.len(), NAMED);
        assert_eq!(left_out.by_source[0], (49, 50));
        assert_eq!(left_out.others, (1..=40).sum::<u64>());
        let shown = left_out.to_string();
        assert!(shown.starts_with("49: 50, 48: 49, ") && shown.ends_with(", 40: 41, others: 820"), "{shown}");
    }
}
