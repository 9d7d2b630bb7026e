//! Audit mode, by an annotation of an object: what the object would refuse is reported.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_core::contract::annotations::AUDIT;

/// Whether an object is in audit mode. Only `true` is: another value enforces, as the object's status says.
pub(crate) fn is_audit(metadata: &ObjectMeta) -> bool {
    annotation(metadata) == Some("true")
}

/// A warning about a value of the annotation that is neither `true` nor `false`.
pub(super) fn misspelled(metadata: &ObjectMeta) -> Option<String> {
    let value = annotation(metadata).filter(|value| !matches!(*value, "true" | "false"))?;
    Some(format!("annotation {AUDIT}: expected \"true\" or \"false\", got {value:?}; this is enforced"))
}

fn annotation(metadata: &ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(AUDIT).map(String::as_str)
}
