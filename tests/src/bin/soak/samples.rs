//! Memory and open files of the processes, over time.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_tests::process;

const MIB: f64 = 1024.0 * 1024.0;

/// All samples of all processes.
#[derive(Debug, Default)]
pub(crate) struct Samples(pub(crate) BTreeMap<String, Vec<Sample>>);

/// One sample of a process, or of several that are counted together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Since the start.
    pub(crate) at: Duration,
    /// The processes, which differ after a restart.
    pub(crate) pids: Vec<u32>,
    /// Resident memory in MiB.
    pub(crate) memory: f64,
    /// Open files.
    pub(crate) files: usize,
}

/// The summary of a process's samples after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trend {
    /// Memory in MiB: first, last, and maximum.
    pub(crate) memory: (f64, f64, f64),
    /// Growth in MiB per hour, by least squares over samples of the same process; `None` if it was restarted.
    pub(crate) slope: Option<f64>,
    /// The fewest and the most open files.
    pub(crate) files: (usize, usize),
    /// The mean of open files in the first quarter of the samples, and in the last.
    pub(crate) mean_files: (f64, f64),
}

impl Samples {
    /// Samples these processes, each with its name.
    pub(crate) fn take(&mut self, processes: &[(String, u32)], at: Duration) {
        let mut now: BTreeMap<&String, Sample> = BTreeMap::new();
        for (name, pid) in processes {
            // A process that has just ended is skipped.
            let (Some(memory), Some(files)) = (process::resident_bytes(*pid), process::open_files(*pid))
            else {
                continue;
            };
            let sample = now.entry(name).or_insert_with(|| Sample { at, ..Sample::default() });
            sample.pids.push(*pid);
            sample.memory += memory as f64 / MIB;
            sample.files += files.len();
        }
        for (name, sample) in now {
            self.0.entry(name.clone()).or_default().push(sample);
        }
    }
}

impl Trend {
    /// Of the samples after the warm-up; `None` if there are fewer than two.
    pub(crate) fn of(samples: &[Sample], warm_up: Duration) -> Option<Self> {
        let samples: Vec<_> = samples.iter().filter(|sample| sample.at >= warm_up).collect();
        let (first, last) = (samples.first()?, samples.last()?);
        if samples.len() < 2 {
            return None;
        }
        let quarter = samples.len().div_ceil(4);
        let mean = |samples: &[&Sample]| {
            samples.iter().map(|sample| sample.files as f64).sum::<f64>() / samples.len() as f64
        };
        let is_one_process = samples.iter().all(|sample| sample.pids == first.pids);
        Some(Self {
            memory: (
                first.memory,
                last.memory,
                samples.iter().map(|sample| sample.memory).fold(0.0, f64::max),
            ),
            slope: is_one_process.then(|| slope(&samples)),
            files: (
                samples.iter().map(|sample| sample.files).min()?,
                samples.iter().map(|sample| sample.files).max()?,
            ),
            mean_files: (mean(&samples[..quarter]), mean(&samples[samples.len() - quarter..])),
        })
    }
}

/// Least squares of memory over hours.
fn slope(samples: &[&Sample]) -> f64 {
    let count = samples.len() as f64;
    let hours = |sample: &Sample| sample.at.as_secs_f64() / 3600.0;
    let mean_hours = samples.iter().map(|sample| hours(sample)).sum::<f64>() / count;
    let mean_memory = samples.iter().map(|sample| sample.memory).sum::<f64>() / count;
    let (mut above, mut below) = (0.0, 0.0);
    for sample in samples {
        let distance = hours(sample) - mean_hours;
        above += distance * (sample.memory - mean_memory);
        below += distance * distance;
    }
    if below == 0.0 { 0.0 } else { above / below }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(minute: u64, memory: f64, files: usize) -> Sample {
        Sample { at: Duration::from_secs(60 * minute), pids: vec![1], memory, files }
    }

    #[test]
    fn growth_is_given_per_hour_and_the_warm_up_left_out() {
        let samples: Vec<_> = (0..60)
            .map(|minute| {
                let memory = if minute < 10 { 100.0 } else { 10.0 + minute as f64 / 60.0 };
                sample(minute, memory, 20 + (minute % 3) as usize)
            })
            .collect();
        let trend = Trend::of(&samples, Duration::from_secs(600)).unwrap();
        assert!((trend.slope.unwrap() - 1.0).abs() < 1e-9, "{trend:?}");
        assert_eq!(trend.files, (20, 22));
        assert!(trend.memory.2 < 12.0, "{trend:?}");
        assert!((trend.mean_files.0 - trend.mean_files.1).abs() < 1.0, "{trend:?}");
    }

    #[test]
    fn a_process_that_was_restarted_has_no_slope() {
        let mut samples = vec![sample(0, 1.0, 1), sample(1, 1.0, 1)];
        samples[1].pids = vec![2];
        assert_eq!(Trend::of(&samples, Duration::ZERO).unwrap().slope, None);
        assert_eq!(Trend::of(&samples[..1], Duration::ZERO), None);
    }
}
