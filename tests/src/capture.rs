//! Captures the traffic of a network.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::daemon;

/// What was captured while something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedFrames {
    /// Frames in all.
    pub frames: u64,
    /// Frames that contained the text.
    pub found: u64,
}

/// Searches the traffic from and to an address for `text` while `exchange` runs, on every interface of the namespace in
/// which `runner` runs its program.
#[track_caller]
pub fn capture(mut runner: Command, text: &str, address: &str, exchange: impl FnOnce()) -> CapturedFrames {
    runner.arg(daemon::ours("tidegate-test-app")).args(["capture", text, "--address", address]);
    let mut child = runner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    exchange();
    drop(child.stdin.take());
    let report: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    let count = |name: &str| report[name].as_u64().unwrap();
    CapturedFrames { frames: count("frames"), found: count("found") }
}
