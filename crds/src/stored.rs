//! Reads stored custom resources, whichever definition accepted them.
//!
//! The API server checks an object only when it is written. An object that was written before its definition had a
//! schema, or under an older one, may be invalid: this module either reads it or names the field that it cannot read.

use kube::CustomResourceExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::schema;
use crate::validate::Finding;

/// Maximum bytes of an object that is searched for the wrong field: as a tree, it takes many times its text.
const MOST_EXPLAINED_BYTES: usize = 64 * 1024;
/// Maximum bytes of a value that a message repeats.
const LONGEST_VALUE: usize = 80;

/// Reads an object. The error names the field that cannot be read, with its value.
pub fn read<K>(object: &Value) -> Result<K, Finding>
where
    K: CustomResourceExt + DeserializeOwned,
{
    K::deserialize(object).map_err(|error| {
        let finding = schema::check(&K::crd(), object).into_iter().find(Finding::is_error);
        finding.map_or_else(|| unread(&error), |finding| with_value(finding, object))
    })
}

/// Reads the part of an object at a path such as `spec.certificate`, whatever the rest contains; `None` if it is
/// absent. The error names the field that prevents reading the part, with its value.
pub fn read_part<K, T>(object: &Value, path: &str) -> Result<Option<T>, Finding>
where
    K: CustomResourceExt,
    T: DeserializeOwned,
{
    let mut part = object;
    let mut end = 0;
    for step in path.split('.') {
        if !part.is_object() {
            let value = shortened(&part.to_string());
            return Err(Finding::error(&path[..end], format!("must be of type object: {value}")));
        }
        match part.get(step) {
            None | Some(Value::Null) => return Ok(None),
            Some(inner) => part = inner,
        }
        end = if end == 0 { step.len() } else { end + 1 + step.len() };
    }
    T::deserialize(part).map(Some).map_err(|error| {
        let mut findings = schema::check(&K::crd(), object).into_iter();
        let finding = findings.find(|finding| finding.is_error() && finding.path.starts_with(path));
        with_value(finding.unwrap_or_else(|| Finding::error(path, error.to_string())), object)
    })
}

/// Why an object's JSON could not be read, and the object, which is null if it is too large to be searched.
pub fn explained<K>(text: &str, error: &serde_json::Error) -> (Value, Finding)
where
    K: CustomResourceExt + DeserializeOwned,
{
    let is_small = text.len() <= MOST_EXPLAINED_BYTES;
    let object = if is_small { serde_json::from_str(text).unwrap_or_default() } else { Value::Null };
    let finding = match is_small.then(|| read::<K>(&object)) {
        Some(Err(finding)) => finding,
        _ => unread(error),
    };
    (object, finding)
}

/// The finding of a reader that has no schema: errors about bounds name their field, others do not.
fn unread(error: &serde_json::Error) -> Finding {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    match text.split_once(": ") {
        Some((path, message)) if path.starts_with("spec.") => Finding::error(path, shortened(message)),
        _ => Finding::error("", shortened(text)),
    }
}

fn with_value(mut finding: Finding, object: &Value) -> Finding {
    if let Some(value) = at(object, &finding.path) {
        // Do not serialize a large value only to cut it.
        let shown = match value {
            Value::Array(_) | Value::Object(_) if finding.message.starts_with("Too many") => return finding,
            Value::String(text) if text.len() > LONGEST_VALUE => format!("{:?}...", shortened(text)),
            value => shortened(&value.to_string()),
        };
        finding.message += &format!(": {shown}");
    }
    finding
}

/// The value at a path such as `spec.backends[0].name`.
fn at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    path.split(['.', '[']).try_fold(object, |value, step| match step.strip_suffix(']') {
        Some(index) => value.get(index.parse::<usize>().ok()?),
        None => value.get(step),
    })
}

fn shortened(text: &str) -> String {
    if text.len() <= LONGEST_VALUE {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(LONGEST_VALUE)])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{IngressBackend, MeshConfig};

    fn backend(number: Value) -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"backends": [{"name": "x", "port": {"number": number, "protocol": "http"}}], "sources": []},
        })
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named_with_its_value() {
        assert!(read::<IngressBackend>(&backend(80.into())).is_ok());
        let error = read::<IngressBackend>(&backend("web".into())).unwrap_err();
        assert_eq!(
            error.with_severity(),
            "error: spec.backends[0].port.number: must be of type integer, got string: \"web\""
        );
        let error = read::<MeshConfig>(&json!({"spec": {"traffic": ["x".repeat(200)]}})).unwrap_err();
        assert_eq!(error.path, "spec.traffic");
        assert!(error.message.len() < 150 && error.message.ends_with("..."), "{error}");
    }

    #[test]
    fn a_part_is_read_whatever_the_rest_is_like_and_missing_is_not_unreadable() {
        let part = |object: &Value| {
            read_part::<MeshConfig, String>(object, "spec.certificate.serviceCertValidityDuration")
                .map_err(|finding| finding.with_severity())
        };
        let with = |certificate: Value| json!({"spec": {"traffic": 1, "certificate": certificate}});
        assert_eq!(part(&with(json!({"serviceCertValidityDuration": "1h"}))), Ok(Some("1h".to_owned())));
        for absent in
            [json!({}), json!({"spec": null}), with(Value::Null), with(json!({"certKeyBitSize": "x"}))]
        {
            assert_eq!(part(&absent), Ok(None), "{absent}");
        }
        assert_eq!(
            part(&with(json!({"serviceCertValidityDuration": 24}))).unwrap_err(),
            "error: spec.certificate.serviceCertValidityDuration: must be of type string, got integer: 24"
        );
        assert_eq!(
            part(&with(json!(["a"]))).unwrap_err(),
            "error: spec.certificate: must be of type object: [\"a\"]"
        );
        assert_eq!(part(&json!({"spec": "a"})).unwrap_err(), "error: spec: must be of type object: \"a\"");
    }

    #[test]
    fn a_field_that_is_missing_has_no_value() {
        let error = read::<IngressBackend>(&json!({"metadata": {}, "spec": {"backends": []}})).unwrap_err();
        assert_eq!(error.with_severity(), "error: spec.sources: Required value");
    }
}
