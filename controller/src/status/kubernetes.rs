//! Statuses written back to the objects themselves, by the one replica that leads.
//!
//! Every replica knows every status. The leader writes those that have changed; who becomes the leader writes all of
//! them once, which changes nothing where they are right already. A write merges our fields into the status and
//! leaves others' fields alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};
use tidegate_runtime::backoff::Backoff;
use tidegate_runtime::metrics::Metrics;
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::StatusWriter;
use crate::compile::status::ObjectStatus;
use crate::object::kinds::kinds;
use crate::object::{Kind, ObjectKey};

/// Writes at a time.
const CONCURRENT: usize = 8;
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first and the longest pause after a write that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The statuses that objects should have. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct KubernetesStatuses(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
    is_leader: Gauge,
    written: Counter,
    failed: Counter,
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeMap<ObjectKey, Value>,
    /// Those that may not be what the objects have.
    unwritten: BTreeSet<ObjectKey>,
}

/// What became of a write.
enum Outcome {
    Written,
    /// The object is not there; its next version will have another status.
    Gone,
    /// It will never be taken as it is.
    Refused,
    Failed,
}

impl KubernetesStatuses {
    /// No statuses yet.
    pub fn new(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.registry(|registry| {
            let shared = &own.0;
            registry.register(
                "tidegate_controller_leader",
                "Whether this replica writes statuses, 0 or 1",
                shared.is_leader.clone(),
            );
            registry.register(
                "tidegate_controller_statuses_written",
                "Statuses written to objects",
                shared.written.clone(),
            );
            registry.register(
                "tidegate_controller_status_writes_failed",
                "Statuses that could not be written at one try",
                shared.failed.clone(),
            );
        });
        own
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
                // What another leader wrote last is not known.
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

impl Shared {
    /// Writes what is unwritten, for ever.
    async fn write_all(&self, client: &Client) {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            let due: Vec<_> = {
                let state = self.lock();
                let due = state.unwritten.iter();
                due.filter_map(|key| Some((key.clone(), state.wanted.get(key)?.clone()))).collect()
            };
            if due.is_empty() {
                backoff.reset();
                // A permit is kept for us if news came since the look above.
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

    /// Whether there is nothing more to do about this status.
    async fn write(&self, client: &Client, key: ObjectKey, status: Value) -> bool {
        let outcome = match tokio::time::timeout(PATIENCE, patch(client, &key, &status)).await {
            Ok(Ok(())) => Outcome::Written,
            Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => Outcome::Gone,
            Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 400 | 422) => {
                warn!(object = %key, reason = answer.message, "status is refused");
                Outcome::Refused
            }
            Ok(Err(error)) => {
                warn!(object = %key, %error, "status not written, trying again");
                Outcome::Failed
            }
            Err(_) => {
                warn!(object = %key, "status not written within {PATIENCE:?}, trying again");
                Outcome::Failed
            }
        };
        match outcome {
            Outcome::Written => drop(self.written.inc()),
            Outcome::Gone => debug!(object = %key, "gone before its status was written"),
            Outcome::Refused | Outcome::Failed => drop(self.failed.inc()),
        }
        let is_done = !matches!(outcome, Outcome::Failed);
        let mut state = self.lock();
        // Unless it has changed meanwhile.
        if is_done && state.wanted.get(&key).is_none_or(|wanted| *wanted == status) {
            state.unwritten.remove(&key);
        }
        is_done
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusWriter for KubernetesStatuses {
    fn write(&self, key: &ObjectKey, status: &ObjectStatus, _: Option<&Arc<str>>) {
        let wanted = fields(status);
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

/// The fields that OSM's users know, and what is likely not meant. `null` takes a field away.
fn fields(status: &ObjectStatus) -> Value {
    let warnings = (!status.warnings.is_empty()).then_some(&status.warnings);
    json!({
        "currentStatus": status.current.as_str(),
        "reason": status.reason,
        "warnings": warnings,
        "observedGeneration": status.observed_generation,
    })
}

macro_rules! define_resource {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        fn resource(kind: Kind) -> ApiResource {
            match kind {
                $(Kind::$kind => ApiResource::erase::<$type>(&()),)*
            }
        }
    };
}

kinds!(define_resource);

async fn patch(client: &Client, key: &ObjectKey, status: &Value) -> kube::Result<()> {
    let resource = resource(key.kind);
    // The answer is the object, which our types need not be able to read.
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.name.namespace, &resource);
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(&key.name.name, &PatchParams::default(), &patch).await.map(drop)
}

#[cfg(test)]
mod tests;
