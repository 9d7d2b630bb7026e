use std::sync::Arc;

use serde_json::Value;
use tidegate_kubernetes::fake_api::FakeApi;

use super::*;

const CRDS: &str = "apiextensions.k8s.io/v1/customresourcedefinitions";
const BACKENDS_CRD: &str = "ingressbackends.policy.openservicemesh.io";
const CONFIGS_CRD: &str = "meshconfigs.config.openservicemesh.io";
const BACKENDS: &str = "policy.openservicemesh.io/v1alpha1/ingressbackends";
const CONFIGS: &str = "config.openservicemesh.io/v1alpha2/meshconfigs";

fn cluster(api: &FakeApi) -> Cluster {
    Cluster {
        client: api.client(),
        server: format!("http://{}", api.address()),
        control_plane: "osm-system".to_owned(),
        mesh_name: "osm".to_owned(),
    }
}

/// A definition as `kubectl apply` leaves it: it accepts any field, and converts with a webhook that no longer exists.
fn bare(name: &str, kind: &str, versions: &[(&str, bool)], stored: &[&str]) -> Value {
    let (plural, group) = name.split_once('.').unwrap();
    let versions: Vec<Value> = versions
        .iter()
        .map(|(name, storage)| {
            json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "openservicemesh.io"}},
        "spec": {
            "group": group, "scope": "Namespaced", "versions": versions,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "conversion": {"strategy": "Webhook", "webhook": {
                "clientConfig": {"service": {"name": "osm-bootstrap", "namespace": "osm-system"}},
                "conversionReviewVersions": ["v1"]}},
        },
        "status": {"storedVersions": stored},
    })
}

fn backend(number: Value) -> Value {
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
        "metadata": {"name": "httpbin", "namespace": "httpbin"},
        "spec": {"backends": [{"name": "httpbin", "port": {"number": number, "protocol": "http"}}], "sources": []},
    })
}

fn mesh_config() -> Value {
    json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "osm-system"},
        "spec": {"traffic": {"enableEgress": true}},
    })
}

fn writes(api: &FakeApi) -> Vec<String> {
    let requests = api.requests().into_iter();
    let writes = requests.filter(|request| !matches!(request.verb, "get" | "list" | "watch"));
    writes.map(|request| format!("{} {} {}", request.verb, request.resource, request.name)).collect()
}

#[tokio::test]
async fn a_cluster_without_definitions_is_left_to_helm() {
    let api = FakeApi::start().await;
    assert_eq!(take_over(&cluster(&api)).await.unwrap(), Vec::<String>::new());
    assert_eq!(writes(&api), Vec::<String>::new());
}

#[tokio::test]
async fn definitions_without_an_owner_are_made_helm_s_and_their_objects_stay() {
    let api = FakeApi::start().await;
    api.apply(CRDS, bare(BACKENDS_CRD, "IngressBackend", &[("v1alpha1", true)], &["v1alpha1"]));
    api.apply(BACKENDS, backend(14001.into()));
    let said = take_over(&cluster(&api)).await.unwrap();
    assert_eq!(said, [format!("Taken over: CustomResourceDefinition {BACKENDS_CRD}, whose 1 object stays")]);

    let crd = api.get(CRDS, "", BACKENDS_CRD).unwrap();
    assert_eq!(crd["metadata"]["labels"][MANAGED_BY], "Helm");
    assert_eq!(crd["metadata"]["labels"]["app.kubernetes.io/name"], "openservicemesh.io");
    assert_eq!(crd["metadata"]["annotations"][RELEASE_NAME], "tidegate-crds");
    assert_eq!(crd["metadata"]["annotations"][RELEASE_NAMESPACE], "osm-system");
    assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(writes(&api), [format!("update customresourcedefinitions {BACKENDS_CRD}")]);

    // A second run has nothing left to do.
    assert_eq!(take_over(&cluster(&api)).await.unwrap(), Vec::<String>::new());
    assert_eq!(writes(&api).len(), 1);
}

#[tokio::test]
async fn an_object_that_our_definition_would_refuse_is_named() {
    let api = FakeApi::start().await;
    api.apply(CRDS, bare(BACKENDS_CRD, "IngressBackend", &[("v1alpha1", true)], &["v1alpha1"]));
    api.apply(BACKENDS, backend("web".into()));
    let said = take_over(&cluster(&api)).await.unwrap();
    assert!(
        said[1].starts_with("IngressBackend httpbin/httpbin: spec.backends[0].port.number: ")
            && said[1].ends_with("; it grants nothing until this is corrected"),
        "{said:?}"
    );
}

#[tokio::test]
async fn definitions_of_another_helm_release_are_left_alone_and_none_other_is_touched_either() {
    let api = FakeApi::start().await;
    api.apply(CRDS, bare(BACKENDS_CRD, "IngressBackend", &[("v1alpha1", true)], &["v1alpha1"]));
    let mut theirs = bare(CONFIGS_CRD, "MeshConfig", &[("v1alpha2", true)], &["v1alpha2"]);
    theirs["metadata"]["annotations"] = json!({RELEASE_NAME: "other", RELEASE_NAMESPACE: "elsewhere"});
    api.apply(CRDS, theirs);
    let error = take_over(&cluster(&api)).await.unwrap_err().to_string();
    for part in [
        "meshconfigs.config.openservicemesh.io belongs to Helm release elsewhere/other",
        "--skip-crds",
        "kubectl annotate --overwrite crd meshconfigs.config.openservicemesh.io \
         meta.helm.sh/release-name=tidegate-crds meta.helm.sh/release-namespace=osm-system",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(writes(&api), Vec::<String>::new());
}

#[tokio::test]
async fn objects_of_a_removed_version_are_rewritten_before_it_is_removed() {
    let api = FakeApi::start().await;
    let versions = [("v1alpha3", true), ("v1alpha2", false)];
    api.apply(CRDS, bare(CONFIGS_CRD, "MeshConfig", &versions, &["v1alpha3"]));
    api.apply(CONFIGS, mesh_config());
    // The API server needs a while to store in the new version: at first a write changes nothing.
    let mut unchanged = 2;
    api.answer(move |request, body| {
        let is_late = request.verb == "update" && request.resource == "meshconfigs" && unchanged > 0;
        is_late.then(|| {
            unchanged -= 1;
            (200, body.clone())
        })
    });
    let said = take_over(&cluster(&api)).await.unwrap();
    assert_eq!(
        said,
        [
            "Taken over: CustomResourceDefinition meshconfigs.config.openservicemesh.io, whose 1 object stays; stored as \
          v1alpha2 now, no longer as v1alpha3; change manifests to v1alpha1 or v1alpha2: the cluster no longer serves v1alpha3"
        ]
    );
    let object = "update meshconfigs osm-mesh-config";
    assert_eq!(
        writes(&api),
        [
            &format!("update customresourcedefinitions {CONFIGS_CRD}"),
            object,
            object,
            object,
            &format!("patch customresourcedefinitions/status {CONFIGS_CRD}")
        ]
    );
    let crd = api.get(CRDS, "", CONFIGS_CRD).unwrap();
    assert_eq!(crd["status"]["storedVersions"], json!(["v1alpha2"]));
    let versions = crd["spec"]["versions"].as_array().unwrap().iter();
    let stores: Vec<_> = versions.map(|version| (&version["name"], &version["storage"])).collect();
    assert_eq!(
        stores,
        [
            (&json!("v1alpha2"), &json!(true)),
            (&json!("v1alpha1"), &json!(false)),
            (&json!("v1alpha3"), &json!(false))
        ]
    );
    assert_eq!(api.get(CONFIGS, "osm-system", "osm-mesh-config").unwrap()["spec"], mesh_config()["spec"]);
}

#[tokio::test]
async fn objects_of_a_version_that_stays_but_is_not_stored_are_rewritten_too() {
    let api = FakeApi::start().await;
    let versions = [("v1alpha1", true), ("v1alpha2", false)];
    api.apply(CRDS, bare(CONFIGS_CRD, "MeshConfig", &versions, &["v1alpha1"]));
    api.apply(CONFIGS, mesh_config());
    let said = take_over(&cluster(&api)).await.unwrap();
    assert_eq!(
        said,
        [
            "Taken over: CustomResourceDefinition meshconfigs.config.openservicemesh.io, whose 1 object stays; stored as \
          v1alpha2 now, no longer as v1alpha1"
        ]
    );
    let crd = api.get(CRDS, "", CONFIGS_CRD).unwrap();
    assert_eq!(crd["status"]["storedVersions"], json!(["v1alpha2"]));
}

#[tokio::test]
async fn an_object_that_cannot_be_rewritten_keeps_its_version() {
    let api = Arc::new(FakeApi::start().await);
    api.apply(CRDS, bare(CONFIGS_CRD, "MeshConfig", &[("v1alpha1", true)], &["v1alpha1"]));
    api.apply(CONFIGS, mesh_config());
    // Our version is served only a moment after the definition has it.
    api.serve_resource(CONFIGS, false);
    let late = api.clone();
    tokio::spawn(async move {
        late.wait_for(|api| api.requests().iter().any(|request| request.resource == "meshconfigs")).await;
        late.serve_resource(CONFIGS, true);
    });
    api.answer(|request, _| {
        let is_it = request.verb == "update" && request.resource == "meshconfigs";
        is_it.then(|| FakeApi::refusal(422, "spec.traffic: Invalid value"))
    });
    let error = format!("{:#}", take_over(&cluster(&api)).await.unwrap_err());
    assert!(
        error.contains("correct or delete it")
            && error.contains("MeshConfig osm-system/osm-mesh-config")
            && error.contains("spec.traffic: Invalid value"),
        "{error}"
    );
    let crd = api.get(CRDS, "", CONFIGS_CRD).unwrap();
    assert_eq!(crd["status"]["storedVersions"], json!(["v1alpha1"]));
}
