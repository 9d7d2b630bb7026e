//! Candidates of completion: names in the cluster and in the kubeconfig.
//!
//! Errors are silent: no candidates are offered.
//!
//! A shell runs the program on every press of the completion key, before the line is complete and with whatever is
//! typed so far. So flags are read leniently from the words themselves, and a cluster that does not answer costs two
//! seconds at most.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Client;
use kube::api::{Api, ListParams, ResourceExt};
use kube::config::Kubeconfig;
use tidegate_crds::injection::has_sidecar;
use tidegate_kubernetes::client::{ClientOptions, config};

/// Maximum time to collect candidates.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maximum number of candidates; more would not help.
const MOST: u32 = 500;

/// Namespaces of the cluster.
pub(crate) fn namespaces() -> Vec<CompletionCandidate> {
    ask(|client, _| async move {
        let api: Api<Namespace> = Api::all(client);
        let page = api.list(&ListParams::default().limit(MOST)).await.ok()?;
        Some(page.items.iter().map(ResourceExt::name_any).collect())
    })
}

/// Pods with a sidecar, in the namespace given on the command line.
pub(crate) fn pods() -> Vec<CompletionCandidate> {
    ask(|client, namespace| async move {
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let api: Api<Pod> = Api::namespaced(client, &namespace);
        let page = api.list(&ListParams::default().limit(MOST)).await.ok()?;
        let pods = page.items.iter().filter(|pod| has_sidecar(pod));
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
    /// The flags on this process's own command line, which the shell passes on.
    fn here() -> Self {
        Self::of(env::args().skip(1))
    }

    /// The last value of each flag, in the form `--flag value` or `--flag=value`.
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

/// Runs a query against the cluster that the typed flags select; no candidates if it fails or takes too long.
fn ask<F>(question: impl FnOnce(Client, Option<String>) -> F) -> Vec<CompletionCandidate>
where
    F: Future<Output = Option<Vec<String>>>,
{
    let typed = Typed::here();
    let options = ClientOptions { kubeconfig: typed.kubeconfig, context: typed.context };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    let names = runtime.block_on(async {
        let answer = async {
            let client = Client::try_from(config(&options).await.ok()?).ok()?;
            question(client, typed.namespace).await
        };
        tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
    });
    names.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
