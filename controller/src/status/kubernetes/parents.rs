//! Merges what this mesh says of a route's parents into its status.
//!
//! `status.parents` is one list for all controllers, and a merge patch replaces a list as a whole. So the stored list is read
//! first, entries of other controllers are kept as they are, and the patch names the version that was read.

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tidegate_core::contract::names::GATEWAY_CONTROLLER;
use tidegate_crds::gateway_api::MOST_PARENTS;

use crate::compile::status::parents::{ParentCondition, ParentStatus};

/// This mesh's entries, without times.
pub(super) fn entries(parents: &[ParentStatus], generation: Option<i64>) -> Value {
    let condition = |condition: &ParentCondition| {
        json!({
            "type": condition.kind,
            "status": if condition.holds { "True" } else { "False" },
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation.unwrap_or_default(),
        })
    };
    let entry = |parent: &ParentStatus| {
        json!({
            "parentRef": parent.parent_ref,
            "controllerName": GATEWAY_CONTROLLER,
            "conditions": parent.conditions.iter().map(condition).collect::<Vec<_>>(),
        })
    };
    parents.iter().map(entry).collect::<Vec<_>>().into()
}

/// Writes this mesh's entries, unless they are stored already. A conflict with another writer is an error: the next attempt
/// reads what that one has written.
pub(super) async fn write(api: &Api<DynamicObject>, name: &str, ours: &[Value]) -> kube::Result<()> {
    let object = api.get(name).await?;
    let stored = object.data["status"]["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let merged = merged(stored, ours, &now());
    if merged == stored {
        return Ok(());
    }
    let version = object.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "status": {"parents": merged}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// The stored list with our entries in place of those before. Ours keep their places, and a condition its time as long as
/// its status is the same. Entries of others are never dropped; ours are, if there would be more than the list may have.
fn merged(stored: &[Value], ours: &[Value], now: &str) -> Vec<Value> {
    let is_ours = |entry: &&Value| entry["controllerName"] == GATEWAY_CONTROLLER;
    let before = |entry: &Value| {
        stored.iter().filter(is_ours).find(|stored| stored["parentRef"] == entry["parentRef"])
    };
    let current = |entry: &Value| {
        let entry = ours.iter().find(|ours| ours["parentRef"] == entry["parentRef"])?;
        Some(dated(entry, before(entry), now))
    };
    let mut room = MOST_PARENTS.saturating_sub(stored.iter().filter(|entry| !is_ours(entry)).count());
    let mut merged = Vec::new();
    for entry in stored {
        if !is_ours(&entry) {
            merged.push(entry.clone());
        } else if let Some(entry) = current(entry).filter(|_| room > 0) {
            room -= 1;
            merged.push(entry);
        }
    }
    let new = ours.iter().filter(|entry| before(entry).is_none()).take(room);
    merged.extend(new.map(|entry| dated(entry, None, now)));
    merged
}

/// An entry with the times of its conditions.
pub(super) fn dated(entry: &Value, before: Option<&Value>, now: &str) -> Value {
    let mut entry = entry.clone();
    let known = before.and_then(|before| before["conditions"].as_array());
    for condition in entry["conditions"].as_array_mut().into_iter().flatten() {
        let is_same = |known: &&Value| ["type", "status"].iter().all(|key| known[key] == condition[key]);
        let since =
            known.into_iter().flatten().find(is_same).map(|known| known["lastTransitionTime"].clone());
        condition["lastTransitionTime"] = since.filter(Value::is_string).unwrap_or_else(|| now.into());
    }
    entry
}

/// The time, to the second, as Kubernetes writes it.
pub(super) fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(controller: &str, name: &str, accepted: &str, time: Option<&str>) -> Value {
        let mut condition = json!({"type": "Accepted", "status": accepted, "reason": "x", "message": "y",
            "observedGeneration": 2});
        if let Some(time) = time {
            condition["lastTransitionTime"] = time.into();
        }
        json!({"parentRef": {"name": name}, "controllerName": controller, "conditions": [condition]})
    }

    fn ours(name: &str, accepted: &str, time: Option<&str>) -> Value {
        entry(GATEWAY_CONTROLLER, name, accepted, time)
    }

    #[test]
    fn entries_of_others_stay_as_they_are_and_ours_keep_place_and_time_until_they_change() {
        let theirs = json!({"controllerName": "example.com/gateway", "parentRef": {"name": "a"}, "more": [1, {"b": null}]});
        let stored = [ours("a", "True", Some("t0")), theirs.clone(), ours("gone", "True", Some("t0"))];
        let wanted = [ours("new", "False", None), ours("a", "True", None)];
        let first = merged(&stored, &wanted, "t1");
        assert_eq!(first, [ours("a", "True", Some("t0")), theirs.clone(), ours("new", "False", Some("t1"))]);
        assert_eq!(merged(&first, &wanted, "t2"), first, "nothing is written for the sake of time");
        let changed = merged(&first, &[ours("a", "False", None)], "t3");
        assert_eq!(changed, [ours("a", "False", Some("t3")), theirs.clone()]);
        assert_eq!(merged(&changed, &[], "t4"), [theirs]);
    }

    #[test]
    fn a_full_list_has_no_room_for_ours_and_loses_nothing_of_others() {
        let theirs: Vec<_> = (0..31).map(|i| entry("other", &format!("{i}"), "True", None)).collect();
        let both = merged(&theirs, &[ours("a", "True", None), ours("b", "True", None)], "t");
        assert_eq!(both.len(), 32);
        assert_eq!(both[..31], theirs[..]);
        let more: Vec<_> = (0..33).map(|i| entry("other", &format!("{i}"), "True", None)).collect();
        assert_eq!(merged(&more, &[ours("a", "True", None)], "t"), more);
    }

    #[test]
    fn times_are_written_to_the_second() {
        let now = now();
        assert!(now.len() == 20 && now.ends_with('Z'), "{now}");
    }
}
