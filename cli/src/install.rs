//! `tidegate install`, `upgrade`, `uninstall`.
//!
//! The charts are the one source of what is installed, and Helm is the one program that understands them: these
//! commands carry the [`charts`] and run the user's [`helm`]. An installation is two Helm releases, as if the user had
//! made them.

mod charts;
mod definitions;
mod helm;
mod installed;
mod leftovers;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use self::charts::Charts;
use self::helm::{Helm, HelmOptions};
use self::leftovers::Deletions;
use crate::cluster::client::ClusterOptions;
use crate::output::print;

/// The Helm release of the control plane, in its namespace.
const RELEASE: &str = "tidegate";
/// The Helm release of the custom resource definitions, there too.
const CRDS_RELEASE: &str = "tidegate-crds";

/// Flags of `tidegate install`.
#[derive(Args, Debug)]
pub(crate) struct InstallOptions {
    /// Install it. Without this the manifests are printed
    #[arg(long)]
    apply: bool,
    /// Print the custom resource definitions only
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
    #[command(flatten)]
    helm: HelmOptions,
    #[command(flatten)]
    cluster: ClusterOptions,
}

#[derive(Args, Debug)]
struct ChangeOptions {
    /// Set a value of the chart; repeat for more
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// File with values of the chart; repeat for more
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// Three replicas of each daemon, on nodes of their own
    #[arg(long)]
    ha: bool,
    /// Leave the custom resource definitions alone: another mesh of the cluster has installed them
    #[arg(long)]
    skip_crds: bool,
    /// Wait until all is ready
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: String,
    #[command(flatten)]
    helm: HelmOptions,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// What a manifest is about.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default)]
struct Named {
    kind: String,
    metadata: NamedMetadata,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default)]
struct NamedMetadata {
    namespace: Option<String>,
    name: String,
}

/// Prints or installs.
pub(crate) async fn install(options: &InstallOptions) -> anyhow::Result<ExitCode> {
    let change = &options.change;
    let (helm, charts) = (change.helm.find(&change.cluster)?, Charts::unpack()?);
    if !options.apply {
        return print(change.manifests(&helm, &charts, options.crds_only)?.as_bytes());
    }
    change.install_crds(&helm, &charts).await?;
    let mut arguments = words(["install", RELEASE]);
    arguments.extend([charts.control_plane().into(), "--create-namespace".into()]);
    arguments.extend(change.values(&charts));
    arguments.extend(change.waiting());
    let notes = helm.run(arguments).context(
        "if there is a control plane already: `tidegate upgrade`; another mesh beside it needs another --mesh-name and \
         --tidegate-namespace",
    )?;
    print(notes.as_bytes())
}

/// Upgrades, and says what is no more.
pub(crate) async fn upgrade(options: &UpgradeOptions) -> anyhow::Result<ExitCode> {
    let change = &options.change;
    let (helm, charts) = (change.helm.find(&change.cluster)?, Charts::unpack()?);
    installed::is_named(&change.cluster.connect().await?).await?;
    let before = helm.run(["get", "manifest", RELEASE]).with_context(|| {
        format!("there is no Helm release {RELEASE} in namespace {}", change.cluster.control_plane())
    })?;
    change.install_crds(&helm, &charts).await?;
    let mut arguments = words(["upgrade", RELEASE]);
    arguments.extend([charts.control_plane().into(), "--reset-then-reuse-values".into()]);
    arguments.extend(change.values(&charts));
    arguments.extend(change.waiting());
    let notes = helm.run(arguments)?;
    let after = objects(&helm.run(["get", "manifest", RELEASE])?);
    for gone in objects(&before).difference(&after) {
        eprintln!("Deleted, because the chart has it no more: {gone}");
    }
    print(notes.as_bytes())
}

/// Uninstalls, and says what is left.
pub(crate) async fn uninstall(options: UninstallOptions) -> anyhow::Result<ExitCode> {
    let deletions = options.deletions.resolved();
    let helm = options.helm.find(&options.cluster)?;
    let cluster = options.cluster.connect().await?;
    installed::may_be_removed(&cluster, &helm, deletions).await?;
    deletions.check(&cluster).await?;
    helm.run(["uninstall", RELEASE, "--wait", "--ignore-not-found"])?;
    if deletions.delete_crds {
        helm.run(["uninstall", CRDS_RELEASE, "--wait", "--ignore-not-found"])?;
    }
    for gone in deletions.run(&cluster).await? {
        eprintln!("Deleted: {gone}");
    }
    let left = leftovers::injected_pods(&cluster).await?;
    if left > 0 {
        eprintln!(
            "{left} Pods still have a sidecar, which serves on until its certificate ends; restart them to be rid of it"
        );
    }
    Ok(ExitCode::SUCCESS)
}

impl ChangeOptions {
    /// Every manifest, the namespace first.
    fn manifests(&self, helm: &Helm, charts: &Charts, crds_only: bool) -> anyhow::Result<String> {
        let namespace = self.cluster.control_plane();
        let crds = || {
            let mut arguments = words(["template", CRDS_RELEASE]);
            arguments.push(charts.crds().into());
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
        arguments.extend(self.values(charts));
        text += &helm.run(arguments)?;
        Ok(text)
    }

    async fn install_crds(&self, helm: &Helm, charts: &Charts) -> anyhow::Result<()> {
        if self.skip_crds {
            return Ok(());
        }
        for line in definitions::take_over(&self.cluster.connect().await?).await? {
            eprintln!("{line}");
        }
        let mut arguments = words(["upgrade", "--install", CRDS_RELEASE]);
        arguments.extend([charts.crds().into(), "--create-namespace".into()]);
        arguments.extend(helm.forcing().iter().map(OsString::from));
        helm.run(arguments)
            .context("custom resource definitions; if another mesh has installed them: --skip-crds")?;
        Ok(())
    }

    /// Helm's flags for values; what comes later goes before what came earlier.
    fn values(&self, charts: &Charts) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        if self.ha {
            add("--values", charts.high_availability().into());
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
        arguments
    }

    fn waiting(&self) -> Vec<OsString> {
        if self.wait { vec!["--wait".into(), "--timeout".into(), (&self.timeout).into()] } else { Vec::new() }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.metadata.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{}", self.metadata.name)
    }
}

/// Every object of a rendering, but what Helm is told to keep.
fn objects(manifests: &str) -> BTreeSet<Named> {
    let documents = format!("\n{manifests}");
    let documents = documents.split("\n---").filter(|text| !text.contains("helm.sh/resource-policy: keep"));
    let named = documents.filter_map(|text| serde_saphyr::from_str::<Option<Named>>(text).ok().flatten());
    named.filter(|named| !named.kind.is_empty()).collect()
}

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
