//! Queries the admin server of a Pod. It listens on the Pod's loopback address, so requests go through a port-forward. Other ports of
//! Pods are reached by the same way.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::de::DeserializeOwned;
use tidegate_core::contract::ports::ADMIN;
use tokio::io::DuplexStream;

use super::client::{Cluster, chain};
use crate::admin_client::exchange;

/// Timeout of port-forward, request and answer together.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait for the reason of a port-forward that has ended.
const ERROR_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a Pod's admin server gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodAdminError {
    /// The port-forward, or the request through it, failed.
    #[error("pod {pod}: {reason}")]
    Unreachable { pod: String, reason: String },
    /// The API server does not allow the port-forward.
    #[error("pod {pod}: your user lacks permission to port-forward to it: {message}")]
    Forbidden { pod: String, message: String },
    /// The admin server answered with an error status.
    #[error("pod {pod}: {path}: {status}: {message}")]
    Refused { pod: String, path: String, status: StatusCode, message: String },
    /// The body is not the JSON that this version expects.
    #[error("pod {pod}: {path}: unexpected JSON: {error}")]
    Malformed { pod: String, path: String, error: serde_json::Error },
}

impl PodAdminError {
    /// Whether the error is the admin server's own answer.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether a later attempt may succeed, as it does once a Pod has restarted.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::Forbidden { .. } | Self::Malformed { .. } => false,
        }
    }
}

impl Cluster {
    /// Sends `GET path` to a Pod's admin server and parses the body as JSON.
    pub(crate) async fn admin_json<T: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        path: &str,
    ) -> Result<T, PodAdminError> {
        let body = self.admin(Method::GET, namespace, name, path).await?;
        serde_json::from_slice(&body).map_err(|error| PodAdminError::Malformed {
            pod: format!("{namespace}/{name}"),
            path: path.to_owned(),
            error,
        })
    }

    /// Sends `GET path` to a Pod's admin server and returns the body.
    pub(crate) async fn admin(
        &self,
        method: Method,
        namespace: &str,
        name: &str,
        path: &str,
    ) -> Result<Bytes, PodAdminError> {
        let pod = format!("{namespace}/{name}");
        let unreachable = |reason: String| PodAdminError::Unreachable { pod: pod.clone(), reason };
        let answer = tokio::time::timeout(TIMEOUT, self.forwarded(method, namespace, name, path)).await;
        let (status, body) = match answer {
            Ok(answer) => answer?,
            Err(_) => return Err(unreachable(format!("no answer in {TIMEOUT:?}"))),
        };
        if status == StatusCode::OK {
            return Ok(body);
        }
        let message = String::from_utf8_lossy(&body).trim().to_owned();
        Err(PodAdminError::Refused { pod, path: path.to_owned(), status, message })
    }

    /// One request through a new port-forward.
    async fn forwarded(
        &self,
        method: Method,
        namespace: &str,
        name: &str,
        path: &str,
    ) -> Result<(StatusCode, Bytes), PodAdminError> {
        let host = format!("127.0.0.1:{ADMIN}");
        self.forward(namespace, name, ADMIN, async |stream| exchange(stream, method, &host, path).await).await
    }

    /// Opens a connection to a port of a Pod by a new port-forward, and uses it. If that fails, the kubelet's message on the
    /// error channel is preferred: it says, for example, that the port refused the connection.
    pub(crate) async fn forward<T>(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
        exchange: impl AsyncFnOnce(DuplexStream) -> anyhow::Result<T>,
    ) -> Result<T, PodAdminError> {
        let pod = format!("{namespace}/{name}");
        let unreachable = |reason: String| PodAdminError::Unreachable { pod: pod.clone(), reason };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let forward = pods.portforward(name, &[port]).await;
        let mut forward = forward.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 403 => {
                PodAdminError::Forbidden { pod: pod.clone(), message: status.message.clone() }
            }
            error => unreachable(format!("port-forward failed: {}", chain(error))),
        })?;
        let (Some(stream), Some(error)) = (forward.take_stream(port), forward.take_error(port)) else {
            return Err(unreachable("the port-forward has no stream".to_owned()));
        };
        let result = match exchange(stream).await {
            Ok(answer) => Ok(answer),
            // The kubelet's error says more than the end of the stream.
            Err(answer) => match tokio::time::timeout(ERROR_TIMEOUT, error).await {
                Ok(Some(error)) => Err(unreachable(format!("port {port}: {}", error.trim()))),
                _ => Err(unreachable(format!("port {port}: {answer:#}"))),
            },
        };
        forward.abort();
        result
    }
}
