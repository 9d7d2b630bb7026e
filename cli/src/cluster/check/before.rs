//! Checks of the cluster itself, and of what an installation needs.
//!
//! `tidegate check --pre` runs all of them; [`api`] also precedes every other check.

use anyhow::{Context, bail};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};

use super::{Check, CheckOutcome, CheckReport, enumerate};
use crate::cluster::client::Cluster;
use crate::cluster::mesh;
use crate::helm::HelmOptions;

const CATEGORY: &str = "Kubernetes";
/// The first minor version of Kubernetes 1 with native sidecars enabled by default.
const MINOR: u32 = 29;

pub(super) const REACHABLE: Check = Check {
    id: "api-reachable",
    category: CATEGORY,
    title: "the API server answers",
    hint: "check the cluster's address with `kubectl cluster-info`, or choose another --context",
};
const VERSION: Check = Check {
    id: "api-version",
    category: CATEGORY,
    title: "the Kubernetes version has native sidecars",
    hint: "Tidegate needs Kubernetes 1.29 or newer: upgrade the cluster",
};
const PERMISSIONS: Check = Check {
    id: "install-permissions",
    category: "Installation",
    title: "you have the permissions to install",
    hint: "ask an administrator of the cluster to install Tidegate, or to grant you these permissions",
};
const ALONE: Check = Check {
    id: "no-control-plane",
    category: "Installation",
    title: "the mesh's name and namespace are free",
    hint: "`tidegate upgrade` upgrades the existing one; another mesh needs its own --mesh-name and --tidegate-namespace",
};

const HELM: Check = Check {
    id: "helm-there",
    category: "Installation",
    title: "Helm is installed and new enough",
    hint: "get it from https://helm.sh/docs/intro/install/, or give its path with --helm FILE",
};

/// What an installation creates: API group, resource, and whether it is in the control plane's namespace.
const MADE: [(&str, &str, bool); 13] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
    ("apps", "deployments", true),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("", "services", true),
    ("", "serviceaccounts", true),
    ("", "configmaps", true),
    ("config.openservicemesh.io", "meshconfigs", true),
];

/// Whether the API server answers, and if so, whether its version has native sidecars (KEP-753, beta and on by
/// default since 1.29).
pub(super) async fn api(cluster: &Cluster, report: &mut CheckReport) {
    let version = cluster.client.apiserver_version().await;
    let version = version.map_err(|error| cluster.failed("get the version", &error));
    let (reached, version) = match version {
        Ok(version) => (Ok(CheckOutcome::ok_with(cluster.server.clone())), Some(version)),
        Err(error) => (Err(error), None),
    };
    report.add(&REACHABLE, reached);
    if let Some(version) = version {
        report.add(&VERSION, judge(&version.major, &version.minor, &version.git_version));
    }
}

/// Whether this user may install, and whether name and namespace are free.
pub(super) async fn installation(cluster: &Cluster, report: &mut CheckReport) {
    report.add(&PERMISSIONS, permissions(cluster).await);
    report.add(&ALONE, alone(cluster).await);
}

/// Checks the Helm that `tidegate install` runs.
pub(super) fn helm(options: &HelmOptions, report: &mut CheckReport) {
    report.add(&HELM, options.version().map(CheckOutcome::ok_with));
}

/// Compares the version. `minor` may end in `+`, as hosted clusters report it.
fn judge(major: &str, minor: &str, whole: &str) -> anyhow::Result<CheckOutcome> {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>();
    let unreadable = || format!("cannot parse the version {whole:?}");
    let (major, minor) = (number(major).with_context(unreadable)?, number(minor).with_context(unreadable)?);
    let is_new_enough = (major, minor) >= (1, MINOR);
    Ok(if is_new_enough {
        CheckOutcome::ok_with(whole)
    } else {
        CheckOutcome::failed(format!("the version is {whole}"))
    })
}

/// Reviews the right to create each kind of object that the charts create, as `kubectl auth can-i create` does. A
/// review that fails is an error, not a missing permission.
async fn permissions(cluster: &Cluster) -> anyhow::Result<CheckOutcome> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let mut missing = Vec::new();
    for (group, resource, is_namespaced) in MADE {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some("create".to_owned()),
            namespace: is_namespaced.then(|| cluster.control_plane.clone()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| cluster.failed("review your permissions", &error))?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(format!("create {resource}"));
        }
    }
    if missing.is_empty() {
        return Ok(CheckOutcome::ok());
    }
    bail!("you lack the permission to {}", enumerate(&missing))
}

/// Fails if the namespace has a control plane already, or another one has the mesh's name.
async fn alone(cluster: &Cluster) -> anyhow::Result<CheckOutcome> {
    let meshes = mesh::list(cluster).await?;
    let same =
        meshes.iter().find(|mesh| mesh.namespace == cluster.control_plane || mesh.mesh == cluster.mesh_name);
    Ok(match same {
        Some(mesh) => CheckOutcome::failed(format!(
            "mesh {} has its control plane in namespace {}, version {}",
            mesh.mesh, mesh.namespace, mesh.version
        )),
        None => CheckOutcome::ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::CheckSeverity;
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let severity = |major, minor| judge(major, minor, "v").unwrap().severity;
        assert_eq!(severity("1", "28"), CheckSeverity::Failed);
        assert_eq!(severity("1", "29+"), CheckSeverity::Ok);
        assert_eq!(severity("1", "100"), CheckSeverity::Ok);
        assert_eq!(severity("2", "0"), CheckSeverity::Ok);
        assert!(judge("1", "", "v1").is_err());
    }
}
