//! The user's Helm: it renders the charts and keeps account of what was installed.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;

use crate::cluster::client::ClusterOptions;

/// The first version that can upgrade with the values of the installation and the new chart's defaults.
const MINIMUM: (u32, u32) = (3, 14);

/// Which Helm.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options")]
pub(super) struct HelmOptions {
    /// The Helm to run, 3.14 or newer
    #[arg(
        long,
        env = "TIDEGATE_HELM",
        value_name = "PROGRAM",
        default_value = "helm",
        hide_env_values = true
    )]
    helm: PathBuf,
}

/// A Helm that is new enough, and the cluster it works on.
#[derive(Debug)]
pub(super) struct Helm {
    program: PathBuf,
    cluster: Vec<OsString>,
    version: (u32, u32),
}

impl HelmOptions {
    /// Looks whether Helm is there. Does not connect to the cluster.
    pub(super) fn find(&self, cluster: &ClusterOptions) -> anyhow::Result<Helm> {
        let mut arguments: Vec<OsString> = vec!["--namespace".into(), cluster.control_plane().into()];
        if let Some(file) = &cluster.kubeconfig {
            arguments.extend(["--kubeconfig".into(), file.into()]);
        }
        if let Some(context) = &cluster.context {
            arguments.extend(["--kube-context".into(), context.into()]);
        }
        let mut helm = Helm { program: self.helm.clone(), cluster: arguments, version: MINIMUM };
        let version = helm.run(["version", "--template", "{{.Version}}"])?;
        let number = parse_version(&version)
            .with_context(|| format!("{} is no Helm: its version is {version:?}", self.helm.display()))?;
        ensure!(
            number >= MINIMUM,
            "{} is Helm {}, and {}.{} or newer is needed: https://helm.sh/docs/intro/install/",
            self.helm.display(),
            version.trim(),
            MINIMUM.0,
            MINIMUM.1
        );
        helm.version = number;
        Ok(helm)
    }
}

impl Helm {
    /// Flags that let it write over what others have written into an object. Helm 3 always does; since 4 it leaves
    /// that to the API server, which refuses unless it is told.
    pub(super) fn forcing(&self) -> &'static [&'static str] {
        if self.version.0 < 4 { &[] } else { &["--server-side=true", "--force-conflicts"] }
    }

    /// Whether there is a release of this name, in whatever state.
    pub(super) fn has_release(&self, name: &str) -> anyhow::Result<bool> {
        let names = self.run(["list", "--all", "--short"])?;
        Ok(names.lines().any(|line| line.trim() == name))
    }

    /// Runs a command and returns what it printed. What it complains about goes to standard error as it comes.
    pub(super) fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(&self.cluster).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!(
                "Helm renders Tidegate's manifests, and there is no program {}; get it from \
                 https://helm.sh/docs/intro/install/, or say where it is with --helm FILE",
                self.program.display()
            ),
            _ => anyhow!("{}: {error}", self.program.display()),
        })?;
        if !output.status.success() {
            let verb = command.get_args().next().unwrap_or_default().to_string_lossy();
            bail!("helm {verb} failed ({})", output.status);
        }
        String::from_utf8(output.stdout).context("what Helm printed")
    }
}

#[cfg(test)]
impl Helm {
    /// One that prints `releases`, a line each, whatever it is asked.
    pub(super) fn stub(releases: &str) -> Self {
        Self { program: "echo".into(), cluster: vec![format!("\n{releases}").into()], version: MINIMUM }
    }
}

/// `v3.17.2+gcc0bbbd` → (3, 17).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix('v')?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(program: &str) -> String {
        let options = HelmOptions { helm: program.into() };
        format!("{:#}", options.find(&ClusterOptions::default()).unwrap_err())
    }

    #[test]
    fn versions_of_helm_are_read() {
        assert_eq!(parse_version("v3.17.2+gcc0bbbd\n"), Some((3, 17)));
        assert_eq!(parse_version("v4.2.3"), Some((4, 2)));
        assert_eq!(parse_version("SemVer: 2.1"), None);
    }

    #[test]
    fn without_helm_the_error_says_where_to_get_it() {
        let error = find("/nonexistent/helm");
        assert!(
            error.contains("/nonexistent/helm") && error.contains("helm.sh") && error.contains("--helm"),
            "{error}"
        );
    }

    #[test]
    fn another_program_is_no_helm() {
        let error = find("/bin/echo");
        assert!(error.contains("/bin/echo is no Helm"), "{error}");
    }
}
