//! Latencies in logarithmic buckets: constant memory, no allocation per value, quantiles within 0.8 %.

use std::time::Duration;

/// Buckets per doubling of the value, as a power of two.
const SUB_BITS: u32 = 6;
/// Buckets per doubling of the value.
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// 2^40 ns is 18 minutes: longer than any run.
const MAGNITUDES: usize = 40 - SUB_BITS as usize;
/// Number of buckets.
const BUCKETS: usize = SUB_BUCKETS * (MAGNITUDES + 1);

/// Counts of durations, in nanoseconds; values beyond the range count as the largest one.
#[derive(Debug, Clone)]
/// Number of values in each bucket.
pub(crate) struct Histogram {
    /// Number of values.
    counts: Vec<u64>,
    /// The largest value, exactly.
    total: u64,
    max: u64,
}

impl Histogram {
    /// An empty histogram.
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    /// Counts a value.
    pub(crate) fn record(&mut self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds the values of another one.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, others) in self.counts.iter_mut().zip(&other.counts) {
            *count += others;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// Number of values.
    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    /// The largest value recorded, exactly; zero if there is none.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The smallest recorded value that at least the share `quantile` (0 to 1) of all values does not exceed,
    /// as the middle of its bucket; zero if there is none.
    pub(crate) fn quantile(&self, quantile: f64) -> Duration {
        if self.total == 0 {
            return Duration::ZERO;
        }
        let rank = ((self.total as f64 * quantile).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(middle_of(bucket).min(self.max));
            }
        }
        self.max()
    }
}

/// Values below 64 have a bucket each; above, the top seven bits name the bucket.
fn bucket_of(nanos: u64) -> usize {
    let magnitude = (u64::BITS - nanos.leading_zeros()).saturating_sub(SUB_BITS + 1);
    let sub = (nanos >> magnitude) as usize;
    (magnitude as usize * SUB_BUCKETS + sub).min(BUCKETS - 1)
}

/// The value in the middle of a bucket.
fn middle_of(bucket: usize) -> u64 {
    if bucket < 2 * SUB_BUCKETS {
        return bucket as u64;
    }
    let magnitude = bucket / SUB_BUCKETS - 1;
    let sub = bucket - magnitude * SUB_BUCKETS;
    ((sub as u64) << magnitude) + (1 << (magnitude - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        let mut previous = 0;
        for nanos in 0..200_000 {
            let bucket = bucket_of(nanos);
            assert!(
                bucket == previous || bucket == previous + 1,
                "{nanos} ns fell into {bucket} after {previous}"
            );
            previous = bucket;
        }
    }

    #[test]
    fn the_middle_of_a_bucket_is_within_0_8_per_cent_of_each_of_its_values() {
        let mut nanos = 1_u64;
        while nanos < 1 << 38 {
            let middle = middle_of(bucket_of(nanos)) as f64;
            let error = (middle - nanos as f64).abs() / nanos as f64;
            assert!(error <= 0.008, "{nanos} ns is reported as {middle} ns");
            nanos = nanos * 21 / 20 + 1;
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::new();
        for micros in (1..=1000).rev() {
            histogram.record(Duration::from_micros(micros));
        }
        for (quantile, micros) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let got = histogram.quantile(quantile).as_secs_f64() * 1e6;
            assert!((got - micros).abs() / micros < 0.008, "quantile {quantile} is {got}, not {micros}");
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.max(), Duration::from_millis(1));
    }

    #[test]
    fn merged_histograms_have_the_values_of_both() {
        let (mut one, mut other) = (Histogram::new(), Histogram::new());
        one.record(Duration::from_micros(10));
        for _ in 0..3 {
            other.record(Duration::from_millis(1));
        }
        one.merge(&other);
        assert_eq!((one.count(), one.max()), (4, Duration::from_millis(1)));
        assert!(
            one.quantile(0.25) < Duration::from_micros(11) && one.quantile(0.5) > Duration::from_micros(990)
        );
    }

    #[test]
    fn one_slow_answer_among_a_thousand_shows_beyond_the_99_9th_percentile_only() {
        let mut histogram = Histogram::new();
        for _ in 0..999 {
            histogram.record(Duration::from_micros(100));
        }
        histogram.record(Duration::from_millis(50));
        assert!(histogram.quantile(0.999) < Duration::from_micros(110));
        assert!(histogram.quantile(1.0) > Duration::from_millis(49));
        assert_eq!(histogram.max(), Duration::from_millis(50));
    }

    #[test]
    fn an_empty_histogram_reports_zero_and_a_huge_value_the_end_of_the_range() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.99), Duration::ZERO);
        histogram.record(Duration::from_secs(86_400));
        assert_eq!(histogram.max(), Duration::from_secs(86_400));
        assert!(histogram.quantile(0.5) > Duration::from_secs(1000));
    }
}
