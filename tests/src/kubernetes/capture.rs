//! What passes on the node's network.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use super::Cluster;
use super::pod::Pod;
use crate::daemon;

/// What was seen while something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Frames in all.
    pub frames: u64,
    /// Frames that held the text.
    pub found: u64,
}

/// Looks for `text` in what comes from a pod or goes to it, on every interface of the node, while `exchange` runs.
#[track_caller]
pub fn capture(cluster: &Cluster, text: &str, pod: &Pod, exchange: impl FnOnce()) -> Seen {
    let program = daemon::ours("tidegate-test-app");
    let mut command = cluster.on_node(program.to_str().unwrap());
    command.args(["capture", text, "--address", pod.ip()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    exchange();
    drop(child.stdin.take());
    let report: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    let count = |name: &str| report[name].as_u64().unwrap();
    Seen { frames: count("frames"), found: count("found") }
}
