//! Custom resources as they are stored. One that cannot be read does not prevent others from being read. It grants
//! nothing, and neither does its last readable version.
//!
//! Only `spec` is decoded. The controller itself writes the status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use kube::core::object::HasSpec;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tidegate_core::contract::annotations::AUDIT;
use tidegate_crds::stored;
use tidegate_kubernetes::lean::{Meta, Only, Wanted};

use super::Stored;
use crate::object::Object;
use crate::object::unreadable::Unreadable;

/// An object as far as it is decoded. Metadata is lean, and any other field, such as `status`, is skipped without
/// being stored.
#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned")]
struct Policy<S> {
    metadata: Meta<IgnoredAny, Only<PolicyAnnotations>>,
    spec: S,
}

/// The least that identifies an object whose spec cannot be decoded.
#[derive(Deserialize)]
struct CustomMetadata {
    metadata: Meta<IgnoredAny, Only<PolicyAnnotations>>,
}

/// The annotations of policies that are read.
#[derive(Clone, Debug)]
struct PolicyAnnotations;

impl Wanted for PolicyAnnotations {
    const NAMES: &'static [&'static str] = &[AUDIT];
    const MOST_BYTES: usize = 16;
}

/// A custom resource whose content is its `spec`.
pub(crate) trait Custom: Stored + CustomResourceExt + HasSpec<Spec: DeserializeOwned> {
    /// An object without a status.
    fn of(metadata: ObjectMeta, spec: Self::Spec) -> Self;
}

/// An object, or why it cannot be read.
pub(crate) fn decode<K: Custom>(text: &str) -> serde_json::Result<Object> {
    match serde_json::from_str::<Policy<K::Spec>>(text) {
        Ok(Policy { metadata, spec }) => Ok(K::wrap(K::of(of_policy(metadata), spec).into())),
        Err(error) => unreadable::<K>(text, &error),
    }
}

/// The object as one that cannot be read, with the field at fault. An error here means that not even its metadata is
/// readable.
fn unreadable<K: Custom>(text: &str, error: &serde_json::Error) -> serde_json::Result<Object> {
    let CustomMetadata { metadata } = serde_json::from_str(text)?;
    let (value, finding) = stored::explained::<K>(text, error);
    Ok(Object::Unreadable(Unreadable::new(K::KIND, of_policy(metadata), &value, finding).into()))
}

fn of_policy(mut metadata: Meta<IgnoredAny, Only<PolicyAnnotations>>) -> ObjectMeta {
    let annotations =
        metadata.annotations.take().map(|only| only.entries).filter(|entries| !entries.is_empty());
    ObjectMeta { annotations, ..metadata.of_policy() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use tidegate_crds::IngressBackend;

    use super::*;

    fn text(backends: usize, sources: usize) -> String {
        let backend = |i| json!({"name": format!("b{i}"), "port": {"number": 80, "protocol": "http"}});
        let source =
            |i: usize| json!({"kind": "IPRange", "name": format!("10.{}.{}.0/24", i / 256, i % 256)});
        let backends: Vec<_> = (0..backends).map(backend).collect();
        let sources: Vec<_> = (0..sources).map(source).collect();
        json!({
            "metadata": {"name": "large", "namespace": "tenant", "generation": 3},
            "spec": {"backends": backends, "sources": sources},
        })
        .to_string()
    }

    #[test]
    fn what_was_stored_before_there_were_bounds_denies_and_says_which_and_is_not_held() {
        let text = text(6_000, 6_000);
        let mut reason = String::new();
        let held = allocation_counter::measure(|| {
            let Object::Unreadable(object) = decode::<IngressBackend>(&text).unwrap() else {
                panic!("it is read")
            };
            assert!(object.may_open("tenant/any", 80), "it may open any of them");
            assert_eq!(object.metadata.generation, Some(3));
            reason = object.reason();
        });
        assert_eq!(reason, "spec.backends: Too many: must have at most 256 items");
        assert!(held.bytes_max < 256 << 10, "{} bytes", held.bytes_max);
    }

    #[test]
    fn the_bounds_themselves_are_read() {
        assert!(matches!(decode::<IngressBackend>(&text(256, 1024)).unwrap(), Object::IngressBackend(_)));
    }

    #[test]
    fn a_status_is_not_decoded() {
        let conditions = vec![json!({"a": 0}); 100_000];
        let text = json!({
            "metadata": {"name": "a", "namespace": "b"}, "spec": {"backends": [], "sources": []},
            "status": {"conditions": conditions},
        })
        .to_string();
        let held = allocation_counter::measure(|| drop(decode::<IngressBackend>(&text).unwrap()));
        assert!(held.bytes_max < 4096, "{} bytes", held.bytes_max);
    }
}
