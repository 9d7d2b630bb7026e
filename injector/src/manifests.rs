//! The same injection for manifests in files, without a cluster: `tidegate inject -f`.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};

use crate::inject::{Injection, inject_alone};
use crate::refusal::Refusal;
use crate::settings::{MeshSettings, Settings};

/// Why manifests cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A document is not YAML, or not what its kind says.
    #[error("document {document}: {problem}")]
    Document {
        /// Which, counted from 1.
        document: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A Pod would be refused by the webhook, too.
    #[error("document {document}: {kind} {name}: {refusal}")]
    Refused {
        /// Which document, counted from 1.
        document: usize,
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        refusal: Box<Refusal>,
    },
}

/// Adds the sidecar to every Pod, and to the Pod template of every Deployment, ReplicaSet, StatefulSet, DaemonSet,
/// Job and CronJob, alone or in a List. Everything else stays byte for byte, and so does what has a sidecar, opts out
/// or cannot have one.
pub fn inject_manifests(
    yaml: &str,
    settings: &Settings,
    mesh: &MeshSettings,
) -> Result<String, ManifestError> {
    let mut output = String::with_capacity(yaml.len());
    for (index, part) in split(yaml).into_iter().enumerate() {
        let document = index + 1;
        let (separator, text) = part;
        output.push_str(separator);
        match inject_document(text, document, settings, mesh)? {
            Some(injected) => output.push_str(&injected),
            None => output.push_str(text),
        }
    }
    Ok(output)
}

/// The document with sidecars; `None` if nothing changes.
fn inject_document(
    text: &str,
    document: usize,
    settings: &Settings,
    mesh: &MeshSettings,
) -> Result<Option<String>, ManifestError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(None);
    }
    let wrong = |problem: String| ManifestError::Document { document, problem };
    let options = serde_saphyr::options! { with_snippet: false };
    let mut value: Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| wrong(error.to_string()))?;
    if !inject_object(&mut value, document, settings, mesh)? {
        return Ok(None);
    }
    serde_saphyr::to_string(&value).map(Some).map_err(|error| wrong(error.to_string()))
}

/// Adds sidecars to what is in an object and says whether it has changed.
fn inject_object(
    object: &mut Value,
    document: usize,
    settings: &Settings,
    mesh: &MeshSettings,
) -> Result<bool, ManifestError> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let path = match (object["apiVersion"].as_str().unwrap_or_default(), kind.as_str()) {
        ("v1", "List" | "PodList") => {
            let mut changed = false;
            for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
                changed |= inject_object(item, document, settings, mesh)?;
            }
            return Ok(changed);
        }
        ("v1", "Pod") => "",
        ("apps/v1", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") | ("batch/v1", "Job") => {
            "/spec/template"
        }
        ("batch/v1", "CronJob") => "/spec/jobTemplate/spec/template",
        _ => return Ok(false),
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let Some(template) = object.pointer_mut(path).filter(|template| template.is_object()) else {
        let problem = format!("{kind} {name}: {path} is missing");
        return Err(ManifestError::Document { document, problem });
    };
    let pod: Pod = serde_json::from_value(template.clone())
        .map_err(|error| ManifestError::Document { document, problem: format!("{kind} {name}: {error}") })?;
    let injection = inject_alone(&pod, settings, mesh).map_err(|refusal| ManifestError::Refused {
        document,
        kind: kind.clone(),
        name: name.clone(),
        refusal: Box::new(refusal),
    })?;
    let patch = match injection {
        Injection::Meshed(patch) if !patch.is_empty() => patch,
        Injection::Meshed(_) | Injection::Left(_) => return Ok(false),
    };
    if template["metadata"].is_null() {
        template["metadata"] = Value::Object(Map::new());
    }
    json_patch::patch(template, &patch)
        .map_err(|error| ManifestError::Document { document, problem: format!("{kind} {name}: {error}") })?;
    Ok(true)
}

/// The documents of a stream, each with the separator line before it, so that together they are the stream.
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
    // Nothing before the first separator is no document.
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
        inject_manifests(yaml, &settings, &MeshSettings::default()).map_err(|error| error.to_string())
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
    fn what_opts_out_or_is_no_workload_stays_as_it_is() {
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
