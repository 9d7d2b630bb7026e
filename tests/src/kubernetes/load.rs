//! A constant load of requests from a pod.

use std::time::Duration;

use serde_json::Value;

use super::namespace::Namespace;
use super::pod::Pod;
use super::workload::Workload;
use crate::wait;

const REPORT: &str = "http://127.0.0.1:8090/report";

/// A load that runs in its own pod.
#[derive(Debug)]
pub struct PodLoad {
    pod: Pod,
}

impl PodLoad {
    /// Starts one of this name; returns after the first answers. `arguments` are those of the test app's `load`.
    #[track_caller]
    pub fn start(namespace: &Namespace, name: &str, url: &str, arguments: &[&str]) -> Self {
        Workload::new(name, &[&["load", url], arguments].concat()).deploy(namespace);
        let load = Self { pod: namespace.pod(name) };
        load.wait_for(10);
        load
    }

    /// The pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Waits until this many more requests were answered.
    #[track_caller]
    pub fn wait_for(&self, requests: u64) {
        let goal = self.count("requests") + requests;
        let mut seen = 0;
        wait::until_true(&format!("{requests} more answers, {goal} in all"), Duration::from_secs(60), || {
            seen = self.count("requests");
            seen >= goal
        });
    }

    /// Fails if any request has failed since the start.
    #[track_caller]
    pub fn assert_flawless(&self) {
        self.wait_for(1);
        let report = self.report();
        assert_eq!(report["failures"], 0, "{report:#}");
    }

    /// Its results so far.
    #[track_caller]
    pub fn report(&self) -> Value {
        self.pod.get(REPORT).ok()
    }

    fn count(&self, what: &str) -> u64 {
        self.report()[what].as_u64().unwrap()
    }
}
