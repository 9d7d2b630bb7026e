//! Objects from a Kubernetes API server, watched.
//!
//! Each kind has its own watch ([`tidegate_kubernetes::watch`]) over the whole cluster: an ingress controller may be in
//! any namespace, and its addresses must not go stale when its namespace's labels change. Only the MeshConfig is read
//! from one namespace, the control plane's, under its fixed name. Changes that arrive while the engine is busy are
//! delivered together, each object once; they are never delayed to collect more.
//!
//! Each namespace has a share of memory (`holdings`); objects beyond it are not held.
//!
//! A Pod whose sidecar connects to another control plane is kept like a Pod without a sidecar.
//!
//! ServiceAccounts are not read: an identity consists of a Pod's namespace and the name in its spec, and the API server
//! admits no Pod whose ServiceAccount is missing. Only the fields that the controller reads are decoded
//! ([`crate::object::stored`]).

mod holdings;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client};
use tidegate_crds::injection::has_sidecar;
use tidegate_kubernetes::watch::{Event, KindMeter, Name, ObjectWatch, WatchMetrics, WatchTiming};
use tidegate_runtime::metrics::Metrics;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Batch, ObjectSource, ProblemSeverity, SourceProblem};
use crate::metrics::NamespaceGauge;
use crate::object::kinds::kinds;
use crate::object::pod::has_ended;
use crate::object::stored::{Scope, Stored};
use crate::object::unreadable::Unreadable;
use crate::object::{Change, Kind, Object, ObjectKey, ObjectName};

use holdings::Holdings;
use secrets::ReferencedSecrets;

/// Messages of watches that wait for the engine.
const QUEUE: usize = 256;
/// The most messages in one batch, so that a flood does not delay the first of them.
const MOST_MESSAGES: usize = 4096;
/// How often kinds may be listed again because objects that were left out may fit now.
const RELIST_INTERVAL: Duration = Duration::from_secs(60);

/// A Kubernetes API server.
#[derive(Clone)]
pub struct KubernetesSource {
    client: Client,
    namespace: String,
    metrics: WatchMetrics,
    left_out: NamespaceGauge,
    share: usize,
    timing: WatchTiming,
    relist_interval: Duration,
}

/// A message of one watch, apart from what it has put into the holdings.
struct WatchMessage {
    kind: Kind,
    /// Why the kind cannot be read.
    unreadable: Option<String>,
}

/// The watches of all kinds. Dropping it ends them.
struct Watches {
    tasks: JoinSet<()>,
    /// Requests a new list of a kind.
    relist: BTreeMap<Kind, Arc<Notify>>,
}

/// What the watches have reported so far.
#[derive(Debug, Default)]
struct WatchedState {
    listed: Vec<Kind>,
    unreadable: BTreeMap<Kind, SourceProblem>,
    problems: BTreeMap<ObjectKey, SourceProblem>,
}

impl KubernetesSource {
    /// A source of everything that this client may read; the MeshConfig is the one in `namespace`, the control plane's.
    pub fn new(client: Client, namespace: impl Into<String>, metrics: WatchMetrics) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            metrics,
            left_out: NamespaceGauge::default(),
            share: holdings::SHARE,
            timing: WatchTiming::default(),
            relist_interval: RELIST_INTERVAL,
        }
    }

    /// Registers a metric for objects that are left out.
    #[must_use]
    pub fn counted(mut self, metrics: &Metrics) -> Self {
        self.left_out = NamespaceGauge::register(
            metrics,
            "tidegate_controller_objects_left_out",
            "Objects that are not read because older ones of their namespace use up its share; counted up to 256",
        );
        self
    }

    /// Replaces the default share of a namespace, in bytes, and the default interval of new lists.
    #[cfg(test)]
    #[must_use]
    fn with_share(mut self, share: usize, relist_interval: Duration) -> Self {
        (self.share, self.relist_interval) = (share, relist_interval);
        self
    }

    /// Replaces the default timeouts.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn timing(mut self, timing: WatchTiming) -> Self {
        self.timing = timing;
        self
    }

    fn watches(&self, sender: &mpsc::Sender<WatchMessage>, holdings: &Holdings) -> Watches {
        let mut watches = Watches { tasks: JoinSet::new(), relist: BTreeMap::new() };
        macro_rules! start {
            ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
                $(if let Some(watch) = self.watch::<$type>(holdings) {
                    watches.start(Kind::$kind, watch, self.timing, sender, holdings);
                })*
            };
        }
        kinds!(start);
        watches
    }

    fn watch<K: Stored>(&self, holdings: &Holdings) -> Option<ObjectWatch<()>> {
        let (client, resource) = (self.client.clone(), ApiResource::erase::<K>(&()));
        let api = match K::SCOPE {
            Scope::Cluster => Api::<DynamicObject>::all_with(client, &resource),
            Scope::ControlPlane(_) => Api::namespaced_with(client, &self.namespace, &resource),
            Scope::Folder | Scope::Referenced => return None,
        };
        let (holdings, control_plane) = (holdings.clone(), self.namespace.clone());
        let keep = move |text: &str| Ok(holdings.put(K::decode(text, &control_plane)?));
        let watch = ObjectWatch::kept(api, keep, self.meter(K::KIND));
        Some(match K::SCOPE {
            Scope::ControlPlane(name) => watch.named(name),
            Scope::Cluster | Scope::Folder | Scope::Referenced => watch,
        })
    }

    fn meter(&self, kind: Kind) -> KindMeter {
        self.metrics.kind(kind.variant())
    }

    async fn follow(self, batches: mpsc::Sender<Batch>) {
        let (sender, mut messages) = mpsc::channel(QUEUE);
        let holdings = Holdings::new(self.share, self.left_out.clone());
        let mut watches = self.watches(&sender, &holdings);
        let mut secrets = ReferencedSecrets::default();
        watches.tasks.spawn(secrets.read(self.client.clone(), holdings.clone(), sender.clone()));
        // So that the queue ends when every watch has ended.
        drop(sender);
        let mut state = WatchedState::default();
        let mut relist =
            tokio::time::interval_at(Instant::now() + self.relist_interval, self.relist_interval);
        loop {
            let message = tokio::select! {
                () = batches.closed() => return,
                message = messages.recv() => message,
                _ = relist.tick() => {
                    watches.relist(&holdings.take_new_room());
                    continue;
                }
            };
            let Some(message) = message else { return };
            let Ok(permit) = batches.reserve().await else { return };
            state.take(message);
            for _ in 1..MOST_MESSAGES {
                let Ok(message) = messages.try_recv() else { break };
                state.take(message);
            }
            let changes = holdings.drain();
            secrets.follow(&changes);
            let are_listed = watches.relist.keys().all(|kind| state.listed.contains(kind));
            let is_complete = are_listed && secrets.are_known();
            state.note_unreadable(&changes);
            let mut problems = state.problems();
            problems.extend(holdings.problems());
            permit.send(Batch { changes, is_complete, problems });
        }
    }
}

impl Watches {
    fn start(
        &mut self,
        kind: Kind,
        watch: ObjectWatch<()>,
        timing: WatchTiming,
        sender: &mpsc::Sender<WatchMessage>,
        holdings: &Holdings,
    ) {
        let relist = Arc::new(Notify::new());
        self.relist.insert(kind, relist.clone());
        let holdings = holdings.clone();
        let wrap = move |event| WatchMessage::new(kind, event, &holdings);
        self.tasks.spawn(watch.relist(relist).timing(timing).run(sender.clone(), wrap));
    }

    fn relist(&self, kinds: &BTreeSet<Kind>) {
        kinds.iter().filter_map(|kind| self.relist.get(kind)).for_each(|relist| relist.notify_one());
    }
}

impl ObjectSource for KubernetesSource {
    fn run(self: Box<Self>, batches: mpsc::Sender<Batch>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.follow(batches))
    }
}

/// Whether a Pod, as reported by this source, is a workload of the mesh: it has our injector's sidecar and its own
/// address, and has not ended.
pub fn is_injected(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let has_address = status.and_then(|status| status.pod_ip.as_ref()).is_some_and(|ip| !ip.is_empty());
    let is_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    has_sidecar(pod) && has_address && !is_host && !has_ended(pod)
}

impl WatchMessage {
    /// Must be called in the order in which the watch reports, so that a recreated object is not mistaken for a deleted
    /// one.
    fn new(kind: Kind, event: Event<()>, holdings: &Holdings) -> Self {
        match event {
            Event::Unreadable(reason) => Self { kind, unreadable: Some(reason) },
            Event::Changed { deleted, .. } => {
                for Name { namespace, name } in deleted {
                    holdings.forget(ObjectKey { kind, name: ObjectName::new(namespace, name) });
                }
                Self { kind, unreadable: None }
            }
        }
    }
}

impl WatchedState {
    /// Records that a kind was read, or why it cannot be. The first list of a kind, empty or not, makes it count as
    /// read; so does a failure to read one that nothing waits for, and the answer that a cluster lacks a kind which it may
    /// lack.
    fn take(&mut self, message: WatchMessage) {
        let kind = message.kind;
        let is_absent = |reason: &String| is_optional(kind) && reason.starts_with("404");
        if message.unreadable.as_ref().is_some_and(is_absent) {
            info!(%kind, "the cluster does not define this kind");
            self.unreadable.remove(&kind);
            return self.note_listed(kind);
        }
        if let Some(reason) = message.unreadable {
            let problem = unreadable(kind, &reason);
            warn!("{problem}");
            self.unreadable.insert(kind, problem);
            if missing_without(kind).is_some() {
                self.note_listed(kind);
            }
            return;
        }
        if self.unreadable.remove(&kind).is_some() {
            info!(%kind, "objects can be read");
        }
        self.note_listed(kind);
    }

    fn note_listed(&mut self, kind: Kind) {
        if !self.listed.contains(&kind) {
            self.listed.push(kind);
        }
    }

    /// Records which objects have become unreadable or readable.
    fn note_unreadable(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Apply { object: Object::Unreadable(object), .. } => {
                    let key = ObjectKey { kind: object.kind, name: object.name() };
                    self.problems.insert(key, problem(object));
                }
                Change::Apply { object, .. } => drop(self.problems.remove(&object.key())),
                Change::Delete(key) => drop(self.problems.remove(key)),
            }
        }
    }

    /// Kinds that cannot be read, then objects that cannot be read.
    fn problems(&self) -> Vec<SourceProblem> {
        self.unreadable.values().chain(self.problems.values()).cloned().collect()
    }
}

fn problem(object: &Unreadable) -> SourceProblem {
    let title = format!("{} {}", object.kind, object.name());
    SourceProblem {
        file: title.clone(),
        line: 0,
        column: 0,
        field: Some(object.finding.path.clone()).filter(|path| !path.is_empty()),
        object: Some(title),
        severity: ProblemSeverity::Error,
        message: object.finding.message.clone(),
    }
}

macro_rules! define_definition_of {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// The name of a kind's CustomResourceDefinition.
        fn definition_of(kind: Kind) -> Option<String> {
            match kind {
                $(Kind::$kind => <$type>::custom()?.definition.metadata.name.clone(),)*
            }
        }
    };
}

kinds!(define_definition_of);

macro_rules! define_missing_without {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// What is missing while a kind cannot be read, if only a part is.
        fn missing_without(kind: Kind) -> Option<&'static str> {
            match kind {
                $(Kind::$kind => <$type as Stored>::MISSING_WITHOUT,)*
            }
        }
    };
}

kinds!(define_missing_without);

macro_rules! define_is_optional {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// Whether a cluster may lack the kind.
        fn is_optional(kind: Kind) -> bool {
            match kind {
                $(Kind::$kind => <$type as Stored>::IS_OPTIONAL,)*
            }
        }
    };
}

kinds!(define_is_optional);

/// A kind that cannot be read. A missing CustomResourceDefinition is the usual cause on a new cluster, and is named.
fn unreadable(kind: Kind, reason: &str) -> SourceProblem {
    let message = match definition_of(kind) {
        Some(crd) if reason.starts_with("404") => {
            format!("CustomResourceDefinition {crd} is not installed; waiting for it")
        }
        _ => format!("cannot be read, retrying: {reason}"),
    };
    let (message, severity) = match missing_without(kind) {
        Some(missing) => (format!("{message}; {missing}"), ProblemSeverity::Warning),
        None => (message, ProblemSeverity::Error),
    };
    SourceProblem { file: kind.to_string(), line: 0, column: 0, field: None, object: None, severity, message }
}

#[cfg(test)]
mod tests;
