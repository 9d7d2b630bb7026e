//! All that changes meanwhile: policies every five seconds, the root, and what is restarted.

use std::time::{Duration, Instant};

use tidegate_tests::wait;

use crate::Arguments;
use crate::samples::Samples;
use crate::site::{Done, Site};

/// Between two changes of policies.
const EDIT: Duration = Duration::from_secs(5);

/// How much was changed in all.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Changes of policies.
    pub(crate) edits: u32,
    /// All else.
    pub(crate) done: Done,
    /// What was restarted.
    pub(crate) restarted: &'static str,
}

/// Goes on until the time is over, and looks at the processes in between; how often policies were changed.
pub(crate) fn run(site: &mut dyn Site, arguments: &Arguments, samples: &mut Samples) -> u32 {
    let begun = Instant::now();
    let mut edits = 0;
    let (mut rotated, mut restarted) = (begun, begun);
    let mut next = begun;
    while begun.elapsed() < arguments.time {
        site.edit();
        edits += 1;
        if rotated.elapsed() >= arguments.rotation_step {
            rotated = Instant::now();
            site.rotate();
        }
        if restarted.elapsed() >= arguments.restart {
            restarted = Instant::now();
            site.restart();
        }
        samples.take(&site.processes(), begun.elapsed());
        next += EDIT;
        let limit = EDIT + Duration::from_secs(1);
        wait::until_true("the next change is due", limit, || Instant::now() >= next);
        next = next.max(Instant::now());
    }
    edits
}
