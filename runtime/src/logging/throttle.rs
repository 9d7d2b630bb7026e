//! Throttles log lines that clients can cause: some lines per source and in all; the rest is counted.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::drain;

/// Maximum lines in a window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRate {
    /// Length of a window.
    pub window: Duration,
    /// Lines per source in a window.
    pub per_source: u32,
    /// Lines of all sources in a window.
    pub all: u32,
    /// Sources that are distinguished in a window.
    pub sources: usize,
}

/// Decides which lines may be written. A source is any distinguishing key: an address, an identity.
#[derive(Debug)]
pub struct LogThrottle<K> {
    rate: LogRate,
    window: Mutex<ThrottleWindow<K>>,
}

/// Lines that were suppressed in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed<K> {
    /// The sources with the most suppressed lines, and their counts; at most [`NAMED`].
    pub by_source: Vec<(K, u64)>,
    /// Suppressed lines of all other sources.
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

/// Maximum sources that a [`Suppressed`] names.
pub const NAMED: usize = 10;

#[derive(Debug)]
struct ThrottleWindow<K> {
    began: Option<Instant>,
    lines: u32,
    sources: HashMap<K, SourceLines>,
    /// Suppressed lines of sources that are not distinguished.
    others: u64,
}

#[derive(Debug, Default)]
struct SourceLines {
    lines: u32,
    suppressed: u64,
}

impl Default for LogRate {
    /// Ten lines per source and 300 in all within ten seconds; a thousand sources.
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
    /// A throttle without any lines yet.
    pub fn new(rate: LogRate) -> Self {
        let window = ThrottleWindow { began: None, lines: 0, sources: HashMap::new(), others: 0 };
        Self { rate, window: Mutex::new(window) }
    }

    /// Length of a window: how often to call [`LogThrottle::take_suppressed`].
    pub fn window(&self) -> Duration {
        self.rate.window
    }

    /// Whether a line about this source may be written. A suppressed line is counted.
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

    /// The lines suppressed since the last call, if any.
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

    /// Reports the suppressed lines after each window, until the drain starts.
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

    fn lock(&self) -> MutexGuard<'_, ThrottleWindow<K>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> ThrottleWindow<K> {
    /// Starts a new window; the suppressed lines of the previous one stay until they are taken.
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
        // The next window allows lines again.
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
        // Sources without suppressed lines are not remembered.
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
