//! Takes batches of changes, recompiles what they touch, and hands the result to whoever follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use tidegate_core::TrustDomain;
use tidegate_crds::MeshConfigSpec;
use tidegate_runtime::logging::LogThrottle;
use tidegate_runtime::readiness::Blocker;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::LocalPod;
use crate::compile::status::{self, CurrentStatus, NamespaceStatuses, ObjectStatus};
use crate::compile::{self, CompiledWorkload, NamespaceRules, TOO_LARGE, service_account};
use crate::destinations::Destinations;
use crate::index::{Index, Touched};
use crate::metrics::ControllerMetrics;
use crate::namespace_shares::{self, NamespaceShares};
use crate::object::{Kind, ObjectKey, ObjectName};
use crate::source::{Batch, Problem};
use crate::status::{StatusBoard, StatusWriter};
use crate::workloads::Workloads;

/// What the engine makes, for readers in other tasks.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) index: Arc<RwLock<Index>>,
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) destinations: Arc<Destinations>,
    pub(crate) statuses: StatusBoard,
    pub(crate) problems: Arc<RwLock<Vec<Problem>>>,
}

/// The one writer of everything in [`Shared`].
pub(crate) struct Engine {
    shared: Shared,
    is_workload: fn(&Pod) -> bool,
    status_writers: Vec<Box<dyn StatusWriter>>,
    written: BTreeMap<ObjectKey, Written>,
    /// The IngressBackends that have no room at a workload, by workload.
    left_out: BTreeMap<ObjectName, BTreeSet<Arc<str>>>,
    /// What the policies of each namespace take, by the name of the workload.
    shares: NamespaceShares<Arc<str>>,
    complaints: LogThrottle<Arc<str>>,
    mesh_config: watch::Sender<Option<Arc<MeshConfigSpec>>>,
    pods: watch::Sender<Arc<Vec<LocalPod>>>,
    metrics: ControllerMetrics,
    /// Held until the first complete list has been compiled.
    blocker: Option<Blocker>,
}

/// A status as the writers have it.
#[derive(Debug, PartialEq)]
struct Written {
    status: ObjectStatus,
    origin: Option<Arc<str>>,
    /// Another object in the place of one before has no status yet.
    uid: Option<String>,
}

impl Engine {
    pub(crate) fn new(
        shared: Shared,
        is_workload: fn(&Pod) -> bool,
        status_writers: Vec<Box<dyn StatusWriter>>,
        metrics: ControllerMetrics,
        blocker: Blocker,
    ) -> Self {
        Self {
            shared,
            is_workload,
            status_writers,
            written: BTreeMap::new(),
            left_out: BTreeMap::new(),
            shares: NamespaceShares::new(namespace_shares::SHARE, metrics.workloads_left_out.clone()),
            complaints: LogThrottle::default(),
            mesh_config: watch::Sender::new(None),
            pods: watch::Sender::default(),
            metrics,
            blocker: Some(blocker),
        }
    }

    pub(crate) fn mesh_config(&self) -> watch::Receiver<Option<Arc<MeshConfigSpec>>> {
        self.mesh_config.subscribe()
    }

    pub(crate) fn pods(&self) -> watch::Receiver<Arc<Vec<LocalPod>>> {
        self.pods.subscribe()
    }

    /// Runs until the source ends. Compiling takes a processor for as long as it takes, so it has a thread of its own:
    /// those who ask, and sidecars that connect, do not wait for it.
    pub(crate) fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(batch) = batches.blocking_recv() {
            self.take(batch);
        }
    }

    pub(crate) fn take(&mut self, batch: Batch) {
        let mut touched = Touched::default();
        {
            let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
            for change in batch.changes {
                index.apply(change, &mut touched);
            }
        }
        *self.shared.problems.write().unwrap_or_else(PoisonError::into_inner) = batch.problems;
        let is_first = self.blocker.is_some();
        if is_first && !batch.is_complete {
            return;
        }
        touched.all |= is_first;
        if touched == Touched::default() {
            return;
        }
        self.recompile(&touched);
        if is_first {
            self.shared.workloads.mark_synced();
            info!(workloads = self.shared.workloads.count(), "every object is compiled");
            self.blocker = None;
        }
    }

    fn recompile(&mut self, touched: &Touched) {
        let index = self.shared.index.clone();
        let index = index.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: BTreeSet<ObjectName> = touched.pods.clone();
        if touched.all {
            names.extend(index.pods().map(|(name, _)| name.clone()));
        }
        for namespace in &touched.namespaces {
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
        self.shared.destinations.update(&index, touched);
        self.update_statuses(&index, touched);
        if touched.all {
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
        let Some(pod) = index.pod(name).filter(|pod| (self.is_workload)(pod)) else {
            self.shares.release(namespace, key);
            return self.shared.workloads.withdraw(name, None);
        };
        if self.shares.is_used_up(namespace, key) {
            return self.leave_out(name);
        }
        self.metrics.compiled.inc();
        let (_, rules) = match rules.take() {
            Some(kept) if kept.0 == *namespace => rules.insert(kept),
            _ => rules.insert((namespace.clone(), NamespaceRules::new(index, namespace))),
        };
        match compile::workload_by(rules, pod, &self.shared.trust_domain) {
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

    fn leave_out(&self, name: &ObjectName) {
        let error = self.shares.reason("policies");
        if self.complaints.admits(&name.namespace, Instant::now()) {
            warn!(workload = %name, error, "workload has no policy, and so no traffic");
        }
        self.shared.workloads.withdraw(name, Some(error));
    }

    fn update_statuses(&mut self, index: &Index, touched: &Touched) {
        let of_pods: BTreeSet<_> = touched.pods.iter().map(|pod| &pod.namespace).collect();
        let is_touched = |name: &ObjectName| {
            touched.all
                || touched.namespaces.contains(&name.namespace)
                || touched.policies.contains(&name.namespace)
                || of_pods.contains(&name.namespace)
        };
        let is_ours = |name: &ObjectName| is_touched(name) && !index.is_of_another_mesh(&name.namespace);
        let backends = index.ingress_backends().filter(|(name, _)| is_ours(name));
        let mut of_namespaces: BTreeMap<&str, NamespaceStatuses<'_>> = BTreeMap::new();
        let without_room: BTreeSet<&str> = self.left_out.values().flatten().map(|policy| &**policy).collect();
        let backends: Vec<_> = backends
            .map(|(name, object)| {
                let namespace = of_namespaces
                    .entry(&name.namespace)
                    .or_insert_with(|| NamespaceStatuses::new(index, &name.namespace));
                let elsewhere = without_room.contains(&*name.to_string()).then(|| TOO_LARGE.to_owned());
                let key = ObjectKey { kind: Kind::IngressBackend, name: name.clone() };
                (key, (namespace.of(name, object, elsewhere), object.metadata.uid.clone()))
            })
            .collect();
        let configs = index.mesh_configs().filter(|_| touched.all).map(|(name, object)| {
            let key = ObjectKey { kind: Kind::MeshConfig, name: name.clone() };
            (key, (status::mesh_config(index, name, object), object.metadata.uid.clone()))
        });
        let unreadable = index.unreadable().filter(|(key, _)| match key.kind {
            Kind::MeshConfig => touched.all,
            _ => is_ours(&key.name),
        });
        let unreadable = unreadable
            .map(|(key, object)| (key.clone(), (status::unreadable(object), object.metadata.uid.clone())));
        let current: BTreeMap<_, _> = backends.into_iter().chain(configs).chain(unreadable).collect();
        let is_gone = |key: &&ObjectKey| {
            !current.contains_key(*key)
                && match key.kind {
                    Kind::MeshConfig => touched.all,
                    _ => is_touched(&key.name),
                }
        };
        let gone: Vec<_> = self.written.keys().filter(is_gone).cloned().collect();
        for key in gone {
            self.written.remove(&key);
            self.status_writers.iter().for_each(|writer| writer.remove(&key));
        }
        for (key, (status, uid)) in current {
            let written = Written { status, origin: index.origin(key.kind, &key.name).cloned(), uid };
            let before = self.written.get(&key);
            if before == Some(&written) {
                continue;
            }
            let Written { status, origin, .. } = &written;
            if before.is_none_or(|before| before.status != *status) {
                log_status(&key, status);
            }
            self.status_writers.iter().for_each(|writer| writer.write(&key, status, origin.as_ref()));
            self.written.insert(key, written);
        }
    }

    /// Who starts sidecars needs the list; on a cluster nobody asks, and it would cost more than the policies.
    fn update_pods(&self, index: &Index) {
        if index.is_of_cluster() {
            return;
        }
        let local = index.pods().filter(|(_, pod)| (self.is_workload)(pod));
        let pods: Vec<_> = local.map(|(name, pod)| self.local_pod(name, pod)).collect();
        self.pods.send_if_modified(|current| {
            let is_news = **current != pods;
            if is_news {
                *current = Arc::new(pods);
            }
            is_news
        });
    }

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
                .map(|published| published.policy.ports.keys().copied().collect())
                .unwrap_or_default(),
        }
    }
}

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
