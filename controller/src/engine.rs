//! Takes batches of changes, compiles what they affect, and publishes the results and the statuses.
//!
//! One batch at a time: its changes are applied to the index, which notes what they affect; the workloads among it
//! are compiled and published, then the resources that sidecars subscribe to, then statuses. Nothing is published
//! before the source has reported everything once: a policy that misses an object that exists would refuse traffic
//! that it grants.
//!
//! The index is locked for writing only while changes are applied, and for reading while they are compiled: pages of
//! the admin server and sidecars that subscribe read it at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use tidegate_core::{ObjectRef, TrustDomain};
use tidegate_crds::MeshConfigSpec;
use tidegate_runtime::logging::LogThrottle;
use tidegate_runtime::readiness::Blocker;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::compile::status::{self, CurrentStatus, ObjectStatus, StatusScope};
use crate::compile::{self, CompiledWorkload, NamespaceRules};
use crate::index::{Affected, Index};
use crate::local_pod::LocalPod;
use crate::metrics::ControllerMetrics;
use crate::object::pod::{node_name, service_account};
use crate::object::{ObjectKey, ObjectName};
use crate::proxy_health::{ProxyHealth, ProxyProbe};
use crate::publish::on_demand::OnDemand;
use crate::publish::policies::PolicyStore;
use crate::publish::shares::{self, NamespaceShares};
use crate::source::{Batch, SourceProblem};
use crate::status::{StatusBoard, StatusWriter};

/// What the engine makes, for readers in other tasks.
#[derive(Clone, Debug)]
pub(crate) struct ControllerState {
    pub(crate) trust_domain: TrustDomain,
    /// Whether a Pod has a sidecar.
    pub(crate) is_workload: fn(&Pod) -> bool,
    pub(crate) index: Arc<RwLock<Index>>,
    pub(crate) workloads: Arc<PolicyStore>,
    /// What sidecars ask for.
    pub(crate) resources: Arc<OnDemand>,
    pub(crate) statuses: StatusBoard,
    pub(crate) problems: Arc<RwLock<Vec<SourceProblem>>>,
}

/// The one writer of everything in [`ControllerState`].
pub(crate) struct Engine {
    shared: ControllerState,
    status_writers: Vec<Box<dyn StatusWriter>>,
    written: BTreeMap<ObjectKey, WrittenStatus>,
    /// The objects whose rules have no room at a workload, by workload.
    left_out: BTreeMap<ObjectName, BTreeSet<ObjectRef>>,
    /// What the policies of each namespace take, by the name of the workload.
    shares: NamespaceShares<Arc<str>>,
    complaints: LogThrottle<Arc<str>>,
    mesh_config: watch::Sender<Option<Arc<MeshConfigSpec>>>,
    pods: watch::Sender<Arc<Vec<LocalPod>>>,
    probes: watch::Sender<Arc<Vec<ProxyProbe>>>,
    metrics: ControllerMetrics,
    /// Held until the first complete list has been compiled.
    blocker: Option<Blocker>,
}

/// What the engine works on.
enum EngineInput {
    Batch(Batch),
    Health(Arc<ProxyHealth>),
}

/// A status as the writers have it.
#[derive(Debug, PartialEq)]
struct WrittenStatus {
    status: ObjectStatus,
    origin: Option<Arc<str>>,
    /// Another object in the place of one before has no status yet.
    uid: Option<String>,
}

impl Engine {
    /// An engine that has compiled nothing. `blocker` keeps the controller unready until the first complete list is
    /// published.
    pub(crate) fn new(
        shared: ControllerState,
        status_writers: Vec<Box<dyn StatusWriter>>,
        metrics: ControllerMetrics,
        blocker: Blocker,
    ) -> Self {
        Self {
            shared,
            status_writers,
            written: BTreeMap::new(),
            left_out: BTreeMap::new(),
            shares: NamespaceShares::new(shares::SHARE, metrics.workloads_left_out.clone()),
            complaints: LogThrottle::default(),
            mesh_config: watch::Sender::new(None),
            pods: watch::Sender::default(),
            probes: watch::Sender::default(),
            metrics,
            blocker: Some(blocker),
        }
    }

    /// The MeshConfig in force; `None` without a readable one.
    pub(crate) fn mesh_config(&self) -> watch::Receiver<Option<Arc<MeshConfigSpec>>> {
        self.mesh_config.subscribe()
    }

    /// The local Pods, for standalone mode; stays empty on a cluster.
    pub(crate) fn pods(&self) -> watch::Receiver<Arc<Vec<LocalPod>>> {
        self.pods.subscribe()
    }

    /// The forward proxies to probe.
    pub(crate) fn probes(&self) -> watch::Receiver<Arc<Vec<ProxyProbe>>> {
        self.probes.subscribe()
    }

    /// Runs until the source ends, with the state of proxies. Compiling takes a processor for as long as it takes, so it has a
    /// thread of its own: the admin server and sidecars that connect do not wait for it. That thread must be one of a runtime.
    pub(crate) fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        mut health: watch::Receiver<Arc<ProxyHealth>>,
    ) {
        let runtime = Handle::current();
        loop {
            let next = runtime.block_on(async {
                tokio::select! {
                    batch = batches.recv() => batch.map(EngineInput::Batch),
                    Ok(()) = health.changed() => Some(EngineInput::Health(health.borrow_and_update().clone())),
                }
            });
            match next {
                Some(EngineInput::Batch(batch)) => self.take(batch),
                Some(EngineInput::Health(health)) => self.take_health(health),
                None => return,
            }
        }
    }

    /// Takes over the state of proxies, which changes nothing but statuses.
    pub(crate) fn take_health(&mut self, health: Arc<ProxyHealth>) {
        let mut affected = Affected::default();
        let index = self.shared.index.clone();
        index.write().unwrap_or_else(PoisonError::into_inner).set_proxy_health(health, &mut affected);
        self.update_statuses(&index.read().unwrap_or_else(PoisonError::into_inner), &affected);
    }

    /// Applies a batch and publishes what it changes. Batches before the first complete one only fill the index.
    pub(crate) fn take(&mut self, batch: Batch) {
        let mut affected = Affected::default();
        {
            let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
            for change in batch.changes {
                index.apply(change, &mut affected);
            }
        }
        *self.shared.problems.write().unwrap_or_else(PoisonError::into_inner) = batch.problems;
        let is_first = self.blocker.is_some();
        if is_first && !batch.is_complete {
            return;
        }
        affected.all |= is_first;
        if affected == Affected::default() {
            return;
        }
        self.recompile(&affected);
        if is_first {
            self.shared.workloads.mark_synced();
            info!(workloads = self.shared.workloads.count(), "every object is compiled");
            self.blocker = None;
        }
    }

    /// Compiles the affected workloads, oldest first, and then those that were left out of a namespace's share and
    /// may fit now. A workload is compiled at most once, plus once for new room.
    fn recompile(&mut self, affected: &Affected) {
        let index = self.shared.index.clone();
        let index = index.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: BTreeSet<ObjectName> = affected.pods.clone();
        if affected.all {
            names.extend(index.pods().map(|(name, _)| name.clone()));
        }
        if !affected.all && !affected.nodes.is_empty() {
            let is_on = |pod: &Pod| node_name(pod).is_some_and(|node| affected.nodes.contains(node));
            names.extend(index.pods().filter(|(_, pod)| is_on(pod)).map(|(name, _)| name.clone()));
        }
        for namespace in &affected.namespaces {
            names.extend(index.pods_in(namespace).map(|(name, _)| name.clone()));
        }
        // The oldest first: what the namespace's share is too small for is what came last.
        let mut names: Vec<_> = names.into_iter().collect();
        let age = |name: &ObjectName| index.pod(name)?.metadata.creation_timestamp.clone();
        names.sort_by_cached_key(|name| (name.namespace.clone(), age(name)));
        let mut rules = None;
        for name in &names {
            self.recompile_workload(&index, &mut rules, name);
        }
        for (namespace, name) in self.shares.take_new_room() {
            self.recompile_workload(&index, &mut rules, &ObjectName { namespace, name });
        }
        self.shared.resources.update(&index, affected);
        self.update_statuses(&index, affected);
        if affected.all {
            let config = index.mesh_config_spec();
            if config.is_none() && index.unreadable_mesh_config().is_none() {
                warn!("{}", compile::NO_MESH_CONFIG);
            }
            self.mesh_config.send_if_modified(|current| {
                let is_news = current.as_deref() != config;
                if is_news {
                    *current = config.cloned().map(Arc::new);
                }
                is_news
            });
        }
        self.update_probes(&index, affected);
        self.update_pods(&index);
        self.metrics.workloads.set(i64::try_from(self.shared.workloads.count()).unwrap_or(i64::MAX));
    }

    /// `rules` are those of the namespace of the workload before: names come sorted by namespace, so they mostly still
    /// hold.
    fn recompile_workload<'i>(
        &mut self,
        index: &'i Index,
        rules: &mut Option<(Arc<str>, NamespaceRules<'i>)>,
        name: &ObjectName,
    ) {
        let ObjectName { namespace, name: key } = name;
        self.left_out.remove(name);
        let Some(pod) = index.pod(name).filter(|pod| (self.shared.is_workload)(pod)) else {
            self.shares.release(namespace, key);
            return self.shared.workloads.withdraw(name, None);
        };
        if self.shares.is_used_up(namespace, key) {
            return self.leave_out(name);
        }
        self.metrics.compiled.inc();
        let (_, rules) = match rules.take() {
            Some(kept) if kept.0 == *namespace => rules.insert(kept),
            _ => rules.insert((
                namespace.clone(),
                NamespaceRules::new(index, namespace, &self.shared.trust_domain),
            )),
        };
        match compile::workload_by(rules, pod) {
            Ok(compiled) if !self.shares.admit(namespace, key, compiled.size()) => self.leave_out(name),
            Ok(CompiledWorkload { policy, left_out }) => {
                if !left_out.is_empty() {
                    self.left_out.insert(name.clone(), left_out);
                }
                if self.shared.workloads.publish(name, policy) {
                    debug!(workload = %name, "policy changed");
                }
            }
            Err(error) => {
                warn!(workload = %name, %error, "workload has no identity, and so no traffic");
                self.shares.release(namespace, key);
                self.shared.workloads.withdraw(name, Some(error.to_string()));
            }
        }
    }

    /// Withdraws the policy of a workload that has no place in its namespace's share. Its sidecar refuses all traffic
    /// and is shown the reason.
    fn leave_out(&self, name: &ObjectName) {
        let error = self.shares.reason("policies");
        if self.complaints.admits(&name.namespace, Instant::now()) {
            warn!(workload = %name, error, "workload has no policy, and so no traffic");
        }
        self.shared.workloads.withdraw(name, Some(error));
    }

    /// Writes the statuses that may have changed and differ from those written before; removes those of objects that
    /// are gone. An object that was deleted and created again under its name differs by its UID and is written again:
    /// its stored status is empty.
    fn update_statuses(&mut self, index: &Index, affected: &Affected) {
        let without_room = self.left_out.values().flatten().collect();
        let scope = StatusScope::affected(index, affected, without_room);
        let current: BTreeMap<_, _> = status::statuses(&scope)
            .into_iter()
            .map(|(kind, judged)| (ObjectKey { kind, name: judged.name }, (judged.status, judged.uid)))
            .collect();
        let is_gone = |key: &&ObjectKey| !current.contains_key(*key) && status::is_affected(&scope, key);
        let gone: Vec<_> = self.written.keys().filter(is_gone).cloned().collect();
        for key in gone {
            self.written.remove(&key);
            self.status_writers.iter().for_each(|writer| writer.remove(&key));
        }
        for (key, (status, uid)) in current {
            let written = WrittenStatus { status, origin: index.origin(key.kind, &key.name).cloned(), uid };
            let before = self.written.get(&key);
            if before == Some(&written) {
                continue;
            }
            let WrittenStatus { status, origin, .. } = &written;
            if before.is_none_or(|before| before.status != *status) {
                log_status(&key, status);
            }
            self.status_writers.iter().for_each(|writer| writer.write(&key, status, origin.as_ref()));
            self.written.insert(key, written);
        }
    }

    /// What an EgressProxy affects is at least its namespace.
    fn update_probes(&self, index: &Index, affected: &Affected) {
        if !affected.all && affected.namespaces.is_empty() {
            return;
        }
        let probes = compile::egress_proxy::probes(index);
        self.probes.send_if_modified(|current| {
            let is_news = **current != probes;
            if is_news {
                *current = Arc::new(probes);
            }
            is_news
        });
    }

    /// Standalone mode starts sidecars from this list. A cluster does not need it, and there it would cost more than the
    /// policies.
    fn update_pods(&self, index: &Index) {
        if index.is_of_cluster() {
            return;
        }
        let local = index.pods().filter(|(_, pod)| (self.shared.is_workload)(pod));
        let pods: Vec<_> = local.map(|(name, pod)| self.local_pod(name, pod)).collect();
        self.pods.send_if_modified(|current| {
            let is_news = **current != pods;
            if is_news {
                *current = Arc::new(pods);
            }
            is_news
        });
    }

    /// What standalone mode needs to start the Pod's sidecar. Its ports are those of the policy, which is why it is
    /// made after compiling.
    fn local_pod(&self, name: &ObjectName, pod: &Pod) -> LocalPod {
        let published = self.shared.workloads.policy(name);
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
        LocalPod {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            uid: pod.metadata.uid.clone(),
            ip: address.and_then(|address| address.parse().ok()),
            service_account: service_account(pod).to_owned(),
            annotations: pod.metadata.annotations.clone().unwrap_or_default(),
            ports: published
                .as_ref()
                .and_then(|published| published.policy())
                .map(|policy| policy.ports.keys().copied().collect())
                .unwrap_or_default(),
        }
    }
}

/// One line for a change of a status, so that the log is a history of what took effect; warnings have a line each.
fn log_status(key: &ObjectKey, status: &ObjectStatus) {
    match status.current {
        CurrentStatus::Committed => info!(object = %key, "{}", status.reason),
        CurrentStatus::Error => warn!(object = %key, reason = %status.reason, "not in force"),
    }
    for warning in &status.warnings {
        warn!(object = %key, "{warning}");
    }
}

#[cfg(test)]
mod tests;
