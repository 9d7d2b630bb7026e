//! Injection into manifests in files, without a cluster: `tidegate inject -f`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::decision::{NamespaceView, NoSidecarReason};
use crate::inject::{Injection, inject, inject_alone};
use crate::pod::PodView;
use crate::refusal::PodRefusal;
use crate::settings::{MeshSettings, Settings};

/// Why manifests cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A document is not YAML, or does not match its kind.
    #[error("document {document}: {problem}")]
    Document {
        /// The document's number, starting at 1.
        document: usize,
        /// The error.
        problem: String,
    },
    /// The webhook would refuse a Pod as well.
    #[error("document {document}: {kind} {name}: {refusal}")]
    Refused {
        /// The document's number, starting at 1.
        document: usize,
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// The reason.
        refusal: Box<PodRefusal>,
    },
}

/// The known namespaces of manifests.
///
/// In an unknown namespace, every Pod that can have a sidecar and does not opt out gets one, unless the namespace is
/// Kubernetes' own or the control plane's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestNamespaces {
    known: BTreeMap<String, NamespaceView>,
    /// The namespace of objects that name none.
    default: Option<String>,
    /// Whether it includes all namespaces of the cluster.
    is_all: bool,
}

impl ManifestNamespaces {
    /// No namespace is known yet. `default` is the namespace of objects that name none, if known.
    pub fn unknown(default: Option<String>) -> Self {
        Self { default, ..Self::default() }
    }

    /// All namespaces of a cluster.
    pub fn of_cluster(namespaces: impl IntoIterator<Item = NamespaceView>, default: String) -> Self {
        let known = namespaces.into_iter().map(|namespace| (namespace.name.clone(), namespace)).collect();
        Self { known, default: Some(default), is_all: true }
    }

    /// Reads the Namespaces in manifests, which override what is known, as if they were applied.
    pub fn read(&mut self, yaml: &str) -> Result<(), ManifestError> {
        for (index, (_, text)) in split(yaml).into_iter().enumerate() {
            if let Some(value) = parse(text, index + 1)? {
                self.add(&value, ("", ""));
            }
        }
        Ok(())
    }

    /// Adds the Namespaces in an object, which may be one, or a list. Labels and annotations are added to those that
    /// are known.
    fn add(&mut self, object: &Value, of_list: (&str, &str)) {
        let text = |field: &str, default: &str| object[field].as_str().unwrap_or(default).to_owned();
        let (version, kind) = (text("apiVersion", of_list.0), text("kind", of_list.1));
        match (version.as_str(), kind.as_str()) {
            ("v1", "List" | "NamespaceList") => {
                let of_item = if kind == "List" { ("", "") } else { ("v1", "Namespace") };
                for item in object["items"].as_array().into_iter().flatten() {
                    self.add(item, of_item);
                }
            }
            ("v1", "Namespace") => {
                let metadata = &object["metadata"];
                let name = metadata["name"].as_str().unwrap_or_default().to_owned();
                let known = self.known.entry(name.clone()).or_default();
                known.name = name;
                for (field, entries) in
                    [("labels", &mut known.labels), ("annotations", &mut known.annotations)]
                {
                    let said = metadata[field].as_object().into_iter().flatten();
                    let said =
                        said.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
                    entries.extend(said);
                }
            }
            _ => {}
        }
    }
}

/// Manifests with sidecars.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InjectedManifests {
    /// The stream of documents.
    pub yaml: String,
    /// Notes for the author, each with its document.
    pub notes: Vec<String>,
}

/// Adds the sidecar to every Pod, and to the Pod template of every Deployment, ReplicaSet, ReplicationController,
/// StatefulSet, DaemonSet, Job and CronJob, alone or in a list, for which the webhook would do so in its namespace.
/// Everything else is unchanged to the byte; a note explains where that may be a surprise.
pub fn inject_manifests(
    yaml: &str,
    settings: &Settings,
    mesh: &MeshSettings,
    namespaces: &ManifestNamespaces,
) -> Result<InjectedManifests, ManifestError> {
    let mut output = InjectedManifests::default();
    for (index, (separator, text)) in split(yaml).into_iter().enumerate() {
        let mut injector =
            DocumentInjector { document: index + 1, settings, mesh, namespaces, notes: Vec::new() };
        output.yaml.push_str(separator);
        output.yaml.push_str(injector.inject(text)?.as_deref().unwrap_or(text));
        output.notes.append(&mut injector.notes);
    }
    Ok(output)
}

/// Injects into the objects of one document.
struct DocumentInjector<'a> {
    /// The document's number, starting at 1.
    document: usize,
    settings: &'a Settings,
    mesh: &'a MeshSettings,
    namespaces: &'a ManifestNamespaces,
    notes: Vec<String>,
}

impl DocumentInjector<'_> {
    /// The document with sidecars; `None` if nothing changes.
    fn inject(&mut self, text: &str) -> Result<Option<String>, ManifestError> {
        let Some(mut value) = parse(text, self.document)? else { return Ok(None) };
        if !self.inject_object(&mut value, ("", ""))? {
            return Ok(None);
        }
        serde_saphyr::to_string(&value).map(Some).map_err(|error| self.wrong(error.to_string()))
    }

    /// Adds sidecars to an object and returns whether it has changed. `of_list` are the API version and kind that an
    /// item of a list inherits from it.
    fn inject_object(&mut self, object: &mut Value, of_list: (&str, &str)) -> Result<bool, ManifestError> {
        let text = |field: &str, default: &str| object[field].as_str().unwrap_or(default).to_owned();
        let (version, kind) = (text("apiVersion", of_list.0), text("kind", of_list.1));
        let of_item = match (version.as_str(), kind.as_str()) {
            ("v1", "List") => Some(("", "")),
            (version, list) => list
                .strip_suffix("List")
                .filter(|kind| template_path(version, kind).is_some())
                .map(|kind| (version, kind)),
        };
        if let Some(of_item) = of_item {
            let mut changed = false;
            for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
                changed |= self.inject_object(item, of_item)?;
            }
            return Ok(changed);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let Some(path) = template_path(&version, &kind) else {
            if object.pointer("/spec/template/spec/containers").is_some_and(Value::is_array) {
                let document = self.document;
                self.notes.push(format!(
                    "document {document}: {kind} {name}: has a pod template, but {version} {kind} is not a workload of \
                     Kubernetes' own, so it is left as it is; its Pods get their sidecar when they are created in a \
                     namespace of the mesh"
                ));
            }
            return Ok(false);
        };
        self.inject_template(object, path, &kind, &name)
    }

    /// Injects into the Pod template at `path`, a JSON pointer, of the object `kind` `name`. Returns whether it has
    /// changed.
    fn inject_template(
        &mut self,
        object: &mut Value,
        path: &str,
        kind: &str,
        name: &str,
    ) -> Result<bool, ManifestError> {
        let document = self.document;
        let wrong = |problem: String| ManifestError::Document {
            document,
            problem: format!("{kind} {name}: {problem}"),
        };
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let namespace = namespace.or_else(|| self.namespaces.default.clone()).unwrap_or_default();
        let Some(template) = object.pointer_mut(path).filter(|template| template.is_object()) else {
            return Err(wrong(format!("{path} is missing")));
        };
        let json = template.to_string();
        let pod = PodView::parse(&json).map_err(|error| wrong(error.to_string()))?;
        let known = self.namespaces.known.get(&namespace);
        let injection = match known {
            Some(known) => inject(&pod, known, self.settings, self.mesh),
            None => inject_alone(&pod, &namespace, self.settings, self.mesh),
        };
        let injection = injection.map_err(|refusal| ManifestError::Refused {
            document,
            kind: kind.to_owned(),
            name: name.to_owned(),
            refusal: Box::new(refusal),
        })?;
        let patch = match injection {
            Injection::Meshed(patch) if !patch.is_empty() => patch,
            // It has its sidecar, or opts out.
            Injection::Meshed(_) | Injection::Left(NoSidecarReason::OptedOut) => return Ok(false),
            Injection::Left(reason) => {
                let why = reason.because(&namespace, &self.settings.mesh_name);
                self.notes.push(format!("document {document}: {kind} {name}: left without a sidecar: {why}"));
                return Ok(false);
            }
        };
        if known.is_none() && self.namespaces.is_all {
            self.notes.push(format!(
                "document {document}: {kind} {name}: the cluster has no namespace {namespace}; taken for one of mesh {}",
                self.settings.mesh_name
            ));
        }
        if template["metadata"].is_null() {
            template["metadata"] = Value::Object(Map::new());
        }
        json_patch::patch(template, &patch).map_err(|error| wrong(error.to_string()))?;
        Ok(true)
    }

    /// An error about this document.
    fn wrong(&self, problem: String) -> ManifestError {
        ManifestError::Document { document: self.document, problem }
    }
}

/// A document's object; `None` if it holds only comments.
fn parse(text: &str, document: usize) -> Result<Option<Value>, ManifestError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(None);
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map(Some)
        .map_err(|error| ManifestError::Document { document, problem: error.to_string() })
}

/// The path of the Pod in an object of this kind; `None` for unknown kinds.
fn template_path(version: &str, kind: &str) -> Option<&'static str> {
    match (version, kind) {
        ("v1", "Pod") => Some(""),
        ("v1", "ReplicationController")
        | ("apps/v1", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("batch/v1", "Job") => Some("/spec/template"),
        ("batch/v1", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// The documents of a stream, each with the separator line before it, so that their concatenation is the stream.
fn split(yaml: &str) -> Vec<(&str, &str)> {
    let mut parts = Vec::new();
    let (mut separator, mut start, mut position) = ("", 0, 0);
    for line in yaml.split_inclusive('\n') {
        let end = position + line.len();
        let is_separator = line.strip_prefix("---").is_some_and(|rest| {
            let rest = rest.trim();
            rest.is_empty() || rest.starts_with('#')
        });
        if is_separator {
            parts.push((separator, &yaml[start..position]));
            (separator, start) = (line, end);
        }
        position = end;
    }
    parts.push((separator, &yaml[start..]));
    // An empty text before the first separator is not a document.
    if parts.len() > 1 && parts.first().is_some_and(|(_, text)| text.trim().is_empty()) {
        let (_, blank) = parts.remove(0);
        if !blank.is_empty() {
            parts.insert(0, ("", blank));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(yaml: &str) -> Result<String, String> {
        let settings = Settings::of_mesh("tidegate-system", "cluster.local", "tidegate/sidecar:1.0.0");
        let namespaces = ManifestNamespaces::default();
        let injected = inject_manifests(yaml, &settings, &MeshSettings::default(), &namespaces);
        let injected = injected.map_err(|error| error.to_string())?;
        assert_eq!(injected.notes, Vec::<String>::new());
        Ok(injected.yaml)
    }

    /// The result for a Pod in `namespace`: whether it gets a sidecar, and the notes.
    fn run_in(namespaces: &ManifestNamespaces, namespace: &str, spec: &str) -> (bool, Vec<String>) {
        let settings = Settings::of_mesh("tidegate-system", "cluster.local", "tidegate/sidecar:1.0.0");
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a{namespace}}}, spec: {{containers: [{{name: a}}]{spec}}}}}"
        );
        let injected = inject_manifests(&pod, &settings, &MeshSettings::default(), namespaces).unwrap();
        (injected.yaml.contains("tidegate-sidecar"), injected.notes)
    }

    #[test]
    fn a_pod_gets_its_sidecar_where_the_webhook_would_give_it_one_and_else_a_note() {
        let view = |name: &str, label: (&str, &str)| NamespaceView {
            name: name.to_owned(),
            labels: [(label.0.to_owned(), label.1.to_owned())].into(),
            ..NamespaceView::default()
        };
        let mesh = ("openservicemesh.io/monitored-by", "osm");
        let mut namespaces = ManifestNamespaces::of_cluster(
            [
                view("shop", ("tidegate.io/injection", "enabled")),
                view("quiet", mesh),
                view("kube-system", mesh),
                view("other", ("a", "b")),
            ],
            "shop".to_owned(),
        );
        let file = "{apiVersion: v1, kind: Namespace, metadata: {name: fresh, labels: {tidegate.io/injection: enabled}}}\n\
                    ---\n{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: other, \
                    labels: {openservicemesh.io/monitored-by: osm}, \
                    annotations: {openservicemesh.io/sidecar-injection: enabled}}}]}\n";
        let left = |why: &str| (false, vec![format!("document 1: Pod a: left without a sidecar: {why}")]);
        let before = "namespace other is not in mesh osm; `tidegate namespace add other` puts it there";
        assert_eq!(run_in(&namespaces, ", namespace: other", ""), left(before));
        namespaces.read(file).unwrap();
        for name in ["", ", namespace: shop", ", namespace: fresh", ", namespace: other"] {
            assert_eq!(run_in(&namespaces, name, ""), (true, Vec::new()), "{name}");
        }
        let quiet = "namespace quiet asks for none, and neither does the pod";
        assert_eq!(run_in(&namespaces, ", namespace: quiet", ""), left(quiet));
        let system = "namespace kube-system is Kubernetes' own or the control plane's";
        assert_eq!(run_in(&namespaces, ", namespace: kube-system", ""), left(system));
        let host = "it uses its node's network (hostNetwork)";
        assert_eq!(run_in(&namespaces, "", ", hostNetwork: true"), left(host));
        assert_eq!(run_in(&namespaces, "", ", os: {name: windows}"), left("it runs on Windows"));
        let note =
            "document 1: Pod a: the cluster has no namespace new; taken for one of mesh osm".to_owned();
        assert_eq!(run_in(&namespaces, ", namespace: new", ""), (true, vec![note]));
        // Without a cluster.
        let unknown = ManifestNamespaces::unknown(None);
        assert_eq!(run_in(&unknown, "", ""), (true, Vec::new()));
        assert_eq!(run_in(&unknown, ", namespace: kube-system", ""), left(system));
        assert_eq!(run_in(&unknown, "", ", hostNetwork: true"), left(host));
    }

    fn documents(yaml: &str) -> Vec<Value> {
        split(yaml)
            .into_iter()
            .filter(|(_, text)| !text.trim().is_empty())
            .map(|(_, text)| serde_saphyr::from_str(text).unwrap())
            .collect()
    }

    const SERVICE: &str = "# The shop.\napiVersion: v1\nkind: Service\nmetadata: {name: shop}   # as is\nspec: {ports: [{port: 80}]}\n";

    fn workload(api_version: &str, kind: &str, before: &str, after: &str) -> String {
        format!(
            "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: shop}}\nspec: {before}{{template: {{spec: \
             {{containers: [{{name: app, image: app, livenessProbe: {{tcpSocket: {{port: 80}}}}}}]}}}}}}{after}\n"
        )
    }

    #[test]
    fn every_workload_gets_a_sidecar_and_the_rest_stays_byte_for_byte() {
        let yaml = format!(
            "{SERVICE}---\n{}--- # next\n{}---\n{}",
            workload("apps/v1", "Deployment", "", ""),
            workload("batch/v1", "CronJob", "{jobTemplate: {spec: ", "}}"),
            SERVICE
        );
        let output = run(&yaml).unwrap();
        assert!(
            output.starts_with(&format!("{SERVICE}---\n")) && output.ends_with(&format!("---\n{SERVICE}")),
            "{output}"
        );
        let documents = documents(&output);
        assert_eq!(documents.len(), 4);
        for template in
            [&documents[1]["spec"]["template"], &documents[2]["spec"]["jobTemplate"]["spec"]["template"]]
        {
            assert_eq!(template["metadata"]["labels"]["tidegate.io/sidecar"], "injected");
            assert_eq!(template["spec"]["initContainers"][0]["name"], "tidegate-sidecar");
            assert_eq!(template["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 15901);
        }
        assert_eq!(run(&output).unwrap(), output, "a second pass changes nothing");
    }

    #[test]
    fn a_list_and_every_kind_of_workload_count() {
        for (api_version, kind) in [
            ("v1", "ReplicationController"),
            ("apps/v1", "ReplicaSet"),
            ("apps/v1", "StatefulSet"),
            ("apps/v1", "DaemonSet"),
            ("batch/v1", "Job"),
        ] {
            let output = run(&workload(api_version, kind, "", "")).unwrap();
            assert!(output.contains("tidegate-intercept"), "{kind}");
        }
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n\
                    - {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {containers: [{name: b, image: b}]}}\n";
        let output: Value = serde_saphyr::from_str(&run(list).unwrap()).unwrap();
        assert_eq!(output["items"][0]["metadata"]["name"], "a");
        assert_eq!(output["items"][1]["spec"]["initContainers"][1]["name"], "tidegate-intercept");
    }

    #[test]
    fn a_list_of_workloads_needs_not_say_their_kind_again() {
        for (api_version, kind) in [
            ("v1", "ReplicationControllerList"),
            ("apps/v1", "DeploymentList"),
            ("apps/v1", "ReplicaSetList"),
            ("apps/v1", "StatefulSetList"),
            ("apps/v1", "DaemonSetList"),
            ("batch/v1", "JobList"),
        ] {
            let list = format!(
                "apiVersion: {api_version}\nkind: {kind}\nitems:\n- {{metadata: {{name: a}}, spec: {{template: {{spec: \
                 {{containers: [{{name: a}}]}}}}}}}}\n"
            );
            let output: Value = serde_saphyr::from_str(&run(&list).unwrap()).unwrap();
            let template = &output["items"][0]["spec"]["template"];
            assert_eq!(template["spec"]["initContainers"][0]["name"], "tidegate-sidecar", "{kind}");
        }
        let cron = "apiVersion: batch/v1\nkind: CronJobList\nitems:\n- {spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: a}]}}}}}}\n";
        assert!(run(cron).unwrap().contains("tidegate-intercept"));
        let services = "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: a}}\n";
        assert_eq!(run(services).unwrap(), services);
    }

    #[test]
    fn a_pod_template_of_an_unknown_kind_is_left_with_a_note() {
        let rollout = workload("argoproj.io/v1alpha1", "Rollout", "", "");
        let settings = Settings::of_mesh("tidegate-system", "cluster.local", "tidegate/sidecar:1.0.0");
        let yaml = format!("{SERVICE}---\n{rollout}");
        let injected =
            inject_manifests(&yaml, &settings, &MeshSettings::default(), &ManifestNamespaces::default())
                .unwrap();
        assert_eq!(injected.yaml, yaml);
        let [note] = &injected.notes[..] else { panic!("{:?}", injected.notes) };
        assert!(
            note.starts_with("document 2: Rollout shop: has a pod template, but argoproj.io/v1alpha1"),
            "{note}"
        );
    }

    #[test]
    fn what_opts_out_or_is_not_a_workload_stays_as_it_is() {
        let opted_out = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: {openservicemesh.io/sidecar-injection: \"no\"}\nspec: {containers: [{name: a}]}\n";
        for yaml in [
            "",
            "\n",
            "# nothing\n",
            "---\n",
            SERVICE,
            opted_out,
            &format!("---\n{SERVICE}---\n---\n{opted_out}"),
        ] {
            assert_eq!(run(yaml).unwrap(), yaml);
        }
    }

    #[test]
    fn errors_name_document_object_and_field() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, securityContext: {runAsUser: 1500}}]}\n";
        let error = run(&format!("{SERVICE}---\n{pod}")).unwrap_err();
        assert!(
            error.starts_with("document 2: Pod a: spec.containers[0].securityContext.runAsUser: "),
            "{error}"
        );
        let error =
            run("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {}\n").unwrap_err();
        assert_eq!(error, "document 1: Deployment d: /spec/template is missing");
        assert!(run("a: [\n").unwrap_err().starts_with("document 1: "));
        let typo = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: {name: a}}\n";
        assert!(run(typo).unwrap_err().starts_with("document 1: Pod a: "));
    }
}
