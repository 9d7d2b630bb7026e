//! A namespace of one test.

use std::sync::atomic::{AtomicU32, Ordering};
use std::{process, thread};

use serde_json::{Value, json};

use super::{Cluster, ROLLOUT};
use crate::kubernetes::pod::Pod;
use crate::wait;

/// Deleted when dropped; its content is printed if the test failed.
#[derive(Debug)]
pub struct Namespace {
    cluster: &'static Cluster,
    name: String,
}

impl Namespace {
    /// A new one, outside the mesh. `prefix` names the test; the rest of the name makes it unique.
    pub fn new(prefix: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("{prefix}-{}-{count}", process::id()))
    }

    /// A new one of exactly this name.
    pub fn named(name: &str) -> Self {
        let cluster = Cluster::get();
        cluster.kubectl(["create", "namespace", name]);
        Self { cluster, name: name.to_owned() }
    }

    /// A new one in the mesh, with sidecars.
    pub fn meshed(prefix: &str) -> Self {
        let namespace = Self::new(prefix);
        namespace.join();
        namespace
    }

    /// Adds it to the mesh, with sidecars.
    pub fn join(&self) {
        self.cluster.tidegate(["namespace", "add", &self.name]);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cluster.
    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    /// Applies documents without a namespace, or with this one.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        self.try_apply(yaml).unwrap_or_else(|failure| panic!("{failure}\n{yaml}"));
    }

    /// [`Namespace::apply`], which may be refused.
    pub fn try_apply(&self, yaml: &str) -> Result<String, super::cluster::CommandFailure> {
        self.cluster.try_kubectl(["apply", "-n", &self.name, "-f", "-"], yaml)
    }

    /// What the API server would create from these objects, webhooks included, without creating them; and a line for
    /// each object that it refuses.
    pub fn would_make(&self, objects: &[Value]) -> (Vec<Value>, Vec<String>) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let arguments = ["create", "-n", &self.name, "--dry-run=server", "-o", "json", "-f", "-"];
        let (made, refusals) = match self.cluster.try_kubectl(arguments, &list) {
            Ok(made) => (made, String::new()),
            Err(failure) => (failure.stdout, failure.stderr),
        };
        let made = serde_json::Deserializer::from_str(&made).into_iter();
        let made: Result<_, _> = made.collect();
        let refusals = refusals.lines().filter(|line| !line.starts_with("Warning: "));
        (
            made.unwrap_or_else(|error| panic!("kubectl create: {error}")),
            refusals.map(str::to_owned).collect(),
        )
    }

    /// `kubectl -n <this one>`, which must succeed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl([&["-n", &self.name], arguments].concat())
    }

    /// An object or a list of objects in it.
    #[track_caller]
    pub fn get_json(&self, what: &[&str]) -> Value {
        self.cluster.get_json(&[&["-n", &self.name], what].concat())
    }

    /// Waits until an object in it exists and `probe` finds something in it.
    #[track_caller]
    pub fn wait_for<T>(&self, wanted: &str, what: &[&str], probe: impl FnMut(&Value) -> Option<T>) -> T {
        self.cluster.wait_for(wanted, &[&["-n", &self.name], what].concat(), probe)
    }

    /// Waits until every new pod of a Deployment or StatefulSet, such as `deployment/app`, is ready and the old ones
    /// are gone.
    #[track_caller]
    pub fn wait_rolled_out(&self, what: &str) {
        let limit = format!("--timeout={}s", ROLLOUT.as_secs());
        self.kubectl(&["rollout", "status", what, &limit]);
    }

    /// Ready pods with this value of label `app`, oldest first, without those that are terminating.
    pub fn pods(&self, app: &str) -> Vec<Pod> {
        let list =
            self.get_json(&["pods", "-l", &format!("app={app}"), "--sort-by=.metadata.creationTimestamp"]);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.iter().filter(|pod| is_ready(pod)).map(|pod| Pod::new(self.cluster, &self.name, pod)).collect()
    }

    /// The pod with this value of label `app`, once it exists and is ready.
    #[track_caller]
    pub fn pod(&self, app: &str) -> Pod {
        wait::until(&format!("a ready pod of {}/{app}", self.name), ROLLOUT, || {
            self.pods(app).into_iter().next()
        })
    }

    /// The state of an IngressBackend's current generation, and the reason; waits until the controller has processed
    /// it.
    #[track_caller]
    pub fn policy_status(&self, name: &str) -> (String, String) {
        self.wait_for("the policy has a status", &["ingressbackend", name], |policy| {
            let is_seen = policy["status"]["observedGeneration"] == policy["metadata"]["generation"];
            let text = |field: &str| policy["status"][field].as_str().map(str::to_owned);
            text("currentStatus").filter(|_| is_seen).zip(text("reason"))
        })
    }

    fn print(&self) {
        let show = |arguments: &[&str]| {
            let text = self.cluster.try_kubectl([&["-n", &self.name], arguments].concat(), "");
            eprintln!("{}", text.unwrap_or_else(|failure| failure.to_string()));
        };
        eprintln!("---- namespace {}", self.name);
        show(&["get", "pods,ingressbackends", "-o", "wide"]);
        show(&["get", "events", "--sort-by=.lastTimestamp"]);
        let Ok(pods) = self.cluster.try_get_json(&["pods", "-n", &self.name]) else { return };
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            eprintln!("---- logs of {}/{name}", self.name);
            show(&["logs", name, "--all-containers", "--prefix", "--tail=40"]);
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print();
        }
        // A test that uses the name again waits for the end.
        let _ = self
            .cluster
            .try_kubectl(["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"], "");
    }
}

/// Whether a pod is ready and not being deleted.
fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is_ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    is_ready && pod["metadata"]["deletionTimestamp"].is_null()
}
