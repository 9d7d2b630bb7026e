//! The user's Helm, which renders the charts and tracks what is installed.
//!
//! Helm is run as a program, not linked: the user's version, plugins and credentials apply, and what is installed is
//! an ordinary release that `helm` can list, roll back and uninstall without this command. Versions 3.14 and later
//! and 4 are supported.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;

/// The first version that can upgrade with the installation's values and the new chart's defaults.
const MINIMUM: (u32, u32) = (3, 14);

/// Phrases in Helm's errors, and what to do about them.
const HINTS: [(&str, &str); 4] = [
    (
        "a name that is still in use",
        "a control plane already exists: use `tidegate upgrade`; another mesh needs its own --mesh-name and \
         --tidegate-namespace",
    ),
    ("Expected: string, given:", STRING),
    ("want string", STRING),
    ("invalid ownership metadata", "if another mesh of this cluster has installed them, use --skip-crds"),
];
const STRING: &str = "--set parses numbers, true and false as such; use --set-string NAME=VALUE for text";
/// How much of Helm's output becomes part of an error, bytes.
const LONGEST_ERROR: usize = 4096;

/// Which Helm to run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options")]
pub(crate) struct HelmOptions {
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

/// A sufficiently new Helm, and the cluster it works on.
#[derive(Debug)]
pub(crate) struct Helm {
    program: PathBuf,
    cluster: Vec<OsString>,
    version: (u32, u32),
}

impl HelmOptions {
    /// The version of the installed Helm, if it is new enough.
    pub(crate) fn version(&self) -> anyhow::Result<String> {
        let (major, minor) = self.find(Vec::new())?.version;
        Ok(format!("{major}.{minor}"))
    }

    /// Finds Helm. `cluster` are its flags that select cluster and namespace. Does not connect to the cluster.
    pub(crate) fn find(&self, cluster: Vec<OsString>) -> anyhow::Result<Helm> {
        let mut helm = Helm { program: self.helm.clone(), cluster, version: MINIMUM };
        let version = helm.run(["version", "--template", "{{.Version}}"])?;
        let number = parse_version(&version)
            .with_context(|| format!("{} is not Helm: its version is {version:?}", self.helm.display()))?;
        ensure!(
            number >= MINIMUM,
            "{} is Helm {}, but {}.{} or newer is required: https://helm.sh/docs/intro/install/",
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
    /// Flags that let it overwrite fields that others have set. Helm 3 always does; Helm 4 uses server-side apply,
    /// which refuses conflicts without the flag.
    pub(crate) fn forcing(&self) -> &'static [&'static str] {
        if self.version.0 < 4 { &[] } else { &["--server-side=true", "--force-conflicts"] }
    }

    /// Whether a release of this name exists, in any state.
    pub(crate) fn has_release(&self, name: &str) -> anyhow::Result<bool> {
        let names = self.run(["list", "--all", "--short"])?;
        Ok(names.lines().any(|line| line.trim() == name))
    }

    /// Runs a command and returns its output. Its warnings go to standard error as they come; its error becomes ours,
    /// with a matching hint if there is one.
    pub(crate) fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(&self.cluster).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!(
                "cannot run {}: Helm, which renders Tidegate's manifests, is not installed; get it from \
                 https://helm.sh/docs/intro/install/, or give its path with --helm FILE",
                self.program.display()
            ),
            _ => anyhow!("{}: {error}", self.program.display()),
        })?;
        let complaints = child.stderr.take().map(|stderr| thread::spawn(|| error_of(stderr)));
        let output = child.wait_with_output().with_context(|| self.program.display().to_string())?;
        let complaint = complaints.and_then(|reader| reader.join().ok()).unwrap_or_default();
        if !output.status.success() {
            let verb = command.get_args().next().unwrap_or_default().to_string_lossy();
            let cause = if complaint.is_empty() { output.status.to_string() } else { complaint };
            let hint = HINTS.iter().find(|(said, _)| cause.contains(said)).map(|(_, hint)| hint);
            match hint {
                Some(hint) => bail!("helm {verb} failed: {cause}\nhint: {hint}"),
                None => bail!("helm {verb} failed: {cause}"),
            }
        }
        String::from_utf8(output.stdout).context("Helm's output")
    }
}

/// Passes on Helm's standard error, up to its error message, which is returned without the prefix.
fn error_of(stderr: impl Read) -> String {
    let mut error = String::new();
    for line in BufReader::new(stderr).lines() {
        let Ok(line) = line else { break };
        match line.strip_prefix("Error: ") {
            Some(first) => error = first.to_owned(),
            None if error.is_empty() => eprintln!("{line}"),
            None if error.len() + line.len() < LONGEST_ERROR => error += &format!("\n{line}"),
            None => {}
        }
    }
    error.trim_end().to_owned()
}

#[cfg(test)]
impl Helm {
    /// A stub that prints `releases`, one per line, for every command.
    pub(crate) fn stub(releases: &str) -> Self {
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
        format!("{:#}", options.find(Vec::new()).unwrap_err())
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

    fn failing(stderr: &str) -> String {
        let script = format!("printf '%s' '{stderr}' >&2; exit 1");
        let helm = Helm { program: "sh".into(), cluster: Vec::new(), version: MINIMUM };
        helm.run(["-c", &script]).unwrap_err().to_string()
    }

    #[test]
    fn what_helm_gives_up_for_is_said_with_a_hint_only_where_one_fits() {
        let schema = "WARNING: old\nError: values do not meet the schema:\ntidegate:\n- image.tag: Invalid type. \
                      Expected: string, given: integer\n";
        let error = failing(schema);
        assert!(
            error.starts_with("helm -c failed: values do not meet the schema:\ntidegate:\n- image.tag"),
            "{error}"
        );
        assert!(
            error.ends_with(
                "hint: --set parses numbers, true and false as such; use --set-string NAME=VALUE for text"
            ),
            "{error}"
        );
        let error = failing("Error: INSTALLATION FAILED: cannot re-use a name that is still in use\n");
        assert!(error.contains("hint: a control plane already exists: use `tidegate upgrade`"), "{error}");
        assert_eq!(
            failing("Error: context deadline exceeded\n"),
            "helm -c failed: context deadline exceeded"
        );
        assert_eq!(failing(""), "helm -c failed: exit status: 1");
    }

    #[test]
    fn another_program_is_not_helm() {
        let error = find("/bin/echo");
        assert!(error.contains("/bin/echo is not Helm"), "{error}");
    }
}
