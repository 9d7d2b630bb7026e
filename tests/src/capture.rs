//! What passes on a network.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::daemon;

/// What was seen while something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Frames in all.
    pub frames: u64,
    /// Frames that held the text.
    pub found: u64,
}

/// Looks for `text` in what comes from an address or goes to it while `exchange` runs, on every interface of the
/// namespace in which `runner` runs the program that it is given.
#[track_caller]
pub fn capture(mut runner: Command, text: &str, address: &str, exchange: impl FnOnce()) -> Seen {
    runner.arg(daemon::ours("tidegate-test-app")).args(["capture", text, "--address", address]);
    let mut child = runner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    exchange();
    drop(child.stdin.take());
    let report: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    let count = |name: &str| report[name].as_u64().unwrap();
    Seen { frames: count("frames"), found: count("found") }
}
