//! Everything that changes during the run: policies every five seconds, the root, and restarts.

use std::time::{Duration, Instant};

use tidegate_tests::wait;

use crate::Arguments;
use crate::samples::Samples;
use crate::site::{ChangesMade, SoakSite};

/// Between two policy changes.
const EDIT: Duration = Duration::from_secs(5);

/// How much was changed in total.
#[derive(Debug)]
pub(crate) struct ChangeCounts {
    /// Policy changes.
    pub(crate) edits: u32,
    /// All other changes.
    pub(crate) done: ChangesMade,
    /// What was restarted.
    pub(crate) restarted: &'static str,
}

/// Makes changes until the time is over, and samples the processes in between. Returns the number of policy changes.
pub(crate) fn run(site: &mut dyn SoakSite, arguments: &Arguments, samples: &mut Samples) -> u32 {
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
