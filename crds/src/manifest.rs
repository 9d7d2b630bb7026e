//! The CRDs as manifests: the files in `crds/yaml`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{IngressBackend, MeshConfig};

/// Every CRD with the name of its file in `crds/yaml`.
pub fn all() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![
        ("policy.openservicemesh.io_ingressbackends.yaml", IngressBackend::crd()),
        ("config.openservicemesh.io_meshconfigs.yaml", MeshConfig::crd()),
    ]
}

/// A CRD as YAML, as `kubectl apply` takes it.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(crd)
}

#[cfg(test)]
mod tests;
