//! Writes statuses to the objects themselves, on the replica that leads.
//!
//! Every replica computes every status. The leader writes those that have changed; a new leader writes all of them
//! once, which changes nothing where they are already right. A write merges our fields into the status and leaves
//! others' fields alone. Routes and ServiceEntries have lists that several controllers write ([`parents`],
//! [`conditions`]).

mod conditions;
mod parents;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};
use tidegate_runtime::backoff::ExponentialBackoff;
use tidegate_runtime::metrics::Metrics;
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::StatusWriter;
use crate::compile::status::ObjectStatus;
use crate::object::{Kind, ObjectKey};

/// Concurrent writes.
const CONCURRENT: usize = 8;
/// The timeout of one write.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first and the longest pause after a failed write.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The statuses that objects should have. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct KubernetesStatuses(Arc<StatusQueue>);

/// Shared by the engine, which adds statuses, and the task that writes them.
#[derive(Debug, Default)]
struct StatusQueue {
    state: Mutex<QueuedStatuses>,
    news: Notify,
    is_leader: Gauge,
    written: Counter,
    failed: Counter,
}

/// Bounded by the number of objects: a status that changes again before it is written is written once.
#[derive(Debug, Default)]
struct QueuedStatuses {
    wanted: BTreeMap<ObjectKey, Value>,
    /// Those that may differ from what is stored.
    unwritten: BTreeSet<ObjectKey>,
}

/// The outcome of a write.
enum WriteOutcome {
    Written,
    /// The object does not exist; its next version gets its own status.
    Gone,
    /// The API server will never accept it.
    Refused,
    Failed,
}

impl KubernetesStatuses {
    /// No statuses yet.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(StatusQueue {
            is_leader: metrics
                .register("tidegate_controller_leader", "Whether this replica writes statuses, 0 or 1"),
            written: metrics.register("tidegate_controller_statuses_written", "Statuses written to objects"),
            failed: metrics
                .register("tidegate_controller_status_writes_failed", "Failed attempts to write a status"),
            ..StatusQueue::default()
        }))
    }

    /// Writes while this replica leads. Runs until the sender of `is_leader` is dropped.
    pub async fn publish(self, client: Client, mut is_leader: watch::Receiver<bool>) {
        loop {
            self.0.is_leader.set(0);
            if is_leader.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            self.0.is_leader.set(1);
            {
                // Another leader may have written anything.
                let mut state = self.0.lock();
                state.unwritten = state.wanted.keys().cloned().collect();
            }
            tokio::select! {
                _ = is_leader.wait_for(|leads| !*leads) => {}
                () = self.0.write_all(&client) => {}
            }
        }
    }
}

impl StatusQueue {
    /// Writes what is unwritten; never returns.
    async fn write_all(&self, client: &Client) {
        let mut backoff = ExponentialBackoff::new(PAUSES.0, PAUSES.1);
        loop {
            let due: Vec<_> = {
                let state = self.lock();
                let due = state.unwritten.iter();
                due.filter_map(|key| Some((key.clone(), state.wanted.get(key)?.clone()))).collect()
            };
            if due.is_empty() {
                backoff.reset();
                // `Notify` keeps a permit if a status changed since the check above.
                self.news.notified().await;
                continue;
            }
            let writes = due.into_iter().map(|(key, status)| self.write(client, key, status));
            let failures = futures_util::stream::iter(writes)
                .buffer_unordered(CONCURRENT)
                .filter(|is_done| std::future::ready(!is_done))
                .count()
                .await;
            if failures == 0 {
                backoff.reset();
            } else {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }

    /// Whether this status is settled: written, or never accepted.
    async fn write(&self, client: &Client, key: ObjectKey, status: Value) -> bool {
        let outcome = match tokio::time::timeout(PATIENCE, patch(client, &key, &status)).await {
            Ok(Ok(())) => WriteOutcome::Written,
            Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => WriteOutcome::Gone,
            Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 400 | 422) => {
                warn!(object = %key, reason = answer.message, "status is refused");
                WriteOutcome::Refused
            }
            Ok(Err(error)) => {
                warn!(object = %key, %error, "status not written, trying again");
                WriteOutcome::Failed
            }
            Err(_) => {
                warn!(object = %key, "status not written within {PATIENCE:?}, trying again");
                WriteOutcome::Failed
            }
        };
        match outcome {
            WriteOutcome::Written => drop(self.written.inc()),
            WriteOutcome::Gone => debug!(object = %key, "gone before its status was written"),
            WriteOutcome::Refused | WriteOutcome::Failed => drop(self.failed.inc()),
        }
        let is_done = !matches!(outcome, WriteOutcome::Failed);
        let mut state = self.lock();
        // Unless it has changed meanwhile.
        if is_done && state.wanted.get(&key).is_none_or(|wanted| *wanted == status) {
            state.unwritten.remove(&key);
        }
        is_done
    }

    fn lock(&self) -> MutexGuard<'_, QueuedStatuses> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusWriter for KubernetesStatuses {
    fn write(&self, key: &ObjectKey, status: &ObjectStatus, _: Option<&Arc<str>>) {
        let wanted = fields(key.kind, status);
        {
            let mut state = self.0.lock();
            state.wanted.insert(key.clone(), wanted);
            state.unwritten.insert(key.clone());
        }
        self.0.news.notify_one();
    }

    fn remove(&self, key: &ObjectKey) {
        let mut state = self.0.lock();
        state.wanted.remove(key);
        state.unwritten.remove(key);
    }
}

/// The status fields of OSM, our warnings and, for kinds that have them, the conditions `Accepted` and `Healthy`; of a route, its parents; of a
/// ServiceEntry, whose status is Istio's, only the condition. `null` removes a field.
fn fields(kind: Kind, status: &ObjectStatus) -> Value {
    if let Some(ours) = &status.parents {
        return json!({"parents": parents::entries(ours, status.observed_generation)});
    }
    if kind == Kind::ServiceEntry {
        return json!({"conditions": [conditions::accepted(status)]});
    }
    let warnings = (!status.warnings.is_empty()).then_some(&status.warnings);
    let mut fields = json!({
        "currentStatus": status.current.as_str(),
        "reason": status.reason,
        "warnings": warnings,
        "observedGeneration": status.observed_generation,
    });
    if let Some(reason) = status.condition {
        let accepted = conditions::of(status, reason, &status.reason);
        fields["conditions"] = [accepted].into_iter().chain(conditions::healthy(status)).collect();
    }
    fields
}

/// Merges the fields into the status subresource (RFC 7386) without a resource version: only the leader writes, and
/// its newest status is right whatever is stored. A route's parents and a ServiceEntry's conditions are merged one by one.
async fn patch(client: &Client, key: &ObjectKey, status: &Value) -> kube::Result<()> {
    let resource = key.kind.resource();
    // The answer is the object, which our types may be unable to read.
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.name.namespace, &resource);
    if let Some(ours) = status["parents"].as_array() {
        return parents::write(&api, &key.name.name, ours).await;
    }
    if key.kind == Kind::ServiceEntry {
        return conditions::write(&api, &key.name.name, status).await;
    }
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(&key.name.name, &PatchParams::default(), &patch).await.map(drop)
}

#[cfg(test)]
mod tests;
