//! A running pod.

use std::fs::File;

use rustix::process::Signal;
use serde_json::Value;

use super::cluster::CommandFailure;
use super::{Cluster, process};

/// The container of [`super::workload`]'s pods.
pub const APP: &str = "app";

/// A pod by its name.
#[derive(Clone, Debug)]
pub struct Pod {
    cluster: &'static Cluster,
    namespace: String,
    name: String,
    ip: String,
}

/// A stopped process.
#[derive(Debug)]
pub struct Paused(rustix::process::Pid);

/// The result of a client in a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum PodOutcome {
    /// An answer: its status and its body.
    Answer(u64, Value),
    /// No answer; how the connection ended.
    Refused(String),
}

impl Pod {
    pub(super) fn new(cluster: &'static Cluster, namespace: &str, pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = text(&pod["metadata"]["name"]);
        Self { cluster, namespace: namespace.to_owned(), name, ip: text(&pod["status"]["podIP"]) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its first address.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    /// Runs a command in a container.
    pub fn exec(&self, container: &str, command: &[&str], input: &str) -> Result<String, CommandFailure> {
        let target = ["exec", "-i", "-n", &self.namespace, &self.name, "-c", container, "--"];
        self.cluster.try_kubectl([&target, command].concat(), input)
    }

    /// Runs the test app in its container as a client; returns the line of JSON that it prints.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Value {
        self.ask_with(arguments, "")
    }

    /// [`Pod::ask`] with this standard input.
    #[track_caller]
    pub fn ask_with(&self, arguments: &[&str], input: &str) -> Value {
        let mut lines = self.lines(arguments, input);
        assert_eq!(lines.len(), 1, "{arguments:?}: {lines:?}");
        lines.remove(0)
    }

    /// [`Pod::ask`] for more than one line.
    #[track_caller]
    pub fn ask_all(&self, arguments: &[&str]) -> Vec<Value> {
        self.lines(arguments, "")
    }

    #[track_caller]
    fn lines(&self, arguments: &[&str], input: &str) -> Vec<Value> {
        let command = [&["/usr/local/bin/tidegate-test-app"], arguments].concat();
        let output = match self.exec(APP, &command, input) {
            Ok(output) => output,
            // The exit code also reports a missing answer.
            Err(failure) if failure.stdout.starts_with('{') => failure.stdout,
            Err(failure) => panic!("{failure}"),
        };
        let read = |line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
        };
        output.lines().map(read).collect()
    }

    /// GET, on its own connection.
    #[track_caller]
    pub fn get(&self, url: &str) -> PodOutcome {
        PodOutcome::of(&self.ask(&["get", url]))
    }

    /// Repeats GET until the answer has this status.
    #[track_caller]
    pub fn get_until(&self, url: &str, status: u16) -> Value {
        let found = self.ask(&["get", url, "--until", &status.to_string(), "--within", "60"]);
        match PodOutcome::of(&found) {
            PodOutcome::Answer(given, body) if given == u64::from(status) => body,
            other => panic!("{url}: timed out waiting for {status}: {other:?}"),
        }
    }

    /// Sends a line over TCP; returns the answer, or how the connection ended.
    #[track_caller]
    pub fn tcp(&self, target: &str, line: &str) -> Result<String, String> {
        self.answer(&["tcp", target, line])
    }

    /// Sends a datagram; returns the answer, or how it failed: `refused` where sending is forbidden.
    #[track_caller]
    pub fn udp(&self, target: &str, text: &str) -> Result<String, String> {
        self.answer(&["udp", target, text])
    }

    #[track_caller]
    fn answer(&self, arguments: &[&str]) -> Result<String, String> {
        let found = self.ask(arguments);
        match found["answer"].as_str() {
            Some(answer) => Ok(answer.to_owned()),
            None => Err(found["error"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// The log of a container.
    pub fn logs(&self, container: &str) -> String {
        self.cluster.kubectl(["logs", "-n", &self.namespace, &self.name, "-c", container])
    }

    /// The object.
    pub fn json(&self) -> Value {
        self.cluster.get_json(&["pod", "-n", &self.namespace, &self.name])
    }

    /// Stops its sidecar's process until the guard is dropped, as on a node that swaps.
    #[track_caller]
    pub fn pause_sidecar(&self) -> Paused {
        let paused = Paused(self.sidecar_process());
        rustix::process::kill_process(paused.0, Signal::STOP).unwrap();
        paused
    }

    /// Kills its sidecar's process; kubelet starts it again.
    #[track_caller]
    pub fn kill_sidecar(&self) {
        rustix::process::kill_process(self.sidecar_process(), Signal::KILL).unwrap();
    }

    /// Its network namespace.
    #[track_caller]
    pub fn network(&self) -> File {
        let process = self.sidecar_process().as_raw_nonzero();
        File::open(format!("/proc/{process}/ns/net")).unwrap()
    }

    #[track_caller]
    fn sidecar_process(&self) -> rustix::process::Pid {
        // Processes of another machine are out of reach.
        let _ = self.cluster.own_name();
        let workload = format!("--workload={}/{}", self.namespace, self.name);
        let process = process::find("tidegate-sidecar", "cmdline", &workload);
        process.expect("the sidecar runs on this machine")
    }

    /// Deletes it and waits until it is gone.
    pub fn delete(&self) {
        self.cluster.kubectl(["delete", "pod", "-n", &self.namespace, &self.name]);
    }

    /// Deletes it at once, without signalling its processes.
    pub fn kill(&self) {
        self.cluster.kubectl([
            "delete",
            "pod",
            "-n",
            &self.namespace,
            &self.name,
            "--grace-period=0",
            "--force",
        ]);
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::CONT);
    }
}

impl PodOutcome {
    /// From the test app's line.
    pub fn of(line: &Value) -> Self {
        match line["status"].as_u64() {
            Some(status) => Self::Answer(status, line["body"].clone()),
            None => Self::Refused(line["error"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// The status; 0 if there was no answer.
    pub fn status(&self) -> u64 {
        match self {
            Self::Answer(status, _) => *status,
            Self::Refused(_) => 0,
        }
    }

    /// How the connection ended, if there was no answer.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Answer(..) => None,
            Self::Refused(error) => Some(error),
        }
    }

    /// The body of an answer with status 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        match self {
            Self::Answer(200, body) => body,
            other => panic!("{other:?}"),
        }
    }
}
