//! The latency of an endpoint: a moving average that rises at once and falls slowly (peak EWMA, as in Finagle and Linkerd).

use std::sync::atomic::{AtomicU64, Ordering};

/// The time constant with which it falls, in milliseconds: Linkerd's and Finagle's.
const DECAY: f64 = 10_000.0;

/// A latency in microseconds in the high half, as the bits of an `f32`, and in the low half the time of its last change in
/// milliseconds, which may wrap. Zero: nothing was observed.
#[derive(Debug, Default)]
pub(super) struct PeakEwma(AtomicU64);

impl PeakEwma {
    /// Records a latency. Of two at the same moment one may be lost.
    pub(super) fn observe(&self, now_millis: u64, micros: u64) {
        let before = self.0.load(Ordering::Relaxed);
        let observed = (micros as f64).max(1.0);
        let next = match unpack(before, now_millis) {
            Some((latency, age)) if observed < latency => {
                observed + (latency - observed) * (-age / DECAY).exp()
            }
            _ => observed,
        };
        let next = pack(next, now_millis);
        let _ = self.0.compare_exchange(before, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The average in microseconds; it falls while nothing is observed, so that a slow endpoint is tried again.
    pub(super) fn get(&self, now_millis: u64) -> Option<f64> {
        let (latency, age) = unpack(self.0.load(Ordering::Relaxed), now_millis)?;
        Some(latency * (-age / DECAY).exp())
    }
}

/// The latency, and its age in milliseconds.
fn unpack(packed: u64, now_millis: u64) -> Option<(f64, f64)> {
    let (latency, changed) = (f32::from_bits((packed >> 32) as u32), packed as u32);
    // Another thread's clock may be a little ahead.
    let age = (now_millis as u32).wrapping_sub(changed).cast_signed().max(0);
    (packed > 0).then(|| (latency.into(), age.into()))
}

fn pack(latency: f64, now_millis: u64) -> u64 {
    (u64::from((latency as f32).to_bits()) << 32) | u64::from(now_millis as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(average: &PeakEwma, now: u64, expected: f64) {
        let latency = average.get(now).unwrap();
        assert!((latency - expected).abs() <= expected * 0.02, "{latency} instead of {expected}");
    }

    #[test]
    fn it_rises_at_once_and_falls_in_ten_seconds() {
        let average = PeakEwma::default();
        assert_eq!(average.get(5), None);
        average.observe(1000, 500);
        near(&average, 1000, 500.0);
        average.observe(1000, 10_000);
        near(&average, 1000, 10_000.0);
        average.observe(11_000, 1000);
        near(&average, 11_000, 1000.0 + 9000.0 / std::f64::consts::E);
    }

    #[test]
    fn many_small_samples_fall_as_one_large_one() {
        let average = PeakEwma::default();
        average.observe(0, 10_000);
        (0..=100_000).for_each(|tenth| average.observe(tenth / 10, 1000));
        near(&average, 10_000, 1000.0 + 9000.0 / std::f64::consts::E);
    }

    #[test]
    fn without_samples_it_falls_to_nothing() {
        let average = PeakEwma::default();
        average.observe(0, 100_000);
        near(&average, 20_000, 100_000.0 * (-2_f64).exp());
    }

    #[test]
    fn the_clock_may_wrap_and_go_back_a_little() {
        let average = PeakEwma::default();
        let late = u64::from(u32::MAX);
        average.observe(late, 1000);
        near(&average, late + 10_001, 1000.0 / std::f64::consts::E);
        near(&average, late - 5, 1000.0);
        average.observe(3, 0);
        assert!(average.get(3).is_some());
    }
}
