//! Completion: scripts for shells, and candidates from the cluster and the kubeconfig.
//!
//! The scripts query the program on each completion, so that namespaces and Pods are current. Errors during completion
//! are silent: no candidates are offered.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Command, CommandFactory};
use clap_complete::env::Shells;
use clap_complete::{CompletionCandidate, Shell};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams, ResourceExt};
use kube::config::Kubeconfig;

use crate::cluster::client::ClusterOptions;
use crate::commands::Cli;

/// The variable by which a shell's script requests candidates.
pub(crate) const VARIABLE: &str = "COMPLETE";
/// The name under which `kubectl` looks for a plugin's completion.
pub(crate) const KUBECTL_COMPLETE: &str = "kubectl_complete-tidegate";
/// Maximum time to collect candidates.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maximum number of candidates; more would not help.
const MOST: u32 = 500;
/// `ShellCompDirectiveNoFileComp` of `kubectl`'s completion.
const NO_FILES: &str = ":4";

/// The script that makes `shell` complete this program.
pub(crate) fn script(shell: Shell) -> anyhow::Result<Vec<u8>> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let completer = shells.completer(&name);
    let completer = completer.ok_or_else(|| anyhow::anyhow!("completion for {name} is not supported"))?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "tidegate", "tidegate", "tidegate", &mut script)?;
    Ok(script)
}

/// The candidates in `kubectl`'s format for the words after `kubectl tidegate`, the last of which is being typed.
pub fn for_kubectl(words: impl Iterator<Item = OsString>) -> anyhow::Result<String> {
    let mut all = vec![OsString::from("kubectl-tidegate")];
    all.extend(words);
    let last = all.len() - 1;
    let typed = all.get(last).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let directory = env::current_dir().ok();
    let candidates = clap_complete::engine::complete(&mut Cli::command(), all, last, directory.as_deref())?;
    let mut text = String::new();
    for candidate in candidates {
        let value = candidate.get_value().to_string_lossy();
        if value.starts_with(&typed) {
            text += &value;
            if let Some(help) = candidate.get_help() {
                text += &format!("\t{}", help.to_string().lines().next().unwrap_or_default());
            }
            text.push('\n');
        }
    }
    Ok(text + NO_FILES + "\n")
}

/// The command line, named as it was called: `kubectl tidegate` as a plugin of `kubectl`.
pub fn command_for(program: &str) -> Command {
    let command = Cli::command();
    match program.trim_end_matches(".exe") {
        "kubectl-tidegate" => command.bin_name("kubectl tidegate").display_name("kubectl tidegate"),
        _ => command,
    }
}

/// Namespaces of the cluster.
pub(crate) fn namespaces() -> Vec<CompletionCandidate> {
    ask(|cluster, _| async move {
        let api: Api<Namespace> = Api::all(cluster.client);
        let page = api.list(&ListParams::default().limit(MOST)).await.ok()?;
        Some(page.items.iter().map(ResourceExt::name_any).collect())
    })
}

/// Pods with a sidecar, in the namespace given on the command line.
pub(crate) fn pods() -> Vec<CompletionCandidate> {
    ask(|cluster, namespace| async move {
        let namespace = namespace.unwrap_or_else(|| cluster.client.default_namespace().to_owned());
        let api: Api<Pod> = Api::namespaced(cluster.client, &namespace);
        let page = api.list(&ListParams::default().limit(MOST)).await.ok()?;
        let pods = page.items.iter().filter(|pod| tidegate_crds::injection::has_sidecar(pod));
        Some(pods.map(ResourceExt::name_any).collect())
    })
}

/// Contexts of the kubeconfig.
pub(crate) fn contexts() -> Vec<CompletionCandidate> {
    let kubeconfig = match Typed::here().kubeconfig {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    let contexts = kubeconfig.map(|kubeconfig| kubeconfig.contexts).unwrap_or_default();
    contexts.into_iter().map(|context| CompletionCandidate::new(context.name)).collect()
}

/// Flags of the line being typed that select cluster and namespace.
#[derive(Debug, Default, PartialEq)]
struct Typed {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: Option<String>,
}

impl Typed {
    fn here() -> Self {
        Self::of(env::args().skip(1))
    }

    fn of(words: impl Iterator<Item = String>) -> Self {
        let mut typed = Self::default();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (word, words.peek().cloned()),
            };
            match flag.as_str() {
                "--kubeconfig" => typed.kubeconfig = value.map(PathBuf::from),
                "--context" => typed.context = value,
                "-n" | "--namespace" => typed.namespace = value,
                _ => {}
            }
        }
        typed
    }
}

fn ask<F>(
    question: impl FnOnce(crate::cluster::client::Cluster, Option<String>) -> F,
) -> Vec<CompletionCandidate>
where
    F: Future<Output = Option<Vec<String>>>,
{
    let typed = Typed::here();
    let options =
        ClusterOptions { kubeconfig: typed.kubeconfig, context: typed.context, ..ClusterOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    let names = runtime.block_on(async {
        let answer = async { question(options.connect().await.ok()?, typed.namespace).await };
        tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
    });
    names.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(words: &[&str]) -> String {
        for_kubectl(words.iter().map(OsString::from)).unwrap()
    }

    #[test]
    fn kubectl_gets_candidates_with_help_and_a_directive() {
        let text = completed(&["namespace", "a"]);
        assert!(text.starts_with("add\t"), "{text}");
        assert!(text.ends_with("\n:4\n"), "{text}");
        assert!(!text.contains("remove"), "{text}");
        assert!(completed(&["proxy", "st"]).starts_with("status\t"));
    }

    #[test]
    fn flags_of_the_line_being_typed_say_where_to_look() {
        let words =
            ["--", "tidegate", "proxy", "get", "--context=kind", "config", "-n", "httpbin", "--kubeconfig"];
        let typed = Typed::of(words.iter().map(ToString::to_string));
        let expected = Typed {
            kubeconfig: None,
            context: Some("kind".to_owned()),
            namespace: Some("httpbin".to_owned()),
        };
        assert_eq!(typed, expected);
    }

    #[test]
    fn a_plugin_of_kubectl_is_called_so_in_its_usage() {
        let usage = |program: &str| command_for(program).render_help().to_string();
        assert!(
            usage("kubectl-tidegate").contains("Usage: kubectl tidegate <COMMAND>"),
            "{}",
            usage("kubectl-tidegate")
        );
        assert!(usage("tidegate").contains("Usage: tidegate <COMMAND>"));
        let mut command = command_for("kubectl-tidegate");
        command.build();
        let sub = command.find_subcommand_mut("namespace").unwrap().render_help().to_string();
        assert!(sub.contains("Usage: kubectl tidegate namespace <COMMAND>"), "{sub}");
    }
}
