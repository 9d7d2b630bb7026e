//! Checks of IngressBackends: whether each is committed, and whether the Services that it names exist.
//!
//! The controller's status says whether a policy is in force; the other checks find what a status cannot say: a
//! policy in a namespace outside the mesh has no effect and is not reported on, and a Service without endpoints may
//! have lost them after the status was written.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{Api, ListParams, ResourceExt};
use tidegate_crds::ingress_backend::IngressBackend;
use tidegate_crds::injection::{mesh_of, namespace_is_in_mesh};

use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;
use crate::cluster::conflicts::Policies;
use crate::cluster::{conflicts, namespace};

const CATEGORY: &str = "Policies";
/// Label of an EndpointSlice with the name of its Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

const MEMBERS: Check = Check {
    id: "policies-in-mesh",
    category: CATEGORY,
    title: "each IngressBackend is in a namespace of the mesh",
    hint: "elsewhere it has no effect: add the namespace with `tidegate namespace add`, or move the policy",
};
const STATUS: Check = Check {
    id: "policies-committed",
    category: CATEGORY,
    title: "each IngressBackend is committed",
    hint: "correct the policy; `tidegate policy list` shows every status",
};
const BACKENDS: Check = Check {
    id: "backends-exist",
    category: CATEGORY,
    title: "each backend is a Service in its policy's namespace",
    hint: "backends[].name is the Service's name, in the namespace of the IngressBackend",
};
const SOURCES: Check = Check {
    id: "sources-have-endpoints",
    category: CATEGORY,
    title: "each source Service has ready endpoints",
    hint: "a source without endpoints admits no client: name the ingress controller's Service, and start its pods",
};
const CONFLICTS: Check = Check {
    id: "policies-conflict",
    category: CATEGORY,
    title: "no two IngressBackends open the same backend",
    hint: "`tidegate policy check-conflicts ingressbackend` names the pairs: merge each into one policy",
};

/// Without policies it adds nothing, so that the output for a new mesh has no empty section.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    let (namespaces, mut all) =
        match tokio::try_join!(namespace::all(cluster), conflicts::ingress_backends(cluster, &[])) {
            Ok(found) => found,
            Err(error) => return report.add(&STATUS, Err(error)),
        };
    // The other mesh's own command checks those.
    let is_others = |namespace: &Namespace| {
        mesh_of(Some(namespace.labels())).is_some_and(|mesh| mesh != cluster.mesh_name)
    };
    all.leave_out(&namespaces.iter().filter(|one| is_others(one)).map(ResourceExt::name_any).collect());
    let Policies { readable: policies, unreadable } = all;
    if policies.is_empty() && unreadable.is_empty() {
        return;
    }
    report.add(&MEMBERS, Ok(members(cluster, &namespaces, &policies)));
    report.add(&STATUS, Ok(status(&policies, unreadable)));
    report.add(&BACKENDS, backends(cluster, &policies).await);
    report.add(&SOURCES, sources(cluster, &policies).await);
    let pairs = conflicts::conflicts(&policies).iter().map(ToString::to_string).collect::<Vec<_>>();
    report.add(&CONFLICTS, Ok(CheckOutcome::warning_for(&pairs)));
}

/// Policies in namespaces that are not in this mesh.
fn members(cluster: &Cluster, namespaces: &[Namespace], policies: &[IngressBackend]) -> CheckOutcome {
    let namespaces: BTreeSet<String> = namespaces
        .iter()
        .filter(|namespace| namespace_is_in_mesh(namespace, &cluster.mesh_name))
        .map(ResourceExt::name_any)
        .collect();
    let outside: Vec<String> = policies
        .iter()
        .filter(|policy| policy.namespace().is_none_or(|namespace| !namespaces.contains(&namespace)))
        .map(name)
        .collect();
    CheckOutcome::warning_for(&outside)
}

/// A policy that cannot be parsed is not enforced, whatever its status says.
fn status(policies: &[IngressBackend], unreadable: Vec<String>) -> CheckOutcome {
    let mut errors = unreadable;
    errors.extend(policies.iter().filter_map(|policy| {
        let status = policy.status.as_ref()?;
        let is_error = status.current_status.as_deref() == Some("error");
        is_error.then(|| format!("{}: {}", name(policy), status.reason.as_deref().unwrap_or("error")))
    }));
    CheckOutcome::failed_for(&errors)
}

/// Backends whose Service does not exist.
async fn backends(cluster: &Cluster, policies: &[IngressBackend]) -> anyhow::Result<CheckOutcome> {
    let mut missing = Vec::new();
    for policy in policies {
        let namespace = policy.namespace().unwrap_or_default();
        let api: Api<Service> = Api::namespaced(cluster.client.clone(), &namespace);
        for backend in &policy.spec.backends {
            let service = &backend.name;
            if cluster.get(&api, service, &format!("Service {namespace}/{service}")).await?.is_none() {
                missing.push(format!("{}: Service {namespace}/{service} does not exist", name(policy)));
            }
        }
    }
    Ok(CheckOutcome::warning_for(&missing))
}

/// Source Services that do not exist or have no ready endpoint, each with the first policy that names it.
async fn sources(cluster: &Cluster, policies: &[IngressBackend]) -> anyhow::Result<CheckOutcome> {
    let mut named: BTreeMap<(String, String), String> = BTreeMap::new();
    for policy in policies {
        for source in policy.spec.sources.iter().filter(|source| source.kind == "Service") {
            let namespace = source.namespace.clone().unwrap_or_default();
            named.entry((namespace, source.name.clone())).or_insert_with(|| name(policy));
        }
    }
    let mut without = Vec::new();
    for ((namespace, service), policy) in named {
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), &namespace);
        if cluster.get(&services, &service, &format!("Service {namespace}/{service}")).await?.is_none() {
            without.push(format!("{policy}: Service {namespace}/{service} does not exist"));
            continue;
        }
        let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), &namespace);
        let selector = ListParams::default().labels(&format!("{SERVICE_NAME}={service}"));
        let slices =
            cluster.list(&slices, selector, &format!("endpoints of Service {namespace}/{service}")).await?;
        if !slices.iter().any(|slice| slice.endpoints.iter().flatten().any(counts)) {
            without.push(format!("{policy}: Service {namespace}/{service} has no ready endpoints"));
        }
    }
    Ok(CheckOutcome::warning_for(&without))
}

/// Whether the controller admits an endpoint: one without a ready condition counts as ready.
pub(super) fn counts(endpoint: &Endpoint) -> bool {
    let is_ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
    !endpoint.addresses.is_empty() && is_ready != Some(false)
}

/// `<namespace>/<name>`.
fn name(policy: &IngressBackend) -> String {
    format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any())
}
