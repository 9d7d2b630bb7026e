//! Finds clients outside the mesh that verify its workloads by copies of the roots, as far as a cluster shows them.
//!
//! Two kinds are found: Secrets of type `nginx.org/ca`, which hold roots, and clients of `https` policies that do not
//! use the certificate in the mesh's own Secret, which would bring them the roots; where they keep their copy is
//! unknown. Clients that no policy names cannot be found. So the message also names the ConfigMap from which copies
//! are renewed.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams, ResourceExt};
use tidegate_core::contract::names::trust_bundle_config_map;
use tidegate_crds::IngressBackend;
use tidegate_runtime::trust_bundle::TrustBundle;

use super::{Rotation, enumerate};
use crate::cluster::check::mesh_config;
use crate::cluster::client::Cluster;
use crate::cluster::conflicts;

/// Type of the Secrets from which NGINX Inc.'s ingress controller reads roots.
const CA: &str = "nginx.org/ca";

/// Secrets of type `nginx.org/ca` that hold a root of the mesh, but not the issuing one.
pub(super) async fn stale(cluster: &Cluster, rotation: &Rotation) -> anyhow::Result<Vec<String>> {
    let api: Api<Secret> = Api::all(cluster.client.clone());
    let parameters = ListParams::default().fields(&format!("type={CA}"));
    let secrets = cluster.list(&api, parameters, "Secrets of type nginx.org/ca").await?;
    let of_mesh: BTreeSet<&str> = rotation
        .trusted_roots
        .iter()
        .map(|root| root.fingerprint.as_str())
        .chain(rotation.retired_roots.iter().map(String::as_str))
        .collect();
    let mut found = Vec::new();
    for secret in secrets.into_iter().filter(|secret| secret.type_.as_deref() == Some(CA)) {
        let name = format!("{}/{}", secret.namespace().unwrap_or_default(), secret.name_any());
        let pem = secret.data.unwrap_or_default().remove("ca.crt").unwrap_or_default();
        // An unreadable bundle verifies nothing, so it does not matter.
        let Ok(bundle) = TrustBundle::parse(&pem.0) else { continue };
        let held = bundle.fingerprints();
        let is_of_mesh = held.iter().any(|root| of_mesh.contains(root.as_str()));
        if is_of_mesh && !held.contains(&rotation.issuing_root) {
            found.push(format!("Secret {name} (type {CA}) does not hold the new root"));
        }
    }
    Ok(found)
}

/// Clients that `https` backends admit and whose roots are in no Secret of the mesh, each with its policy.
async fn unseen(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let config = mesh_config(cluster).await?;
    let known = config.as_ref().and_then(|config| config.spec.ingress_gateway());
    let known = known.map(|gateway| gateway.subject_alt_names.as_slice()).unwrap_or_default();
    let policies = conflicts::ingress_backends(cluster, &[]).await?.readable;
    Ok(policies.iter().flat_map(|policy| unseen_of(policy, known)).collect())
}

/// The principals of an `https` policy that are not in the certificate that the mesh issues; without any principal,
/// every client.
fn unseen_of(policy: &IngressBackend, known: &[String]) -> Vec<String> {
    if !policy.spec.backends.iter().any(|backend| backend.port.protocol.eq_ignore_ascii_case("https")) {
        return Vec::new();
    }
    let of = format!("IngressBackend {}/{}", policy.namespace().unwrap_or_default(), policy.name_any());
    let is_principal = |kind: &str| kind == "AuthenticatedPrincipal";
    let principals: Vec<_> = policy.spec.sources.iter().filter(|source| is_principal(&source.kind)).collect();
    if principals.is_empty() {
        return vec![format!("every client of {of}")];
    }
    let unseen = principals.iter().filter(|principal| !known.contains(&principal.name));
    unseen.map(|principal| format!("{} of {of}", principal.name)).collect()
}

/// What to do about copies after the old root is dropped; empty if there are none.
pub(super) async fn notes(
    cluster: &Cluster,
    rotation: &Rotation,
    is_revoked: bool,
) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    let stale = stale(cluster, rotation).await?;
    if !stale.is_empty() {
        notes.push(format!("copies of the old root: {}", enumerate(&stale)));
    }
    let unseen: Vec<String> = unseen(cluster).await?.into_iter().collect();
    if !unseen.is_empty() {
        notes.push(format!(
            "clients that verify workloads with roots that the mesh cannot see: {}",
            enumerate(&unseen)
        ));
    }
    if !notes.is_empty() {
        let source =
            format!("ConfigMap {}/{}", cluster.control_plane, trust_bundle_config_map(&cluster.mesh_name));
        notes.push(match (&rotation.bridge_ends, is_revoked) {
            (Some(end), false) => format!(
                "give them ca.crt of {source}: workload certificates still chain to the old root, but only until {end}"
            ),
            _ => format!(
                "give them ca.crt of {source} now: workload certificates no longer chain to the old root"
            ),
        });
    }
    Ok(notes)
}
