//! All that changes meanwhile: policies every five seconds, the root, the daemons of the control plane.

use std::time::{Duration, Instant};

use tidegate_tests::wait;

use crate::Arguments;
use crate::samples::Samples;
use crate::site::Site;

/// Between two changes of policies.
const EDIT: Duration = Duration::from_secs(5);

/// How much was changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Policies.
    pub(crate) edits: u32,
    /// Steps of a rotation that the CA took.
    pub(crate) rotation_steps: u32,
    /// Daemons that were killed and started again.
    pub(crate) restarts: u32,
}

/// Goes on until the time is over, and looks at the processes in between.
pub(crate) fn run(site: &mut Site, arguments: &Arguments, samples: &mut Samples) -> Changes {
    let begun = Instant::now();
    let mut changes = Changes::default();
    let (mut rotated, mut restarted) = (begun, begun);
    let mut next = begun;
    while begun.elapsed() < arguments.time {
        site.edit();
        changes.edits += 1;
        if rotated.elapsed() >= arguments.rotation_step {
            rotated = Instant::now();
            // 409: not everything has the new bundle yet.
            let answer = site.mesh.ca.admin_post("/rotation/next", "").unwrap();
            changes.rotation_steps += u32::from(answer.status() == 200);
        }
        if restarted.elapsed() >= arguments.restart {
            restarted = Instant::now();
            let daemon = if changes.restarts.is_multiple_of(2) {
                &mut site.mesh.controller
            } else {
                &mut site.mesh.ca
            };
            daemon.kill();
            daemon.start_ready();
            changes.restarts += 1;
            site.mesh.wait_connected();
        }
        samples.take(site, begun.elapsed());
        next += EDIT;
        let limit = EDIT + Duration::from_secs(1);
        wait::until_true("the next change is due", limit, || Instant::now() >= next);
        next = next.max(Instant::now());
    }
    changes
}
