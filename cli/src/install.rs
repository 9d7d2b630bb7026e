//! `tidegate install`, `upgrade`, `uninstall`.
//!
//! The charts are the only source of what is installed, and only Helm renders them: these commands embed the [`charts`]
//! and run the user's [`crate::helm`]. An installation consists of two Helm releases, as if the user had created them.
//!
//! The order of an installation: the custom resource definitions (taken over if they exist), the control plane, and
//! with `--wait` the rollout. Standard output has the manifests or Helm's notes only.

mod charts;
mod definitions;
mod installed;
mod leftovers;
mod rollout;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;

use self::charts::Charts;
use self::leftovers::{Deletions, Leftover};
use crate::cluster::client::ClusterOptions;
use crate::helm::{Helm, HelmOptions};
use crate::output::{counted, print};

/// How often to look again at what is waited for.
const INTERVAL: Duration = Duration::from_secs(1);
/// The Helm release of the control plane, in its namespace.
const RELEASE: &str = "tidegate";
/// The Helm release of the custom resource definitions, in the same namespace.
const CRDS_RELEASE: &str = "tidegate-crds";

/// Flags of `tidegate install`.
#[derive(Args, Debug)]
pub(crate) struct InstallOptions {
    /// Install instead of printing the manifests
    #[arg(long)]
    apply: bool,
    /// Print only the custom resource definitions
    #[arg(long, conflicts_with_all = ["apply", "skip_crds"])]
    crds_only: bool,
    #[command(flatten)]
    change: ChangeOptions,
}

/// Flags of `tidegate upgrade`.
#[derive(Args, Debug)]
pub(crate) struct UpgradeOptions {
    #[command(flatten)]
    change: ChangeOptions,
}

/// Flags of `tidegate uninstall`.
#[derive(Args, Debug)]
pub(crate) struct UninstallOptions {
    #[command(flatten)]
    deletions: Deletions,
    /// Do not ask before deleting what cannot be recreated
    #[arg(short, long, visible_short_alias = 'f', visible_alias = "force")]
    yes: bool,
    #[command(flatten)]
    helm: HelmOptions,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Flags that `install` and `upgrade` have in common.
#[derive(Args, Debug)]
struct ChangeOptions {
    /// Set a value of the chart; repeat for more
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Set a value as text, whatever it looks like, such as image.tag=1; repeat for more
    #[arg(long, value_name = "NAME=VALUE")]
    set_string: Vec<String>,
    /// File with values of the chart; repeat for more
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// Three replicas of each daemon, on separate nodes if there are enough, with disruption budgets and priority
    #[arg(long)]
    ha: bool,
    /// Revert --ha
    #[arg(long, conflicts_with = "ha")]
    no_ha: bool,
    /// Leave the custom resource definitions alone: another mesh of the cluster has installed them
    #[arg(long)]
    skip_crds: bool,
    /// Install the definitions of Gateway API's routes, too, if the cluster has none; later upgrades keep the choice
    #[arg(long, conflicts_with = "skip_crds")]
    gateway_api: bool,
    /// Wait until everything is ready, and report what is missing
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    helm: HelmOptions,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Identity of an object in a manifest.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default)]
struct ManifestObject {
    kind: String,
    metadata: ManifestMetadata,
}

/// The part of an object's metadata that identifies it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default)]
struct ManifestMetadata {
    namespace: Option<String>,
    name: String,
}

/// Prints or installs.
pub(crate) async fn install(options: &InstallOptions) -> anyhow::Result<ExitCode> {
    let change = &options.change;
    let (helm, charts) = (change.helm.find(helm_flags(&change.cluster))?, Charts::unpack()?);
    if !options.apply {
        return print(change.manifests(&helm, &charts, options.crds_only)?.as_bytes());
    }
    change.install_crds(&helm, &charts).await?;
    let mut arguments = words(["install", RELEASE]);
    arguments.extend([charts.control_plane().into(), "--create-namespace".into()]);
    arguments.extend(change.values(&charts)?);
    change.look_at_nodes().await;
    let notes = helm.run(arguments)?;
    change.wait().await?;
    print(notes.as_bytes())
}

/// Upgrades, and reports objects that the new chart no longer has.
pub(crate) async fn upgrade(options: &UpgradeOptions) -> anyhow::Result<ExitCode> {
    let change = &options.change;
    let (helm, charts) = (change.helm.find(helm_flags(&change.cluster))?, Charts::unpack()?);
    installed::is_named(&change.cluster.connect().await?).await?;
    let before = helm.run(["get", "manifest", RELEASE]).with_context(|| {
        format!("Helm release {RELEASE} does not exist in namespace {}", change.cluster.control_plane())
    })?;
    change.install_crds(&helm, &charts).await?;
    let mut arguments = words(["upgrade", RELEASE]);
    arguments.extend([charts.control_plane().into(), "--reset-then-reuse-values".into()]);
    arguments.extend(change.values(&charts)?);
    change.look_at_nodes().await;
    let notes = helm.run(arguments)?;
    change.wait().await?;
    let after = objects(&helm.run(["get", "manifest", RELEASE])?);
    for gone in objects(&before).difference(&after) {
        eprintln!("Deleted, because the chart no longer has it: {gone}");
    }
    print(notes.as_bytes())
}

/// Uninstalls, deletes what was requested, and lists what is left.
pub(crate) async fn uninstall(options: UninstallOptions) -> anyhow::Result<ExitCode> {
    let deletions = options.deletions.resolved();
    let helm = options.helm.find(helm_flags(&options.cluster))?;
    let cluster = options.cluster.connect().await?;
    installed::may_be_removed(&cluster, &helm, deletions).await?;
    deletions.check(&cluster).await?;
    let (going, staying) = deletions.split(&cluster, leftovers::find(&cluster).await?);
    if deletions.any() && !options.yes {
        confirm(&going)?;
    }
    helm.run(["uninstall", RELEASE, "--wait", "--ignore-not-found"])?;
    leftovers::delete_remains(&cluster).await?;
    if deletions.delete_crds {
        helm.run(["uninstall", CRDS_RELEASE, "--wait", "--ignore-not-found"])?;
    }
    for leftover in &going {
        leftover.delete(&cluster).await?;
        eprintln!("Deleted: {leftover}");
    }
    for leftover in &staying {
        eprintln!("Kept: {leftover} ({} deletes it)", leftover.flag());
    }
    let left = leftovers::injected_pods(&cluster).await?;
    if left > 0 {
        eprintln!(
            "{} still {} a sidecar, which keeps serving until its certificate expires; restart them to remove it",
            counted(left, "Pod"),
            if left == 1 { "has" } else { "have" }
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for confirmation of these deletions; refuses if standard input is not a terminal.
fn confirm(going: &[Leftover]) -> anyhow::Result<()> {
    for leftover in going {
        eprintln!("To be deleted: {leftover}");
    }
    ensure!(
        io::stdin().is_terminal(),
        "this cannot be undone, and standard input is not a terminal: confirm with --yes. Nothing was changed"
    );
    eprint!("Uninstall, and delete all of these? This cannot be undone. [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("standard input")?;
    let is_yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    ensure!(is_yes, "not confirmed; nothing was changed");
    Ok(())
}

impl ChangeOptions {
    /// Every manifest, the namespace first.
    fn manifests(&self, helm: &Helm, charts: &Charts, crds_only: bool) -> anyhow::Result<String> {
        let namespace = self.cluster.control_plane();
        let crds = || {
            let mut arguments = words(["template", CRDS_RELEASE]);
            arguments.push(charts.crds().into());
            arguments.extend(self.crds_values());
            helm.run(arguments)
        };
        if crds_only {
            return crds();
        }
        let mut text = format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n");
        if !self.skip_crds {
            text += &crds()?;
        }
        let mut arguments = words(["template", RELEASE]);
        arguments.push(charts.control_plane().into());
        arguments.extend(self.values(charts)?);
        text += &helm.run(arguments)?;
        Ok(text)
    }

    /// Installs or upgrades the definitions' release, after existing definitions are made its own; does nothing with
    /// `--skip-crds`.
    async fn install_crds(&self, helm: &Helm, charts: &Charts) -> anyhow::Result<()> {
        if self.skip_crds {
            return Ok(());
        }
        for line in definitions::take_over(&self.cluster.connect().await?).await? {
            eprintln!("{line}");
        }
        let mut arguments = words(["upgrade", "--install", CRDS_RELEASE]);
        arguments.extend([charts.crds().into(), "--create-namespace".into()]);
        arguments.push("--reset-then-reuse-values".into());
        arguments.extend(self.crds_values());
        arguments.extend(helm.forcing().iter().map(OsString::from));
        helm.run(arguments).context("custom resource definitions")?;
        Ok(())
    }

    /// Helm's flags for values of the definitions' chart.
    fn crds_values(&self) -> Vec<OsString> {
        if self.gateway_api { words(["--set", "gatewayApi.enabled=true"]) } else { Vec::new() }
    }

    /// Helm's flags for values of the control plane's chart; later ones override earlier ones.
    fn values(&self, charts: &Charts) -> anyhow::Result<Vec<OsString>> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        if self.ha {
            add("--values", charts.high_availability().into());
        }
        if self.no_ha {
            add("--values", charts.without_high_availability()?.into());
        }
        for file in &self.values {
            add("--values", file.into());
        }
        if let Some(name) = &self.cluster.mesh_name {
            add("--set-string", format!("meshName={name}").into());
        }
        for set in &self.set {
            add("--set", set.into());
        }
        for set in &self.set_string {
            add("--set-string", set.into());
        }
        Ok(arguments)
    }

    /// Warns if there are fewer nodes than replicas. An error here is ignored: Helm will report problems with the
    /// cluster.
    async fn look_at_nodes(&self) {
        if !self.ha {
            return;
        }
        let Ok(cluster) = self.cluster.connect().await else { return };
        if let Ok(Some(warning)) = rollout::too_few_nodes(&cluster).await {
            eprintln!("warning: {warning}");
        }
    }

    /// Waits for the rollout, with `--wait`.
    async fn wait(&self) -> anyhow::Result<()> {
        if self.wait {
            rollout::wait(&self.cluster.connect().await?, self.timeout).await?;
        }
        Ok(())
    }
}

impl std::fmt::Display for ManifestObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.metadata.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{}", self.metadata.name)
    }
}

/// Helm's flags that select cluster and namespace.
fn helm_flags(cluster: &ClusterOptions) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec!["--namespace".into(), cluster.control_plane().into()];
    if let Some(file) = &cluster.kubeconfig {
        flags.extend(["--kubeconfig".into(), file.into()]);
    }
    if let Some(context) = &cluster.context {
        flags.extend(["--kube-context".into(), context.into()]);
    }
    flags
}

/// Every object of a rendering, except those that Helm keeps.
fn objects(manifests: &str) -> BTreeSet<ManifestObject> {
    let documents = format!("\n{manifests}");
    let documents = documents.split("\n---").filter(|text| !text.contains("helm.sh/resource-policy: keep"));
    let named =
        documents.filter_map(|text| serde_saphyr::from_str::<Option<ManifestObject>>(text).ok().flatten());
    named.filter(|named| !named.kind.is_empty()).collect()
}

/// Arguments of a command line.
fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_an_upgrade_deletes_are_found() {
        let before = "---\n# Source: a\nkind: Service\nmetadata:\n  name: a\n  namespace: n\n---\nkind: ClusterRole\nmetadata:\n  name: b\n---\nkind: MeshConfig\nmetadata:\n  name: c\n  annotations:\n    helm.sh/resource-policy: keep\n";
        let after = "---\nkind: ClusterRole\nmetadata:\n  name: b\n  labels: {x: y}\n\n---\n";
        let (before, after) = (objects(before), objects(after));
        let gone: Vec<String> = before.difference(&after).map(ToString::to_string).collect();
        assert_eq!(gone, ["Service n/a"]);
    }
}
