//! `tidegate policy check-conflicts`: IngressBackends that open the same backend.
//!
//! Neither policy of a pair is wrong: what any of them grants is granted. But the reader of one of them does not see
//! the other, and OSM's webhook was meant to refuse the second, so pairs are worth a look. Objects are read as they
//! are stored: one that this version cannot parse is reported, because it may conflict, too.

use std::collections::BTreeSet;
use std::fmt;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ResourceExt};
use serde::Serialize;
use tidegate_crds::ingress_backend::IngressBackend;
use tidegate_crds::stored;

use super::client::{Cluster, ClusterOptions};
use crate::candidates;
use crate::output::{OutputFormat, print_as};

/// Flags of `tidegate policy check-conflicts`.
#[derive(Args, Debug)]
pub(crate) struct ConflictsOptions {
    /// Kind of the policies.
    #[arg(value_enum, value_name = "KIND")]
    kind: PolicyKind,
    /// Namespaces to look at, separated by commas [default: all]
    #[arg(short, long = "namespaces", visible_alias = "namespace", value_name = "NAMESPACE", value_delimiter = ',',
          add = ArgValueCandidates::new(candidates::namespaces))]
    namespaces: Vec<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Policy kinds that can conflict.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyKind {
    /// IngressBackends.
    #[value(name = "ingressbackend", aliases = ["ingressbackends", "IngressBackend", "IngressBackends"])]
    IngressBackend,
}

/// A backend that two IngressBackends open.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conflict {
    namespace: String,
    /// The Service, in the namespace above.
    backend: String,
    /// The Pod's port (`targetPort`), as IngressBackends name it.
    port: u16,
    /// The names of the two.
    ingress_backends: [String; 2],
}

/// Exits with 1 if there is a conflict.
pub(crate) async fn run(options: ConflictsOptions) -> anyhow::Result<ExitCode> {
    let PolicyKind::IngressBackend = options.kind;
    let cluster = options.cluster.connect().await?;
    let policies = ingress_backends(&cluster, &options.namespaces).await?;
    let conflicts = conflicts(&policies.readable);
    for problem in &policies.unreadable {
        eprintln!("IngressBackend {problem}; it grants nothing, and its conflicts are unknown");
    }
    print_as(options.output, &conflicts, |conflicts| text(conflicts, &options.namespaces))?;
    let is_clean = conflicts.is_empty() && policies.unreadable.is_empty();
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// IngressBackends as they are stored.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    pub(crate) readable: Vec<IngressBackend>,
    /// Policies that cannot be parsed, each as `<namespace>/<name>: <field>: <error>`.
    pub(crate) unreadable: Vec<String>,
}

/// The IngressBackends of these namespaces, or of all if none is named.
pub(crate) async fn ingress_backends(cluster: &Cluster, namespaces: &[String]) -> anyhow::Result<Policies> {
    let resource = ApiResource::erase::<IngressBackend>(&());
    let client = || cluster.client.clone();
    let mut apis: Vec<(Api<DynamicObject>, String)> = namespaces
        .iter()
        .map(|name| {
            let what = format!("IngressBackends of namespace {name}");
            (Api::namespaced_with(client(), name, &resource), what)
        })
        .collect();
    if apis.is_empty() {
        let what = "IngressBackends of all namespaces".to_owned();
        apis.push((Api::all_with(client(), &resource), what));
    }
    let mut policies = Policies::default();
    for (api, what) in apis {
        for object in cluster.list(&api, ListParams::default(), &what).await? {
            policies.add(&object)?;
        }
    }
    Ok(policies)
}

impl Policies {
    /// Removes the policies of these namespaces.
    pub(crate) fn leave_out(&mut self, namespaces: &BTreeSet<String>) {
        self.readable.retain(|policy| policy.namespace().is_none_or(|name| !namespaces.contains(&name)));
        let namespace = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
        self.unreadable.retain(|text| !namespaces.contains(&namespace(text)));
    }

    /// Sorts an object into those that can be read and those that cannot.
    fn add(&mut self, object: &DynamicObject) -> anyhow::Result<()> {
        match stored::read(&serde_json::to_value(object)?) {
            Ok(policy) => self.readable.push(policy),
            Err(finding) => self.unreadable.push(format!(
                "{}/{}: {finding}",
                object.namespace().unwrap_or_default(),
                object.name_any()
            )),
        }
        Ok(())
    }
}

/// Every pair that opens the same port of the same Service. Backends are in their IngressBackend's own namespace, so
/// policies of different namespaces never conflict.
pub(crate) fn conflicts(policies: &[IngressBackend]) -> Vec<Conflict> {
    let mut sorted: Vec<&IngressBackend> = policies.iter().collect();
    sorted.sort_by_key(|policy| (policy.namespace(), policy.name_any()));
    let mut found = Vec::new();
    for (i, a) in sorted.iter().enumerate() {
        for b in sorted.iter().skip(i + 1).filter(|b| b.namespace() == a.namespace()) {
            for backend in &a.spec.backends {
                let same = b
                    .spec
                    .backends
                    .iter()
                    .any(|other| other.name == backend.name && other.port.number == backend.port.number);
                let conflict = Conflict {
                    namespace: a.namespace().unwrap_or_default(),
                    backend: backend.name.clone(),
                    port: backend.port.number,
                    ingress_backends: [a.name_any(), b.name_any()],
                };
                if same && !found.contains(&conflict) {
                    found.push(conflict);
                }
            }
        }
    }
    found
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, backend, port, ingress_backends: [a, b] } = self;
        write!(f, "{namespace}/{a} and {namespace}/{b} both open {backend}:{port}")
    }
}

/// OSM's sentences. JSON and YAML have the pairs as data.
fn text(conflicts: &[Conflict], namespaces: &[String]) -> String {
    if conflicts.is_empty() {
        return match namespaces {
            [] => "No conflicts among IngressBackends of all namespaces\n".to_owned(),
            names => format!("No conflicts among IngressBackends of namespaces [{}]\n", names.join(", ")),
        };
    }
    let lines = conflicts.iter().map(|conflict| {
        let Conflict { namespace, backend, port, ingress_backends: [a, b] } = conflict;
        format!(
            "[+] IngressBackend {namespace}/{a} conflicts with {namespace}/{b}:\n\
             Backend {backend} (port {port}) specified in {a} and {b} conflicts\n"
        )
    });
    lines.collect()
}

#[cfg(test)]
mod tests;
