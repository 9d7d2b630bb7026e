//! `tidegate proxy`: the sidecars, as the controllers and the sidecars themselves report them.
//!
//! `status` joins three sources: the Pods that have a sidecar, what each controller replica reports about its
//! streams, and for the policy's state the versions that were sent and acknowledged. `get` prints a page of the
//! sidecar's own admin server, or a part of `/config`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::Serialize;
use serde_json::Value;
use tidegate_core::contract::names::{METRICS_PATH, READY_PATH};
use tidegate_crds::injection::has_sidecar;

use super::client::{Cluster, ClusterOptions};
use super::control_plane::is_running;
use super::sidecars::{Known, MeshedPod, RejectedVersion};
use crate::candidates;
use crate::output::{OutputFormat, print, print_as, table};

/// Number of digits of a version or a fingerprint that tables show.
const SHORT: usize = 12;

/// Sidecars.
#[derive(Subcommand, Debug)]
pub(crate) enum ProxyCommand {
    /// List sidecars: whether a controller has them connected, and the state of their policy.
    Status(ProxyStatusOptions),
    /// Query a sidecar.
    Get(GetOptions),
}

/// Flags of `tidegate proxy status`.
#[derive(Args, Debug)]
pub(crate) struct ProxyStatusOptions {
    /// Only this Pod, as NAME or NAMESPACE/NAME.
    #[arg(value_name = "POD", add = ArgValueCandidates::new(candidates::pods))]
    pod: Option<String>,
    /// Only this namespace [default: all, or with POD the context's]
    #[arg(short, long, value_name = "NAMESPACE", add = ArgValueCandidates::new(candidates::namespaces))]
    namespace: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Flags of `tidegate proxy get`.
#[derive(Args, Debug)]
pub(crate) struct GetOptions {
    /// What to query.
    #[arg(value_enum, value_name = "QUERY")]
    query: ProxyQuery,
    /// The Pod, as NAME or NAMESPACE/NAME.
    #[arg(value_name = "POD", add = ArgValueCandidates::new(candidates::pods))]
    pod: String,
    /// The Pod's namespace [default: the context's]
    #[arg(short, long, value_name = "NAMESPACE", add = ArgValueCandidates::new(candidates::namespaces))]
    namespace: Option<String>,
    /// Write the answer to this file.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// What a sidecar can be queried for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProxyQuery {
    /// Everything that it enforces and shows; never a private key.
    #[value(alias = "config_dump")]
    Config,
    /// Its certificate and the roots that it trusts.
    Certs,
    /// The policy that it enforces.
    Policy,
    /// Its listeners, and where their connections go.
    #[value(alias = "listeners")]
    Inbound,
    /// The destinations that its app has dialled, with their endpoints.
    #[value(alias = "clusters")]
    Outbound,
    /// The routes of those destinations: rules, and backends with their weights.
    Routes,
    /// Its metrics, for Prometheus.
    #[value(alias = "stats")]
    Metrics,
    /// Whether it is ready, and if not, what is missing.
    Ready,
    /// Its log filter.
    #[value(alias = "logging")]
    Log,
}

/// A sidecar, as the controllers know it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProxyStatus {
    namespace: String,
    pod: String,
    /// Whether it has a stream to the controller at this moment.
    connected: bool,
    /// The controller replica that it is or was connected to.
    controller: Option<String>,
    /// The sidecar's version: as reported by it, or else its image's tag.
    program_version: String,
    policy: PolicyState,
    /// The newest version, the one sent and the one that the sidecar has applied.
    version: Option<String>,
    sent_version: Option<String>,
    acked_version: Option<String>,
    /// The policy's version that it rejected last, which may be an older one.
    rejected: Option<RejectedVersion>,
    /// Destinations, routes and backends that the sidecar rejected, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rejected_resources: BTreeMap<String, RejectedVersion>,
    /// Why it has no policy.
    error: Option<String>,
    /// When its certificate expires, RFC 3339.
    certificate_not_after: Option<String>,
    /// SHA-256 of the roots that it trusts, in hexadecimal; absent until it has reported them.
    trusted_roots: Option<Vec<String>>,
}

/// The state of a sidecar's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum PolicyState {
    /// The newest version is applied.
    InForce,
    /// A newer version has been sent.
    Pending,
    /// The sidecar rejected a version, and keeps the previous one.
    Rejected,
    /// It has no policy, and refuses everything.
    None,
}

/// Runs the command.
pub(crate) async fn run(command: ProxyCommand) -> anyhow::Result<ExitCode> {
    match command {
        ProxyCommand::Status(options) => {
            let cluster = options.cluster.connect().await?;
            let rows = match &options.pod {
                Some(pod) => {
                    let (namespace, name) = pod_name(&cluster, pod, options.namespace.as_deref())?;
                    meshed_pod(&cluster, &namespace, &name).await?;
                    let mut rows = status(&cluster, Some(&namespace)).await?;
                    rows.retain(|row| row.pod == name);
                    rows
                }
                None => status(&cluster, options.namespace.as_deref()).await?,
            };
            if rows.is_empty() && options.output == OutputFormat::Table {
                eprintln!("No pods with a sidecar");
                return Ok(ExitCode::SUCCESS);
            }
            print_as(options.output, &rows, |rows| text(rows))
        }
        ProxyCommand::Get(options) => {
            let cluster = options.cluster.connect().await?;
            let (namespace, name) = pod_name(&cluster, &options.pod, options.namespace.as_deref())?;
            meshed_pod(&cluster, &namespace, &name).await?;
            let answer = get(&cluster, &namespace, &name, options.query).await?;
            match &options.file {
                Some(file) => {
                    std::fs::write(file, answer).with_context(|| format!("--file {}", file.display()))?;
                    Ok(ExitCode::SUCCESS)
                }
                None => print(&answer),
            }
        }
    }
}

/// Every Pod with a sidecar, of one namespace or of all.
pub(crate) async fn status(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Vec<ProxyStatus>> {
    let known = cluster.known_sidecars().await?;
    for error in &known.silent {
        eprintln!("warning: {error}; sidecars connected to it appear disconnected");
    }
    let pods = cluster.meshed_pods(namespace).await?;
    Ok(pods.iter().map(|pod| ProxyStatus::new(pod, &known)).collect())
}

/// A sidecar's answer to a query, ready to print.
pub(crate) async fn get(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    query: ProxyQuery,
) -> anyhow::Result<Vec<u8>> {
    let body = cluster.admin(Method::GET, namespace, name, query.path()).await?;
    let member = match query {
        ProxyQuery::Metrics | ProxyQuery::Ready | ProxyQuery::Log => return Ok(body.to_vec()),
        ProxyQuery::Config => None,
        ProxyQuery::Certs => Some("tls"),
        ProxyQuery::Policy => Some("policy"),
        ProxyQuery::Inbound => Some("inbound"),
        ProxyQuery::Outbound => Some("destinations"),
        ProxyQuery::Routes => Some("references"),
    };
    let mut config: Value = serde_json::from_slice(&body).context("/config is not JSON")?;
    if let (ProxyQuery::Routes, Some(references)) = (query, config["references"].as_array_mut()) {
        references.retain(|reference| reference.get("routes").is_some());
    }
    let shown = member.map_or(&config, |member| &config[member]);
    Ok((serde_json::to_string_pretty(shown)? + "\n").into_bytes())
}

impl ProxyQuery {
    /// The admin page that answers the query.
    fn path(self) -> &'static str {
        match self {
            Self::Config | Self::Certs | Self::Policy | Self::Inbound | Self::Outbound | Self::Routes => {
                "/config"
            }
            Self::Metrics => METRICS_PATH,
            Self::Ready => READY_PATH,
            Self::Log => "/log",
        }
    }
}

impl ProxyStatus {
    /// The row of a Pod. The state compares the newest version with the one acknowledged; a rejection counts only if
    /// it is of the newest.
    fn new(pod: &MeshedPod, known: &Known) -> Self {
        let (workload, controller) = match known.workloads.get(&pod.key()) {
            Some((workload, controller)) => (Some(workload), Some(controller)),
            None => (None, None),
        };
        let stream = workload.and_then(|workload| workload.sidecar.as_ref());
        let version = workload.and_then(|workload| workload.version.clone());
        let acked_version = stream.and_then(|stream| stream.acked_version.clone());
        let rejected = stream.and_then(|stream| stream.rejected.clone());
        let policy = match (&version, &acked_version, &rejected) {
            (None, _, _) => PolicyState::None,
            (Some(version), _, Some(rejected)) if rejected.version == *version => PolicyState::Rejected,
            (Some(version), Some(acked), _) if acked == version => PolicyState::InForce,
            _ => PolicyState::Pending,
        };
        Self {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            connected: stream.is_some_and(|stream| stream.connected),
            controller: stream.and(controller).cloned(),
            program_version: pod.version(stream).to_owned(),
            policy,
            version,
            sent_version: stream.and_then(|stream| stream.sent_version.clone()),
            acked_version,
            rejected,
            rejected_resources: stream.map(|stream| stream.rejected_resources.clone()).unwrap_or_default(),
            error: workload.and_then(|workload| workload.error.clone()),
            certificate_not_after: stream.and_then(|stream| stream.certificate_not_after.clone()),
            trusted_roots: stream.and_then(|stream| stream.trusted_roots.clone()),
        }
    }

    /// The state in words. A rejected destination, route or backend is shown only if the policy is in force:
    /// otherwise the policy matters more.
    fn policy_cell(&self) -> String {
        match (self.policy, &self.rejected, &self.error) {
            (PolicyState::Rejected, Some(rejected), _) => format!("rejected: {}", rejected.reason),
            (PolicyState::None, _, Some(error)) => format!("none: {error}"),
            (PolicyState::None, _, None) => "none".to_owned(),
            (PolicyState::InForce, _, _) => match self.rejected_resources.first_key_value() {
                Some((name, rejected)) => format!("in force; rejected {name}: {}", rejected.reason),
                None => "in force".to_owned(),
            },
            (PolicyState::Pending | PolicyState::Rejected, _, _) => "pending".to_owned(),
        }
    }
}

/// The Pod that `text` names: `NAMESPACE/NAME`, or `NAME` in the namespace of the flag or of the context.
fn pod_name(cluster: &Cluster, text: &str, namespace: Option<&str>) -> anyhow::Result<(String, String)> {
    match (text.split_once('/'), namespace) {
        (Some((given, _)), Some(flag)) if given != flag => {
            bail!("POD {text} is in namespace {given}, but --namespace is {flag}")
        }
        (Some((namespace, name)), _) => Ok((namespace.to_owned(), name.to_owned())),
        (None, namespace) => {
            Ok((namespace.unwrap_or(cluster.client.default_namespace()).to_owned(), text.to_owned()))
        }
    }
}

/// Checks that a Pod exists and has a running sidecar.
pub(crate) async fn meshed_pod(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pod = cluster.get(&api, name, &format!("pod {namespace}/{name}")).await?;
    let Some(pod) = pod else {
        bail!("pod {name} does not exist in namespace {namespace}; give -n for another namespace")
    };
    if !has_sidecar(&pod) {
        bail!(
            "pod {namespace}/{name} has no sidecar; `tidegate namespace list` shows which namespaces add one, and only \
             to pods that start after that"
        );
    }
    if !is_running(&pod) && !MeshedPod::of(&pod).is_some_and(|pod| pod.is_started) {
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_else(|| "Pending".to_owned());
        bail!("the sidecar of pod {namespace}/{name} is not running; the pod is {phase}");
    }
    Ok(())
}

/// The table; versions and fingerprints are cut to [`SHORT`] digits.
fn text(rows: &[ProxyStatus]) -> String {
    let short = |text: &Option<String>| {
        text.as_ref().map_or_else(|| "-".to_owned(), |text| text.chars().take(SHORT).collect())
    };
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let roots = row.trusted_roots.iter().flatten().map(|root| root.chars().take(SHORT).collect());
            let roots: Vec<String> = roots.collect();
            vec![
                row.namespace.clone(),
                row.pod.clone(),
                if row.connected { "yes" } else { "no" }.to_owned(),
                row.policy_cell(),
                format!("{}/{}", short(&row.acked_version), short(&row.sent_version)),
                row.certificate_not_after.clone().unwrap_or_else(|| "-".to_owned()),
                if roots.is_empty() { "-".to_owned() } else { roots.join(",") },
                row.program_version.clone(),
                row.controller.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    let heading = [
        "NAMESPACE",
        "POD",
        "CONNECTED",
        "POLICY",
        "ACKED/SENT",
        "CERTIFICATE ENDS",
        "TRUSTED ROOTS",
        "VERSION",
        "CONTROLLER",
    ];
    table(&heading, &rows)
}

#[cfg(test)]
mod tests;
