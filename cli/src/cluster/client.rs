//! Selects a cluster and connects to it.

use std::env;
use std::fmt::Debug;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use clap_complete::ArgValueCandidates;
use kube::api::ListParams;
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use tidegate_core::contract::environment;
use tidegate_core::contract::names::{DEFAULT_CONTROL_PLANE, DEFAULT_MESH_NAME};
use tidegate_kubernetes::client::ClientOptions;

use crate::candidates;
use crate::output::OutputFormat;

/// Page size of lists.
const PAGE: u32 = 500;

/// Flags of every command that talks to a cluster.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterOptions {
    /// kubeconfig file [default: $KUBECONFIG, then ~/.kube/config, then the Pod's own service account]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(candidates::contexts))]
    pub(crate) context: Option<String>,
    /// Namespace of the control plane [default: tidegate-system]
    #[arg(long = "tidegate-namespace", visible_alias = "osm-namespace", env = environment::NAMESPACE,
          value_name = "NAME", hide_env_values = true, add = ArgValueCandidates::new(candidates::namespaces))]
    pub(crate) control_plane: Option<String>,
    /// Name of the mesh [default: osm]
    #[arg(long, env = environment::MESH_NAME, value_name = "NAME", hide_env_values = true)]
    pub(crate) mesh_name: Option<String>,
}

/// Flags of a command that only shows what a cluster has.
#[derive(Args, Debug)]
pub(crate) struct ShowOptions {
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: OutputFormat,
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
}

/// A cluster and the mesh in it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The URL of the API server.
    pub(crate) server: String,
    /// The namespace of the control plane.
    pub(crate) control_plane: String,
    /// The name of the mesh.
    pub(crate) mesh_name: String,
}

/// A request to the API server that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {reason}")]
pub(crate) struct ApiRequestError {
    what: String,
    reason: String,
    /// Whether a later attempt may succeed.
    pub(crate) is_transient: bool,
}

impl ClusterOptions {
    /// The mesh's name.
    pub(crate) fn mesh_name(&self) -> &str {
        self.mesh_name.as_deref().unwrap_or(DEFAULT_MESH_NAME)
    }

    /// The control plane's namespace.
    pub(crate) fn control_plane(&self) -> &str {
        self.control_plane.as_deref().unwrap_or(DEFAULT_CONTROL_PLANE)
    }

    /// Whether any cluster is configured, by flags, environment or the usual files.
    pub(crate) fn is_configured(&self) -> bool {
        let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let usual = env::home_dir().map(|home| home.join(".kube/config"));
        self.kubeconfig.is_some()
            || self.context.is_some()
            || is_set("KUBECONFIG")
            || is_set("KUBERNETES_SERVICE_HOST")
            || usual.is_some_and(|file| file.is_file())
    }

    /// Reads the configuration. Sends no request yet.
    pub(crate) async fn connect(&self) -> anyhow::Result<Cluster> {
        let config = self.config().await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| anyhow!("{server}: {}", chain(&error)))?;
        Ok(Cluster {
            client,
            server,
            control_plane: self.control_plane().to_owned(),
            mesh_name: self.mesh_name().to_owned(),
        })
    }

    /// The configuration by flags, or else as `kubectl` finds it. Errors name the flag to correct.
    async fn config(&self) -> anyhow::Result<Config> {
        let options = ClientOptions { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        let config = tidegate_kubernetes::client::config(&options).await;
        config.map_err(|error| match (&self.kubeconfig, &self.context) {
            (Some(file), _) => anyhow!("--kubeconfig {}: {}", file.display(), chain(&error)),
            (None, Some(context)) => anyhow!("--context {context}: {}", chain(&error)),
            (None, None) => anyhow!(
                "no cluster is configured: {}; give --kubeconfig FILE, or set KUBECONFIG",
                chain(&error)
            ),
        })
    }
}

impl Cluster {
    /// Lists every object that `params` select, page by page. `what` names them in errors, such as `pods of namespace
    /// a`.
    pub(crate) async fn list<K>(&self, api: &Api<K>, params: ListParams, what: &str) -> anyhow::Result<Vec<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut params = params.limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = api.list(&params).await.map_err(|error| match &error {
                kube::Error::Api(status) if status.code == 404 => anyhow!(
                    "cannot list {what}: the cluster does not define them; `tidegate check` says which custom resource \
                     definitions are missing"
                ),
                error => self.failed(&format!("list {what}"), error),
            })?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }

    /// Gets one object, if it exists.
    pub(crate) async fn get<K>(&self, api: &Api<K>, name: &str, what: &str) -> anyhow::Result<Option<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        api.get_opt(name).await.map_err(|error| self.failed(&format!("read {what}"), &error))
    }

    /// An error that says which request failed and what to do about it: a [`ApiRequestError`].
    pub(crate) fn failed(&self, what: &str, error: &kube::Error) -> anyhow::Error {
        let reason = match error {
            kube::Error::Api(status) if status.code == 403 => {
                format!("permission denied: {}", status.message)
            }
            kube::Error::Api(status) if status.code == 401 => {
                format!(
                    "{} does not accept your credentials; log in again, or choose another --context",
                    self.server
                )
            }
            kube::Error::Api(status) if status.message.is_empty() => {
                format!("{} {}", status.code, status.reason)
            }
            kube::Error::Api(status) => status.message.clone(),
            kube::Error::HyperError(_) | kube::Error::Service(_) => {
                format!("the API server {} is unreachable: {}", self.server, chain(error))
            }
            other => chain(other),
        };
        let is_transient = match error {
            kube::Error::Api(status) => status.code == 429 || status.code >= 500,
            kube::Error::HyperError(_) | kube::Error::Service(_) => true,
            _ => false,
        };
        ApiRequestError { what: what.to_owned(), reason, is_transient }.into()
    }
}

/// An error and its causes, without repetitions.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text += &format!(": {message}");
        }
        cause = error.source();
    }
    text
}
