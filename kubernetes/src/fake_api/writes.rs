//! Reads and writes of single objects, by the API server's rules: versions that conflict, finalizers, immutable content,
//! subresources, and the three kinds of patches that our programs send.

use serde_json::{Value, json};

use super::ApiState;
use super::path::ResourcePath;
use super::response::{ApiResponse, failure, json_response};

/// Why a write changes nothing: the status code and the message of the response.
struct WriteRefusal(u16, &'static str);

const NOT_FOUND: WriteRefusal = WriteRefusal(404, "not found");
const EXISTS: WriteRefusal = WriteRefusal(409, "already exists");
const CONFLICT: WriteRefusal = WriteRefusal(409, "the object has been modified");
const INAPPLICABLE: WriteRefusal = WriteRefusal(422, "the patch does not apply");
const IMMUTABLE: WriteRefusal =
    WriteRefusal(422, "data: Forbidden: field is immutable when `immutable` is set");

/// Reads or writes the object that `path` or the body names. `content_type` selects the kind of a patch.
pub(super) fn write_or_get(
    cluster: &mut ApiState,
    verb: &str,
    path: &ResourcePath,
    content_type: &str,
    body: &[u8],
) -> ApiResponse {
    if verb != "get"
        && let Some((code, count)) = &mut cluster.faults.refuse_writes
        && *count > 0
    {
        *count -= 1;
        return failure(*code, "writes are refused");
    }
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    let name = path.name.as_deref().or(sent["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
    let before = cluster.store.get(&path.resource, &path.namespace, &name).cloned();
    let after = match (verb, before) {
        ("get", Some(object)) => return json_response(200, &object),
        ("create", Some(_)) => Err(EXISTS),
        ("create", None) => Ok(sent),
        ("delete", Some(object)) if has_finalizers(&object) => Ok(terminating(object)),
        ("delete", Some(object)) => {
            cluster.store.delete(&path.resource, &path.namespace, &name);
            return json_response(200, &object);
        }
        ("update", Some(before)) => updated(path, before, sent),
        ("patch", before) => patched(path, before, sent, content_type),
        _ => Err(NOT_FOUND),
    };
    match after {
        Ok(object) => stored(cluster, if verb == "create" { 201 } else { 200 }, path, &name, object),
        Err(WriteRefusal(code, message)) => failure(code, message),
    }
}

/// Stores an object under the name and the namespace of the request, and returns it as stored.
fn stored(
    cluster: &mut ApiState,
    code: u16,
    path: &ResourcePath,
    name: &str,
    mut object: Value,
) -> ApiResponse {
    object["metadata"]["name"] = name.into();
    if !path.namespace.is_empty() {
        object["metadata"]["namespace"] = path.namespace.as_str().into();
    }
    cluster.store.put(&path.resource, object);
    match cluster.store.get(&path.resource, &path.namespace, name) {
        Some(object) => json_response(code, object),
        None => failure(500, "lost"),
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

/// Deleted while a finalizer keeps it: it stays, with the time of its deletion.
fn terminating(mut object: Value) -> Value {
    object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    object
}

/// The object after an update. One without a version overwrites whatever is there.
fn updated(path: &ResourcePath, before: Value, sent: Value) -> Result<Value, WriteRefusal> {
    let version = &sent["metadata"]["resourceVersion"];
    if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
        return Err(CONFLICT);
    }
    if is_frozen(&before, &sent) {
        return Err(IMMUTABLE);
    }
    Ok(path.merged(before, sent))
}

/// The object after a JSON patch (RFC 6902), a merge patch (RFC 7386) or a server-side apply, which is merged as well and
/// creates an object that does not exist.
fn patched(
    path: &ResourcePath,
    before: Option<Value>,
    sent: Value,
    content_type: &str,
) -> Result<Value, WriteRefusal> {
    let is_apply = content_type.starts_with("application/apply-patch");
    // Applying to a subresource does not create the object.
    let may_create = is_apply && path.subresource.is_none();
    let before = before.or_else(|| may_create.then(|| json!({}))).ok_or(NOT_FOUND)?;
    let version = &sent["metadata"]["resourceVersion"];
    if version.is_string() && *version != before["metadata"]["resourceVersion"] {
        return Err(CONFLICT);
    }
    let mut after = before.clone();
    if content_type.starts_with("application/json-patch") {
        let patch: json_patch::Patch = serde_json::from_value(sent).map_err(|_| INAPPLICABLE)?;
        json_patch::patch(&mut after, &patch).map_err(|_| INAPPLICABLE)?;
    } else {
        let conditions = is_apply.then(|| applied_conditions(&before, &sent)).flatten();
        json_patch::merge(&mut after, &sent);
        if let Some(conditions) = conditions {
            after["status"]["conditions"] = conditions;
        }
    }
    if is_frozen(&before, &after) {
        return Err(IMMUTABLE);
    }
    Ok(path.merged(before, after))
}

/// Whether an immutable ConfigMap or Secret refuses a change.
fn is_frozen(before: &Value, after: &Value) -> bool {
    before["immutable"] == true && (before["data"] != after["data"] || after["immutable"] != true)
}

/// Conditions are a list keyed by type: applied ones replace those of the same type, the others stay.
fn applied_conditions(before: &Value, sent: &Value) -> Option<Value> {
    let sent = sent["status"]["conditions"].as_array()?;
    let mut merged = before["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in sent {
        match merged.iter_mut().find(|found| found["type"] == condition["type"]) {
            Some(found) => *found = condition.clone(),
            None => merged.push(condition.clone()),
        }
    }
    Some(merged.into())
}
