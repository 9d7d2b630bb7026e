//! Objects from a Kubernetes API server, watched.
//!
//! Each kind has a watch of its own ([`tidegate_kubernetes::watch`]) over the whole cluster: an ingress controller may
//! be anywhere, and its addresses must not go stale when its namespace's labels change. Only the MeshConfig is looked
//! for in one place, the control plane's namespace, under its one name. What came while the engine was busy is
//! handed over together; nothing waits for more to come.
//!
//! A sidecar that listens to another control plane is none to us: its Pod is kept as one without.
//!
//! ServiceAccounts are not read: an identity is made of a Pod's namespace and the name in its spec, and the API
//! server admits no Pod whose ServiceAccount is not there. Of Pods and the rest only those fields are decoded that
//! somebody reads (`lean`).

mod lean;
mod stored_policy;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, CustomResourceExt, Resource};
use tidegate_crds::injection::has_sidecar;
use tidegate_crds::mesh_config::MESH_CONFIG_NAME;
use tidegate_crds::{IngressBackend, MeshConfig};
use tidegate_kubernetes::watch::{Event, KindMeter, Name, Timing, Watch, WatchMetrics};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::folder::has_ended;
use super::{Batch, Change, Problem, ProblemSeverity, Source};
use crate::object::{Kind, Object, ObjectKey, ObjectName};
use crate::unreadable::Unreadable;

/// Messages of watches that wait for the engine.
const QUEUE: usize = 256;
/// The most messages that are handed over together, so that a flood does not keep the first of it waiting.
const MOST_MESSAGES: usize = 4096;

/// A Kubernetes API server.
#[derive(Clone)]
pub struct KubernetesSource {
    client: Client,
    namespace: String,
    metrics: WatchMetrics,
    timing: Timing,
}

/// What one watch says.
struct Message {
    kind: Kind,
    changes: Vec<Change>,
    /// Why the kind cannot be read.
    unreadable: Option<String>,
}

/// What the watches have said so far.
#[derive(Debug, Default)]
struct State {
    listed: Vec<Kind>,
    unreadable: BTreeMap<Kind, Problem>,
    problems: BTreeMap<ObjectKey, Problem>,
}

impl KubernetesSource {
    /// The kinds that are watched.
    const KINDS: [Kind; 6] = [
        Kind::Namespace,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Pod,
        Kind::IngressBackend,
        Kind::MeshConfig,
    ];

    /// A source that reads what this client may see; the MeshConfig is the one in `namespace`, the control plane's.
    pub fn new(client: Client, namespace: impl Into<String>, metrics: WatchMetrics) -> Self {
        Self { client, namespace: namespace.into(), metrics, timing: Timing::default() }
    }

    /// Other waits than the default ones.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    fn watches(&self, sender: &mpsc::Sender<Message>) -> JoinSet<()> {
        let mut watches = JoinSet::new();
        self.core(&mut watches, sender, Kind::Namespace, lean::namespace, Object::Namespace);
        self.core(&mut watches, sender, Kind::Service, lean::service, Object::Service);
        self.core(&mut watches, sender, Kind::EndpointSlice, lean::endpoint_slice, Object::EndpointSlice);
        let control_plane = self.namespace.clone();
        let pod = move |text: &str| lean::pod(text, &control_plane);
        self.core(&mut watches, sender, Kind::Pod, pod, Object::Pod);
        let backends: Api<IngressBackend> = Api::all(self.client.clone());
        let backends =
            Watch::lean(backends, stored_policy::ingress_backend, self.meter(Kind::IngressBackend));
        let configs: Api<MeshConfig> = Api::namespaced(self.client.clone(), &self.namespace);
        let configs = Watch::lean(configs, stored_policy::mesh_config, self.meter(Kind::MeshConfig));
        for (kind, watch) in
            [(Kind::IngressBackend, backends), (Kind::MeshConfig, configs.named(MESH_CONFIG_NAME))]
        {
            let wrap = move |event| Message::new(kind, event, |object| object);
            watches.spawn(watch.timing(self.timing).run(sender.clone(), wrap));
        }
        watches
    }

    fn core<K>(
        &self,
        watches: &mut JoinSet<()>,
        sender: &mpsc::Sender<Message>,
        kind: Kind,
        decode: impl Fn(&str) -> serde_json::Result<K> + Send + Sync + 'static,
        into: fn(Arc<K>) -> Object,
    ) where
        K: Resource<DynamicType = ()> + Send + Sync + 'static,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let watch = Watch::lean(api, decode, self.meter(kind)).timing(self.timing);
        let wrap = move |event: Event<K>| Message::new(kind, event, |object| into(object.into()));
        watches.spawn(watch.run(sender.clone(), wrap));
    }

    fn meter(&self, kind: Kind) -> KindMeter {
        self.metrics.kind(kind.as_str())
    }

    async fn follow(self, batches: mpsc::Sender<Batch>) {
        let (sender, mut messages) = mpsc::channel(QUEUE);
        let _watches = self.watches(&sender);
        // So that the queue ends if every watch does.
        drop(sender);
        let mut state = State::default();
        loop {
            let message = tokio::select! {
                () = batches.closed() => return,
                message = messages.recv() => message,
            };
            let Some(message) = message else { return };
            let Ok(permit) = batches.reserve().await else { return };
            let mut batch = Batch::default();
            state.take(message, &mut batch.changes);
            for _ in 1..MOST_MESSAGES {
                let Ok(message) = messages.try_recv() else { break };
                state.take(message, &mut batch.changes);
            }
            batch.is_complete = Self::KINDS.iter().all(|kind| state.listed.contains(kind));
            batch.problems = state.problems();
            permit.send(batch);
        }
    }
}

impl Source for KubernetesSource {
    fn run(self: Box<Self>, batches: mpsc::Sender<Batch>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.follow(batches))
    }
}

/// Whether a Pod, as the source tells of it, is a workload of the mesh: our injector's sidecar is in it, it has an address of its own, and it
/// has not ended.
pub fn is_injected(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let has_address = status.and_then(|status| status.pod_ip.as_ref()).is_some_and(|ip| !ip.is_empty());
    let is_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    has_sidecar(pod) && has_address && !is_host && !has_ended(pod)
}

impl Message {
    fn new<K>(kind: Kind, event: Event<K>, into: impl Fn(K) -> Object) -> Self {
        let mut message = Self { kind, changes: Vec::new(), unreadable: None };
        match event {
            Event::Unreadable(reason) => message.unreadable = Some(reason),
            Event::Changed { applied, deleted } => {
                message.changes.extend(deleted.into_iter().map(|name| Change::Delete(key(kind, name))));
                let applied = applied.into_iter().map(into);
                message.changes.extend(applied.map(|object| Change::Apply { object, origin: None }));
            }
        }
        message
    }
}

impl State {
    fn take(&mut self, message: Message, changes: &mut Vec<Change>) {
        let kind = message.kind;
        if let Some(reason) = message.unreadable {
            let problem = unreadable(kind, &reason);
            warn!("{problem}");
            self.unreadable.insert(kind, problem);
            return;
        }
        if self.unreadable.remove(&kind).is_some() {
            info!(%kind, "objects can be read");
        }
        if !self.listed.contains(&kind) {
            self.listed.push(kind);
        }
        for change in &message.changes {
            match change {
                Change::Apply { object: Object::Unreadable(object), .. } => {
                    let key = ObjectKey { kind: object.kind, name: object.name() };
                    self.problems.insert(key, problem(object));
                }
                Change::Apply { object, .. } => drop(self.problems.remove(&object.key())),
                Change::Delete(key) => drop(self.problems.remove(key)),
            }
        }
        changes.extend(message.changes);
    }

    fn problems(&self) -> Vec<Problem> {
        self.unreadable.values().chain(self.problems.values()).cloned().collect()
    }
}

fn key(kind: Kind, name: Name) -> ObjectKey {
    ObjectKey { kind, name: ObjectName::new(name.namespace, name.name) }
}

fn problem(object: &Unreadable) -> Problem {
    let title = format!("{} {}", object.kind, object.name());
    Problem {
        file: title.clone(),
        line: 0,
        column: 0,
        field: Some(object.finding.path.clone()).filter(|path| !path.is_empty()),
        object: Some(title),
        severity: ProblemSeverity::Error,
        message: object.finding.message.clone(),
    }
}

fn unreadable(kind: Kind, reason: &str) -> Problem {
    let crd = match kind {
        Kind::IngressBackend => Some(IngressBackend::crd_name()),
        Kind::MeshConfig => Some(MeshConfig::crd_name()),
        _ => None,
    };
    let message = match crd {
        Some(crd) if reason.starts_with("404") => {
            format!("CustomResourceDefinition {crd} is not installed; waiting for it")
        }
        _ => format!("cannot be read, trying on: {reason}"),
    };
    Problem {
        file: kind.to_string(),
        line: 0,
        column: 0,
        field: None,
        object: None,
        severity: ProblemSeverity::Error,
        message,
    }
}

#[cfg(test)]
mod tests;
