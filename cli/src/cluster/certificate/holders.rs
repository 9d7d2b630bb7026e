//! Finds the holders of certificates that are still under the old root.
//!
//! Once the old root is dropped, peers refuse new connections of a holder that still has a certificate under it. The
//! lists are therefore pessimistic: a holder that does not answer, or does not report, counts as one that still has
//! the old root.

use std::collections::BTreeSet;
use std::time::SystemTime;

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ResourceExt};
use serde::Deserialize;
use tidegate_core::contract::annotations::GATEWAY_SECRETS;
use tidegate_core::contract::names::ROOT_SECRET;
use tidegate_runtime::chain::leads_to;
use tidegate_runtime::tls::load_pem_certificates;
use tidegate_runtime::trust_bundle::fingerprint;

use crate::cluster::check::{gateway_secret, mesh_config, trust_bundle};
use crate::cluster::client::Cluster;
use crate::cluster::control_plane::Part;

/// `GET /certificate` of a daemon.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DaemonCertificate {
    certificate_roots: Vec<String>,
}

/// Holders that are not known to have a certificate under this root, with the reason: running sidecars, the control
/// plane, and the ingress controller's Secrets. The cert-manager renews its own with each step. Sidecars of the
/// namespaces `without` are skipped.
pub(super) async fn not_renewed(
    cluster: &Cluster,
    root: &str,
    without: &BTreeSet<String>,
) -> anyhow::Result<Vec<String>> {
    let mut found = sidecars(cluster, root, without).await?;
    for part in [Part::Controller, Part::Injector] {
        found.extend(control_plane(cluster, part, root).await?);
    }
    found.extend(gateway(cluster, root).await?);
    Ok(found)
}

/// Running sidecars, as they have reported their certificate's roots to the controller that they are connected to.
async fn sidecars(cluster: &Cluster, root: &str, without: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    let pods = cluster.meshed_pods(None).await?;
    if pods.is_empty() {
        return Ok(Vec::new());
    }
    let known = cluster.known_sidecars().await?;
    let reason = |pod| match known.connected(pod).map(|stream| stream.certificate_roots.as_deref()) {
        None => Some("not connected to a controller"),
        Some(None | Some([])) => Some("does not report the root of its certificate"),
        Some(Some(roots)) if roots.iter().any(|known| known == root) => None,
        Some(Some(_)) => Some("has a certificate of the old root"),
    };
    let started = pods.iter().filter(|pod| pod.is_started && !without.contains(&pod.namespace));
    Ok(started.filter_map(|pod| Some(format!("{} ({})", pod.key(), reason(pod)?))).collect())
}

/// Pods of a daemon, by their admin page `/certificate`.
async fn control_plane(cluster: &Cluster, part: Part, root: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for pod in cluster.running(part).await? {
        let name = pod.name_any();
        let reason = match cluster
            .admin_json::<DaemonCertificate>(&cluster.control_plane, &name, "/certificate")
            .await
        {
            Ok(certificate) if certificate.certificate_roots.iter().any(|known| known == root) => continue,
            Ok(_) => "has a certificate of the old root".to_owned(),
            Err(error) => error.to_string(),
        };
        found.push(format!("{}/{name} ({reason})", cluster.control_plane));
    }
    Ok(found)
}

/// The ingress controller's Secrets, by the certificates in them: those that MeshConfig names and those that were
/// written before. The chain is verified, because a Secret does not name the root of its certificate.
async fn gateway(cluster: &Cluster, root: &str) -> anyhow::Result<Vec<String>> {
    let wanted = mesh_config(cluster).await?.as_ref().and_then(gateway_secret);
    let names: BTreeSet<(String, String)> = wanted.into_iter().chain(written(cluster).await?).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let bundle = trust_bundle(cluster, &cluster.control_plane).await?;
    let bundle =
        bundle.with_context(|| format!("namespace {} has no trust bundle", cluster.control_plane))?;
    let root = bundle.roots().iter().find(|known| fingerprint(known) == root);
    let root = root.context("the issuing root is not yet in the trust bundle")?;
    let mut found = Vec::new();
    for (namespace, name) in names {
        let what = format!("Secret {namespace}/{name}");
        let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &namespace);
        // A missing Secret, or one that holds only the roots, has no certificate that could expire.
        let Some(secret) = cluster.get(&api, &name, &what).await? else { continue };
        let Some(pem) = secret.data.unwrap_or_default().remove("tls.crt") else { continue };
        let chain = load_pem_certificates(&pem.0).with_context(|| format!("{what}: tls.crt"))?;
        if !leads_to(&chain, root, SystemTime::now()) {
            found.push(format!("{what} (has a certificate of the old root)"));
        }
    }
    Ok(found)
}

/// Namespaces and names of the Secrets that the cert-manager has written for ingress controllers.
async fn written(cluster: &Cluster) -> anyhow::Result<Vec<(String, String)>> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.control_plane);
    let what = format!("Secret {}/{ROOT_SECRET}", cluster.control_plane);
    // Metadata only, because the Secret contains the root's key.
    let root = api.get_metadata_opt(ROOT_SECRET).await.map_err(|error| cluster.failed(&what, &error))?;
    let text = root.and_then(|root| root.metadata.annotations?.remove(GATEWAY_SECRETS)).unwrap_or_default();
    let names = text.split(',').filter_map(|name| name.trim().split_once('/'));
    Ok(names.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())).collect())
}
