//! Custom resources as they are stored, read by ourselves: one that we cannot read must not keep the others from us, and
//! grants nothing, nor does what was there before it.
//!
//! The spec decides; the status is what we wrote ourselves, and is not decoded.

use kube::CustomResourceExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidegate_crds::{IngressBackend, IngressBackendSpec, MeshConfig, MeshConfigSpec, stored};
use tidegate_kubernetes::lean::Meta;

use crate::object::{Kind, Object};
use crate::unreadable::Unreadable;

#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned")]
struct Policy<S> {
    metadata: Meta,
    spec: S,
}

#[derive(Deserialize)]
struct Named {
    metadata: Meta,
}

/// An IngressBackend, or why it cannot be read.
pub(super) fn ingress_backend(text: &str) -> serde_json::Result<Object> {
    match serde_json::from_str::<Policy<IngressBackendSpec>>(text) {
        Ok(Policy { metadata, spec }) => {
            let object = IngressBackend { metadata: metadata.of_policy(), spec, status: None };
            Ok(Object::IngressBackend(object.into()))
        }
        Err(error) => unreadable::<IngressBackend>(Kind::IngressBackend, text, &error),
    }
}

/// A MeshConfig, or why it cannot be read.
pub(super) fn mesh_config(text: &str) -> serde_json::Result<Object> {
    match serde_json::from_str::<Policy<MeshConfigSpec>>(text) {
        Ok(Policy { metadata, spec }) => {
            let object = MeshConfig { metadata: metadata.of_policy(), spec, status: None };
            Ok(Object::MeshConfig(object.into()))
        }
        Err(error) => unreadable::<MeshConfig>(Kind::MeshConfig, text, &error),
    }
}

fn unreadable<K>(kind: Kind, text: &str, error: &serde_json::Error) -> serde_json::Result<Object>
where
    K: CustomResourceExt + DeserializeOwned,
{
    let Named { metadata } = serde_json::from_str(text)?;
    let (value, finding) = stored::explained::<K>(text, error);
    Ok(Object::Unreadable(Unreadable::new(kind, metadata.of_policy(), &value, finding).into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            let Object::Unreadable(object) = ingress_backend(&text).unwrap() else { panic!("it is read") };
            assert!(object.may_open("tenant/any", 80), "it may be about any of them");
            assert_eq!(object.metadata.generation, Some(3));
            reason = object.reason();
        });
        assert_eq!(reason, "spec.backends: Too many: must have at most 256 items");
        assert!(held.bytes_max < 256 << 10, "{} bytes", held.bytes_max);
    }

    #[test]
    fn the_bounds_themselves_are_read() {
        assert!(matches!(ingress_backend(&text(256, 1024)).unwrap(), Object::IngressBackend(_)));
    }

    #[test]
    fn a_status_is_not_decoded() {
        let conditions = vec![json!({"a": 0}); 100_000];
        let text = json!({
            "metadata": {"name": "a", "namespace": "b"}, "spec": {"backends": [], "sources": []},
            "status": {"conditions": conditions},
        })
        .to_string();
        let held = allocation_counter::measure(|| drop(ingress_backend(&text).unwrap()));
        assert!(held.bytes_max < 4096, "{} bytes", held.bytes_max);
    }
}
