//! The certificate authority on Kubernetes, with the API server instead of folders.
//!
//! [`token_review`] authenticates callers, [`root_secret`] stores the root, [`namespaces`] follows which namespaces are in
//! the mesh, [`trust_bundle`] publishes the root to them, [`gateway_secret`] stores the ingress controller's certificate,
//! and [`mesh_config`] reads its settings and reports its state. [`follow`] wakes the tasks that restore things, so that
//! they need not wait for their next check.

mod follow;
mod gateway_secret;
mod mesh_config;
mod namespaces;
mod parts;
mod root_secret;
mod token_review;
mod trust_bundle;

use std::collections::BTreeMap;

use tidegate_core::contract::labels::{INSTANCE, MANAGED_BY, PART_OF, TIDEGATE};
use tidegate_core::contract::names::CERT_MANAGER;
use tidegate_kubernetes::lean::Wanted;

pub(crate) use self::parts::{KubernetesParts, ReplicaConfig};
pub use self::parts::{KubernetesTasks, RunningKubernetesTasks, wait_for_api_server};
use crate::store::StoreError;

#[cfg(test)]
mod tests;

/// Timeout of a request to the API server.
const REQUEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The labels of objects that we write for a mesh.
fn labels(mesh_name: &str) -> BTreeMap<String, String> {
    [(MANAGED_BY, CERT_MANAGER), (PART_OF, TIDEGATE), (INSTANCE, mesh_name)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// The labels that say who wrote an object, and for which mesh.
struct OwnerLabels;

impl Wanted for OwnerLabels {
    const NAMES: &'static [&'static str] = &[MANAGED_BY, INSTANCE];
}

/// Whether these labels say that we wrote it for this mesh.
fn is_ours(labels: Option<&BTreeMap<String, String>>, mesh_name: &str) -> bool {
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
    label(MANAGED_BY) == Some(CERT_MANAGER) && label(INSTANCE) == Some(mesh_name)
}

/// Waits for the API server's answer, at most [`REQUEST_TIMEOUT`].
async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {
            Err(StoreError::Conflict)
        }
        Ok(Err(error)) => Err(StoreError::Other(message(&error))),
        Err(_) => Err(StoreError::Other(format!(
            "the API server did not answer within {}",
            humantime::format_duration(REQUEST_TIMEOUT)
        ))),
    }
}

/// The error's message, without `kube`'s wrapping.
fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::Service(source) => format!("the API server cannot be reached: {source}"),
        other => other.to_string(),
    }
}
