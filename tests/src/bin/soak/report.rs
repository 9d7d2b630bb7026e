//! The results as Markdown, and whether they are good.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::Arguments;
use crate::changes::ChangeCounts;
use crate::loads::SoakLoad;
use crate::samples::{Samples, Trend};

/// Memory that a process may grow by in an hour, MiB.
const MOST_GROWTH: f64 = 1.0;
/// How much the mean of open files may grow from the first quarter of the time to the last: by this many, ...
const MOST_FILES: f64 = 10.0;
/// ... and by this part of it, because clients that leave do so at a rate that depends on the machine's load.
const MOST_FILES_PART: f64 = 0.05;

/// The whole result.
pub(crate) struct SoakReport {
    time: Duration,
    warm_up: Duration,
    changes: String,
    problems: Vec<String>,
    kinds: Vec<(&'static str, u64, u64, Vec<String>)>,
    trends: Vec<(String, Trend)>,
}

impl SoakReport {
    /// Of a finished run.
    pub(crate) fn new(
        arguments: &Arguments,
        changes: ChangeCounts,
        loads: &[Arc<SoakLoad>],
        samples: &Samples,
    ) -> Self {
        let ChangeCounts { edits, done, restarted } = changes;
        let kinds = loads.iter().map(|kind| {
            let failures = kind.failures.lock().unwrap().clone();
            (kind.name, kind.done.load(Ordering::Relaxed), kind.failed.load(Ordering::Relaxed), failures)
        });
        let trends = samples
            .0
            .iter()
            .filter_map(|(name, samples)| Some((name.clone(), Trend::of(samples, arguments.warm_up)?)));
        Self {
            time: arguments.time,
            warm_up: arguments.warm_up,
            changes: format!(
                "{edits} changes of policies, {} steps of root rotations, {} restarts of {restarted}",
                done.rotation_steps, done.restarts
            ),
            problems: done.problems,
            kinds: kinds.collect(),
            trends: trends.collect(),
        }
    }

    /// Whether every request was answered, every change was made, and no process grew.
    pub(crate) fn is_well(&self) -> bool {
        self.problems.is_empty()
            && self.kinds.iter().all(|(_, done, failed, _)| *done > 0 && *failed == 0)
            && !self.trends.is_empty()
            && self.trends.iter().all(|(_, trend)| is_flat(trend))
    }
}

fn is_flat(trend: &Trend) -> bool {
    trend.slope.is_none_or(|slope| slope < MOST_GROWTH)
        && trend.mean_files.1 - trend.mean_files.0 < MOST_FILES + MOST_FILES_PART * trend.mean_files.0
}

impl fmt::Display for SoakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_duration(self.time);
        let warm_up = humantime::format_duration(self.warm_up);
        writeln!(f, "{time} under load; {}.\n", self.changes)?;
        writeln!(f, "| clients | done | failed |\n|---|---:|---:|")?;
        for (name, done, failed, _) in &self.kinds {
            writeln!(f, "| {name} | {done} | {failed} |")?;
        }
        writeln!(
            f,
            "\nAfter the first {warm_up}:\n\n\
             | process | memory: first, last, most (MiB) | growth (MiB/h) | open files: fewest, most | mean: first quarter, last |\n\
             |---|---|---:|---|---|"
        )?;
        for (name, trend) in &self.trends {
            let (first, last, most) = trend.memory;
            let slope = trend.slope.map_or_else(|| "restarted".to_owned(), |slope| format!("{slope:.2}"));
            let ((fewest, many), (early, late)) = (trend.files, trend.mean_files);
            writeln!(
                f,
                "| {name} | {first:.1}, {last:.1}, {most:.1} | {slope} | {fewest}, {many} | {early:.1}, {late:.1} |"
            )?;
        }
        for problem in &self.problems {
            writeln!(f, "\n- {problem}")?;
        }
        for (name, _, _, failures) in &self.kinds {
            for failure in failures {
                writeln!(f, "\n- {name}: {failure}")?;
            }
        }
        writeln!(f, "\n{}", if self.is_well() { "All is well." } else { "Not well." })
    }
}
