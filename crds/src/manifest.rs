//! The CRDs as manifests: the files in `crds/yaml`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use kube::{CustomResourceExt, Resource, ResourceExt};
use tidegate_core::contract::labels::{PART_OF, TIDEGATE};

use crate::mesh_config::{MESH_CONFIG, OLDER_MESH_CONFIG};
use crate::service_entry::OLDER_SERVICE_ENTRIES;
use crate::{
    Egress, EgressProxy, HTTPRouteGroup, IngressBackend, MeshConfig, Retry, ServiceEntry, TCPRoute,
    TrafficSplit, TrafficTarget, UpstreamTrafficSetting,
};

/// Every CRD with the name of its file in `crds/yaml`.
pub fn all() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![
        ("policy.openservicemesh.io_ingressbackends.yaml", IngressBackend::crd()),
        ("config.openservicemesh.io_meshconfigs.yaml", mesh_config()),
        ("access.smi-spec.io_traffictargets.yaml", TrafficTarget::crd()),
        ("split.smi-spec.io_trafficsplits.yaml", traffic_split()),
        ("specs.smi-spec.io_httproutegroups.yaml", HTTPRouteGroup::crd()),
        ("specs.smi-spec.io_tcproutes.yaml", TCPRoute::crd()),
        ("policy.openservicemesh.io_upstreamtrafficsettings.yaml", UpstreamTrafficSetting::crd()),
        ("policy.openservicemesh.io_retries.yaml", Retry::crd()),
        ("networking.istio.io_serviceentries.yaml", service_entry()),
        ("tidegate.io_egressproxies.yaml", EgressProxy::crd()),
        ("policy.openservicemesh.io_egresses.yaml", Egress::crd()),
    ]
}

/// The MeshConfig is also served in its older version. Both have the same fields, so only the version's name is
/// converted.
fn mesh_config() -> CustomResourceDefinition {
    let mut crd = MeshConfig::crd();
    if let Some(newest) = crd.spec.versions.first().cloned() {
        let warning = format!("{OLDER_MESH_CONFIG} MeshConfig is deprecated; use {MESH_CONFIG} MeshConfig");
        crd.spec.versions.push(CustomResourceDefinitionVersion {
            name: "v1alpha1".to_owned(),
            storage: false,
            deprecated: Some(true),
            deprecation_warning: Some(warning),
            ..newest
        });
    }
    crd
}

/// The TrafficSplit is also served in the version that Open Service Mesh had. Objects that it stored are read in either.
fn traffic_split() -> CustomResourceDefinition {
    let mut crd = TrafficSplit::crd();
    if let Some(newest) = crd.spec.versions.first().cloned() {
        let older = CustomResourceDefinitionVersion { name: "v1alpha2".to_owned(), storage: false, ..newest };
        crd.spec.versions.push(older);
    }
    crd
}

/// A ServiceEntry is also served in the versions of older manifests, which have the same fields.
fn service_entry() -> CustomResourceDefinition {
    let mut crd = ServiceEntry::crd();
    if let Some(newest) = crd.spec.versions.first().cloned() {
        let names = OLDER_SERVICE_ENTRIES.iter().filter_map(|version| version.split_once('/'));
        crd.spec.versions.extend(names.map(|(_, name)| CustomResourceDefinitionVersion {
            name: name.to_owned(),
            storage: false,
            ..newest.clone()
        }));
    }
    crd
}

/// Whether a definition of ours is optional, because a cluster may have Istio's instead.
pub fn is_shared(crd: &CustomResourceDefinition) -> bool {
    crd.spec.group == <ServiceEntry as Resource>::group(&())
}

/// Whether a definition that a cluster has is Istio's, which the cluster keeps: our chart labels its own.
pub fn is_istio_s(crd: &CustomResourceDefinition) -> bool {
    is_shared(crd) && crd.labels().get(PART_OF).is_none_or(|name| name != TIDEGATE)
}

/// A CRD as YAML for `kubectl apply`.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(crd)
}

#[cfg(test)]
mod tests;
