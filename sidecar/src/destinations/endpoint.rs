//! What this process knows of an endpoint: how busy it is, how fast it responds, and whether it fails. All workers share
//! it, without locks: each field is an atomic of its own, and a lost update costs one sample.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::peak_ewma::PeakEwma;

/// How long an endpoint is ejected for the first time; each further time doubles it, up to [`MOST_EJECTED_FOR`], and up to
/// half of that is added at random, so that the sidecars of a mesh do not all come back at once.
const EJECTED_FOR: Duration = Duration::from_secs(5);
const MOST_EJECTED_FOR: Duration = Duration::from_secs(60);

/// How long one connection or request may test an endpoint that comes back, before another one does.
const TRIAL: Duration = Duration::from_secs(5);

/// Failures in a row after which an endpoint is ejected: Envoy's `consecutive_5xx`.
const FAILURES: u32 = 5;

/// An endpoint that is new to a backend gets its full share of the load after this.
const SLOW_START: Duration = Duration::from_secs(10);

/// The least share of a new endpoint: Envoy's `min_weight_percent`.
const LEAST_SHARE: f64 = 0.1;

/// What one unobserved endpoint with open requests costs, in microseconds: more than any that has responded.
const UNKNOWN: f64 = 1e9;

/// State of an endpoint. It outlives changes of the backend.
#[derive(Debug, Default)]
pub(super) struct EndpointState {
    /// Connections of opaque bytes, and requests.
    open: AtomicUsize,
    latency: PeakEwma,
    /// Failures in a row.
    failures: AtomicU32,
    /// Ejections in a row, without a success between them.
    ejections: AtomicU32,
    /// [`Moment`] in milliseconds until which it is ejected.
    ejected_until: AtomicU64,
    /// [`Moment`] in milliseconds at which it was added to a backend that was in use; zero: with the backend.
    added: AtomicU64,
}

/// The endpoints of a backend.
pub(super) type Peers = Arc<[Arc<EndpointState>]>;

/// A connection's or a request's place in the load of its endpoint, until it is dropped.
pub(crate) struct LoadSlot {
    state: Arc<EndpointState>,
    peers: Peers,
    since: Moment,
}

/// Since the first use of this clock, which starts at one second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    micros: u64,
}

impl EndpointState {
    /// Of an endpoint that joins a backend which is in use.
    pub(super) fn added(now: Moment) -> Self {
        Self { added: now.millis().into(), ..Self::default() }
    }

    /// Connections and requests that are open.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How long a further request is expected to take, in microseconds: the lower, the better.
    pub(super) fn cost(&self, now: Moment) -> f64 {
        let open = self.open() as f64;
        let expected = match self.latency.get(now.millis()) {
            Some(latency) => latency * (open + 1.0),
            None if open > 0.0 => UNKNOWN + open,
            None => 0.0,
        };
        expected / self.share(now)
    }

    /// The share of the load that a new endpoint gets, up to one.
    fn share(&self, now: Moment) -> f64 {
        let added = self.added.load(Ordering::Relaxed);
        if added == 0 {
            return 1.0;
        }
        let age = now.millis().saturating_sub(added) as f64;
        let share = age / SLOW_START.as_millis() as f64;
        if share >= 1.0 {
            self.added.store(0, Ordering::Relaxed);
        }
        share.clamp(LEAST_SHARE, 1.0)
    }

    /// Whether it is left out while there are others.
    pub(super) fn is_ejected(&self, now: Moment) -> bool {
        self.ejected_until() > now.millis()
    }

    /// In milliseconds.
    pub(super) fn ejected_until(&self) -> u64 {
        self.ejected_until.load(Ordering::Relaxed)
    }

    fn eject(&self, now: Moment) {
        let before = self.ejections.fetch_add(1, Ordering::Relaxed);
        let length = EJECTED_FOR.saturating_mul(1 << before.min(8)).min(MOST_EJECTED_FOR);
        let length = length.mul_f64(1.0 + rand::random::<f64>() / 2.0);
        self.ejected_until.store(now.after(length), Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }

    fn succeeded(&self) {
        // Most requests change nothing: a store would take the cache line from the other workers.
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.ejections.load(Ordering::Relaxed) > 0 {
            self.ejections.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }
}

impl LoadSlot {
    pub(super) fn new(state: &Arc<EndpointState>, peers: &Peers) -> Self {
        let since = Moment::now();
        state.open.fetch_add(1, Ordering::Relaxed);
        if state.ejections.load(Ordering::Relaxed) > 0 {
            // The result of this one decides for the others.
            state.ejected_until.fetch_max(since.after(TRIAL), Ordering::Relaxed);
        }
        Self { state: state.clone(), peers: peers.clone(), since }
    }

    /// The endpoint cannot be reached.
    pub(crate) fn unreachable(&self) {
        self.state.eject(Moment::now());
    }

    /// The connection is open, or the response has begun.
    pub(crate) fn succeeded(&self) {
        self.succeeded_after(Moment::now().micros.saturating_sub(self.since.micros));
    }

    /// The same, after so many microseconds.
    pub(crate) fn succeeded_after(&self, micros: u64) {
        self.state.latency.observe(Moment::now().millis(), micros);
        self.state.succeeded();
    }

    /// The endpoint was reached and failed: a broken connection, or a response that says so (502, 503, 504). After several
    /// in a row it is ejected, unless half of its backend is: the rest could not bear the load.
    pub(crate) fn failed(&self) {
        let now = Moment::now();
        if self.state.failures.fetch_add(1, Ordering::Relaxed) + 1 < FAILURES {
            return;
        }
        let ejected = self.peers.iter().filter(|peer| peer.is_ejected(now)).count();
        if (ejected + 1) * 2 <= self.peers.len() {
            self.state.eject(now);
        }
    }
}

impl Drop for LoadSlot {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Moment {
    pub(super) fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let micros = u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX);
        Self { micros: micros.saturating_add(1_000_000) }
    }

    pub(super) fn millis(self) -> u64 {
        self.micros / 1000
    }

    #[cfg(test)]
    pub(super) fn at_seconds(seconds: u64) -> Self {
        Self { micros: seconds * 1_000_000 }
    }

    /// In milliseconds.
    fn after(self, length: Duration) -> u64 {
        self.millis().saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::at_seconds(seconds)
    }

    fn peers(count: usize) -> Peers {
        (0..count).map(|_| Arc::default()).collect()
    }

    #[test]
    fn each_ejection_in_a_row_is_longer_up_to_a_minute_and_a_half() {
        let state = EndpointState::default();
        let length = |now| {
            state.eject(at(now));
            (state.ejected_until() - now * 1000) / 1000
        };
        for (now, shortest) in [(10, 5), (20, 10), (40, 20), (80, 40), (200, 60), (400, 60), (800, 60)] {
            let length = length(now);
            assert!((shortest..=shortest * 3 / 2).contains(&length), "{length} at {now}");
        }
        state.succeeded();
        assert!(!state.is_ejected(at(800)));
        state.eject(at(900));
        assert!((5..=7).contains(&(state.ejected_until() / 1000 - 900)));
    }

    #[test]
    fn five_failures_in_a_row_eject_an_endpoint_but_not_more_than_half_of_a_backend() {
        let peers = peers(3);
        let fail = |index: usize, times: u32| {
            let slot = LoadSlot::new(&peers[index], &peers);
            (0..times).for_each(|_| slot.failed());
        };
        let ejected = || {
            let now = Moment::now();
            peers.iter().map(|peer| peer.is_ejected(now)).collect::<Vec<_>>()
        };
        fail(0, FAILURES - 1);
        LoadSlot::new(&peers[0], &peers).succeeded();
        fail(0, FAILURES - 1);
        assert_eq!(ejected(), [false; 3]);
        fail(0, 1);
        fail(1, 2 * FAILURES);
        assert_eq!(ejected(), [true, false, false], "two of three would be too many");
        // What cannot be reached is of no use, however many there are.
        LoadSlot::new(&peers[1], &peers).unreachable();
        assert_eq!(ejected(), [true, true, false]);
    }

    #[test]
    fn one_request_at_a_time_tests_an_endpoint_that_comes_back() {
        let peers = peers(1);
        let state = &peers[0];
        state.eject(at(1));
        state.ejected_until.store(0, Ordering::Relaxed);
        assert!(!state.is_ejected(Moment::now()));
        let trial = LoadSlot::new(state, &peers);
        assert!(state.is_ejected(Moment::now()));
        trial.succeeded();
        assert!(!state.is_ejected(Moment::now()));
        let _next = LoadSlot::new(state, &peers);
        assert!(!state.is_ejected(Moment::now()));
    }

    #[test]
    fn a_request_costs_what_it_is_expected_to_take() {
        let state = EndpointState::default();
        assert_eq!(state.cost(at(1)), 0.0, "one request tells how fast it is");
        state.open.store(1, Ordering::Relaxed);
        assert!(state.cost(at(1)) > 1e8, "until then, no further ones");
        state.latency.observe(1000, 4000);
        assert_eq!(state.cost(at(1)), 8000.0);
    }

    #[test]
    fn a_new_endpoint_gets_its_share_little_by_little() {
        let state = EndpointState::added(at(100));
        state.latency.observe(100_000, 1000);
        let share = |now: u64| 1000.0 * (-((now - 100) as f64) / 10.0).exp() / state.cost(at(now));
        for (now, expected) in [(100, 0.1), (105, 0.5), (110, 1.0), (111, 1.0)] {
            assert!((share(now) - expected).abs() < 0.01, "{} at {now}", share(now));
        }
    }
}
