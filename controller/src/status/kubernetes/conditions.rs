//! The conditions `Accepted` and `Healthy`, also beside conditions of other controllers.

use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::parents::{dated, now};
use crate::compile::status::{CurrentStatus, HealthCondition, ObjectStatus};

/// The type of the condition that says whether an object is in force.
const ACCEPTED: &str = "Accepted";
/// Maximum characters of its message, as Kubernetes has it.
const MOST_CHARACTERS: usize = 32 * 1024;

/// The condition with this reason and message.
pub(super) fn of(status: &ObjectStatus, reason: &str, message: &str) -> Value {
    json!({
        "type": ACCEPTED,
        "status": if status.current == CurrentStatus::Committed { "True" } else { "False" },
        "reason": reason,
        "message": message,
        "observedGeneration": status.observed_generation,
    })
}

/// Whether what the object refers to works, if that is known.
pub(super) fn healthy(status: &ObjectStatus) -> Option<Value> {
    let HealthCondition { is_healthy, reason, message } = status.health.as_ref()?;
    Some(json!({
        "type": "Healthy",
        "status": if *is_healthy { "True" } else { "False" },
        "reason": reason,
        "message": message,
        "observedGeneration": status.observed_generation,
    }))
}

/// The condition of an object whose status has nothing else of ours: its message has the warnings, too.
pub(super) fn accepted(status: &ObjectStatus) -> Value {
    let warnings = status.warnings.iter().map(|warning| format!("; warning: {warning}"));
    let message: String = [status.reason.clone()].into_iter().chain(warnings).collect();
    let message: String = message.chars().take(MOST_CHARACTERS).collect();
    of(status, status.condition.unwrap_or_default(), &message)
}

/// Puts our condition into the stored list, unless it is there already. Conditions of others stay. A conflict with another
/// writer is an error: the next attempt reads what that one has written.
pub(super) async fn write(api: &Api<DynamicObject>, name: &str, status: &Value) -> kube::Result<()> {
    let object = api.get(name).await?;
    let stored = &object.data["status"];
    let ours = dated(status, Some(stored), &now());
    let others = stored["conditions"].as_array().into_iter().flatten();
    let others = others.filter(|condition| condition["type"] != ACCEPTED).cloned();
    let merged: Vec<Value> =
        others.chain(ours["conditions"].as_array().cloned().unwrap_or_default()).collect();
    if stored["conditions"].as_array() == Some(&merged) {
        return Ok(());
    }
    let version = object.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": merged}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}
