//! An API server for tests, over real HTTP on loopback: lists in pages, watches, optimistic concurrency, patches, logs
//! and ports of Pods, and the ways in which a real one fails.
//!
//! It stores what clients send and checks nothing: no schema, no admission, no permissions except for what a test
//! [forbids](FakeApi::forbid). It records every request ([`FakeApi::requests`]), so that a test can compare a program's
//! requests with its permissions. Resources are named `v1/pods` or `<group>/<version>/<plural>`; cluster-scoped objects
//! have the namespace `""`.

mod chart;
mod path;
mod port_forward;
mod response;
mod rights;
mod server;
mod store;
mod watches;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::{Client, Config};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::chart::memory_limit;
pub use self::rights::Rights;
use self::store::ObjectStore;

/// How long [`FakeApi::wait_for`] waits: long enough for a busy machine, and shorter than a test runner's patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request as RBAC sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordedRequest {
    /// `get`, `list`, `watch`, `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// The API group; empty for the core one.
    pub group: String,
    /// The plural, with `/<subresource>` if there is one.
    pub resource: String,
    /// Empty for cluster-scoped resources, and for requests about all namespaces.
    pub namespace: String,
    /// The object's name; for lists and watches that of the field selector, if one names it.
    pub name: String,
}

/// A running API server on loopback, until it is dropped. Tests change its objects and its faults from outside, and its
/// clients from inside; both go through one lock, and every change is an event of the watches.
#[derive(Debug)]
pub struct FakeApi {
    address: SocketAddr,
    shared: Arc<SharedApiState>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The cluster, shared by the test, the server and each connection.
#[derive(Debug)]
struct SharedApiState {
    state: Mutex<ApiState>,
    /// Counts changes of anything, so that tests can wait for them.
    changes: watch::Sender<u64>,
}

/// Everything behind the lock: objects, the requests so far, and how a test has set it to answer.
#[derive(Debug, Default)]
struct ApiState {
    store: ObjectStore,
    requests: Vec<RecordedRequest>,
    faults: Faults,
    responders: Responders,
    pods: FakePods,
    /// `<verb> <plural>`, with `/<subresource>` if there is one, that is forbidden to all clients.
    forbidden: BTreeSet<String>,
    /// Major and minor.
    version: Option<(u32, u32)>,
}

/// The logs and ports of Pods, which are not part of their objects.
#[derive(Debug, Default)]
struct FakePods {
    /// Where a forwarded port leads, by `<namespace>/<pod>:<port>`.
    ports: BTreeMap<String, SocketAddr>,
    /// Whole logs, by `<namespace>/<pod>/<container>`.
    logs: BTreeMap<String, String>,
}

/// Decides about a request before it is acted on: the code and body of its answer, or `None` to go on as usual.
type Responder = Box<dyn FnMut(&RecordedRequest, &Value) -> Option<(u16, Value)> + Send>;

/// Closures of tests that answer in the server's place; the last one has precedence.
#[derive(Default)]
struct Responders(Vec<Responder>);

/// The failures that a test has switched on.
#[derive(Debug, Default)]
struct Faults {
    /// Resources that are not served, such as those whose CRD is missing.
    absent: BTreeSet<String>,
    /// Connections below this number hear nothing more, and are not closed.
    silent_below: u64,
    /// The next connection's number.
    next_connection: u64,
    /// The next event of a watch of this resource is cut in the middle, and the connection with it.
    truncate: Option<String>,
    /// Whether a watch from an old version is refused by the status of the answer, not by an event.
    gone_by_status: bool,
    /// Whether every watch ends at once with an error event.
    break_watches: bool,
    /// The status code that writes are answered with, and how many of them.
    refuse_writes: Option<(u16, usize)>,
}

impl FakeApi {
    /// Starts on a free loopback port.
    pub async fn start() -> Self {
        // Only what cannot fail on a machine that has loopback.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|error| fail(&error));
        let address = listener.local_addr().unwrap_or_else(|error| fail(&error));
        let shared = Arc::new(SharedApiState { state: Mutex::default(), changes: watch::Sender::new(0) });
        let task = tokio::spawn(server::serve(listener, shared.clone()));
        Self { address, shared, task: Mutex::new(Some(task)) }
    }

    /// A client of it, with the timeouts of a daemon.
    pub fn client(&self) -> Client {
        let url = format!("http://{}", self.address).parse().unwrap_or_else(|error| fail(&error));
        Client::try_from(Config::new(url)).unwrap_or_else(|error| fail(&error))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig that leads to it.
    pub fn kubeconfig(&self) -> String {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: fake, \
             contexts: [{{name: fake, context: {{cluster: fake, user: fake}}}}], \
             clusters: [{{name: fake, cluster: {{server: 'http://{}'}}}}], users: [{{name: fake, user: {{}}}}]}}",
            self.address
        )
    }

    /// Creates an object or puts it in the place of the one before. `metadata` needs a name, and a namespace unless
    /// it is in none.
    pub fn apply(&self, resource: &str, object: Value) {
        self.change(|state| state.store.put(resource, object));
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.change(|state| state.store.delete(resource, namespace, name));
    }

    /// An object as it is now.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.lock().store.get(resource, namespace, name).cloned()
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.lock().requests.clone()
    }

    /// Waits until `holds` returns true; calls it after each change and every 20 ms. Panics after [`PATIENCE`].
    pub async fn wait_for(&self, mut holds: impl FnMut(&Self) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        let wait = async {
            while !holds(self) {
                // It may depend on more than this server.
                let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            fail(&"what the test waits for has not come true");
        }
    }

    /// Sends every watch that asked for bookmarks the newest version.
    pub fn bookmark(&self) {
        self.change(|state| state.store.bookmark());
    }

    /// Forgets past events: a watch from before now gets 410 Gone.
    pub fn compact(&self) {
        self.change(|state| state.store.compact());
    }

    /// Whether 410 Gone is the status of the answer, as without a watch cache, or an event.
    pub fn gone_by_status(&self, yes: bool) {
        self.change(|state| state.faults.gone_by_status = yes);
    }

    /// Whether every watch ends at once with an event that says that the server is not well.
    pub fn break_watches(&self, yes: bool) {
        self.change(|state| state.faults.break_watches = yes);
    }

    /// No connection of now ever hears anything again, though none is closed: what a machine that lost its power
    /// looks like. New connections work.
    pub fn silence_connections(&self) {
        self.change(|state| state.faults.silent_below = state.faults.next_connection);
    }

    /// Cuts the next event of a watch of this resource in the middle.
    pub fn truncate_next_event(&self, resource: &str) {
        self.change(|state| state.faults.truncate = Some(resource.to_owned()));
    }

    /// Answers the next `count` writes with this status code.
    pub fn refuse_writes(&self, code: u16, count: usize) {
        self.change(|state| state.faults.refuse_writes = Some((code, count)));
    }

    /// Has `answer` look at each request but watches, with its body: it may answer in the server's place, as for
    /// resources that are not stored objects. The closure added last is asked first.
    pub fn answer(
        &self,
        answer: impl FnMut(&RecordedRequest, &Value) -> Option<(u16, Value)> + Send + 'static,
    ) {
        self.change(|state| state.responders.0.push(Box::new(answer)));
    }

    /// What [`FakeApi::answer`] takes to refuse a request.
    pub fn refusal(code: u16, message: &str) -> (u16, Value) {
        (code, response::status(code, message))
    }

    /// Refuses what RBAC would refuse, to all clients: `<verb> <plural>`, with `/<subresource>` if there is one.
    pub fn forbid(&self, what: &str) {
        self.change(|state| {
            state.forbidden.insert(what.to_owned());
        });
    }

    /// Says that it is this version of Kubernetes.
    pub fn serve_version(&self, major: u32, minor: u32) {
        self.change(|state| state.version = Some((major, minor)));
    }

    /// Forwards this port of a Pod, `<namespace>/<pod>`, to an address. Connections to others are refused.
    pub fn forward(&self, pod: &str, port: u16, to: SocketAddr) {
        self.change(|state| {
            state.pods.ports.insert(format!("{pod}:{port}"), to);
        });
    }

    /// The log of a container, `<namespace>/<pod>/<container>`.
    pub fn log(&self, container: &str, text: &str) {
        self.change(|state| {
            state.pods.logs.insert(container.to_owned(), text.to_owned());
        });
    }

    /// Whether a resource is served; all are unless told otherwise.
    pub fn serve_resource(&self, resource: &str, yes: bool) {
        self.change(|state| {
            if yes {
                state.faults.absent.remove(resource);
            } else {
                state.faults.absent.insert(resource.to_owned());
            }
        });
    }

    /// Ends the server and all of its connections; what it keeps stays.
    pub fn stop(&self) {
        // The task may run on another thread for a moment.
        self.change(|state| state.faults.silent_below = u64::MAX);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Starts it again at the address that it had.
    pub async fn restart(&self) {
        self.stop();
        let listener = loop {
            // The one before lets go of the port when its task is dropped.
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.silence_connections();
        let task = tokio::spawn(server::serve(listener, self.shared.clone()));
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    fn change(&self, change: impl FnOnce(&mut ApiState)) {
        change(&mut self.shared.lock());
        self.shared.changed();
    }
}

impl Responders {
    /// The first answer that a closure gives. A body that is not JSON reaches it as `null`.
    fn to(&mut self, request: &RecordedRequest, body: &[u8]) -> Option<(u16, Value)> {
        let body = serde_json::from_slice(body).unwrap_or_default();
        self.0.iter_mut().rev().find_map(|answer| answer(request, &body))
    }
}

impl std::fmt::Debug for Responders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Responders").field(&self.0.len()).finish()
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.stop();
    }
}

impl SharedApiState {
    fn lock(&self) -> MutexGuard<'_, ApiState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes watches and [`FakeApi::wait_for`].
    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Never returns until this connection is silenced.
    async fn silenced(&self, connection: u64) {
        let mut changes = self.changes.subscribe();
        while connection >= self.lock().faults.silent_below {
            if changes.changed().await.is_err() {
                pending::<()>().await;
            }
        }
    }
}

#[allow(clippy::panic, reason = "only tests use this, and a test that cannot go on has failed")]
fn fail(error: &dyn std::fmt::Display) -> ! {
    panic!("fake API server: {error}")
}
