//! Who holds a certificate, and whether it outlives the old root.

use std::time::SystemTime;

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ResourceExt};
use serde::Deserialize;
use tidegate_runtime::identity::leads_to;
use tidegate_runtime::tls::load_pem_certificates;
use tidegate_runtime::trust_bundle::fingerprint;

use crate::cluster::check::{gateway_secret, mesh_config, trust_bundle};
use crate::cluster::client::Cluster;
use crate::cluster::control_plane::Part;

/// `GET /certificate` of a daemon.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    certificate_roots: Vec<String>,
}

/// Everybody who is not known to hold a certificate that is good under this root, with the reason: sidecars that run,
/// the control plane, and the ingress controller's Secret. The cert-manager renews its own with each step.
pub(super) async fn not_renewed(cluster: &Cluster, root: &str) -> anyhow::Result<Vec<String>> {
    let mut found = sidecars(cluster, root).await?;
    for part in [Part::Controller, Part::Injector] {
        found.extend(control_plane(cluster, part, root).await?);
    }
    found.extend(gateway(cluster, root).await?);
    Ok(found)
}

async fn sidecars(cluster: &Cluster, root: &str) -> anyhow::Result<Vec<String>> {
    let pods = cluster.meshed_pods(None).await?;
    if pods.is_empty() {
        return Ok(Vec::new());
    }
    let known = cluster.known_sidecars().await?;
    let reason = |pod| match known.connected(pod).map(|stream| stream.certificate_roots.as_deref()) {
        None => Some("connected to no controller"),
        Some(None | Some([])) => Some("does not say under which root its certificate is"),
        Some(Some(roots)) if roots.iter().any(|known| known == root) => None,
        Some(Some(_)) => Some("has a certificate of the old root"),
    };
    let started = pods.iter().filter(|pod| pod.is_started);
    Ok(started.filter_map(|pod| Some(format!("{} ({})", pod.key(), reason(pod)?))).collect())
}

async fn control_plane(cluster: &Cluster, part: Part, root: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for pod in cluster.running(part).await? {
        let name = pod.name_any();
        let reason = match cluster
            .admin_json::<Certificate>(&cluster.control_plane, &name, "/certificate")
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

async fn gateway(cluster: &Cluster, root: &str) -> anyhow::Result<Option<String>> {
    let Some((namespace, name)) = mesh_config(cluster).await?.as_ref().and_then(gateway_secret) else {
        return Ok(None);
    };
    let what = format!("Secret {namespace}/{name}");
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &namespace);
    // One that is not there holds nothing that could end.
    let Some(secret) = cluster.get(&api, &name, &what).await? else { return Ok(None) };
    let bundle = trust_bundle(cluster, &cluster.control_plane).await?;
    let bundle =
        bundle.with_context(|| format!("namespace {} has no trust bundle", cluster.control_plane))?;
    let root = bundle.roots().iter().find(|known| fingerprint(known) == root);
    let root = root.context("the root that issues is not in the trust bundle yet")?;
    let pem = secret.data.unwrap_or_default().remove("tls.crt").unwrap_or_default().0;
    let chain = load_pem_certificates(&pem).with_context(|| format!("{what}: tls.crt"))?;
    let is_renewed = leads_to(&chain, root, SystemTime::now());
    Ok((!is_renewed).then(|| format!("{what} (has a certificate of the old root)")))
}
