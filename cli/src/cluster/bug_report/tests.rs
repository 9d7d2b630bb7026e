use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::Router;
use axum::routing::get;
use flate2::read::GzDecoder;
use serde_json::json;
use tidegate_controller::object::Kind;

use super::*;
use crate::cluster::testing::{TestCluster, control_plane_pod, meshed_pod, namespace, plain_pod};

const KEY: &str = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ";

/// An object of each kind that the controller reads.
fn one_of(kind: Kind) -> (String, serde_json::Value) {
    let resource = kind.resource();
    let name = format!("one-{}", resource.plural);
    let namespace = if matches!(kind, Kind::Namespace | Kind::Node) { None } else { Some("httpbin") };
    let object = json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name, "namespace": namespace},
    });
    (format!("{}/{}", resource.api_version, resource.plural), object)
}

async fn mesh() -> TestCluster {
    let mut pod = meshed_pod("httpbin", "a");
    pod["metadata"]["annotations"] = json!({
        "kubectl.kubernetes.io/last-applied-configuration": "env-value", "kept": "yes",
    });
    pod["spec"]["containers"][0]["env"] = json!([{"name": "PASSWORD", "value": "env-value"}]);
    pod["spec"]["containers"][0]["args"] = json!(["--password=env-value"]);
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 80, "path": "/live", "httpHeaders": [{"name": "x", "value": "env-value"}]}});
    pod["spec"]["initContainers"][0]["args"] = json!(["--transparent", "--probes=[\"env-value\"]"]);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tidegate-ca-bundle", "namespace": "tidegate-system"},
        "data": {"issuer.key": "c2VjcmV0LWRhdGE="},
    });
    let fake = TestCluster::start(vec![
        namespace("httpbin", json!({"openservicemesh.io/monitored-by": "osm"})),
        namespace("other", json!({})),
        control_plane_pod("tidegate-controller", "c"),
        control_plane_pod("tidegate-cert-manager", "ca"),
        pod,
        meshed_pod("shop", "b"),
        plain_pod("httpbin", "plain"),
        secret,
    ])
    .await;
    fake.api.log("tidegate-system/c/tidegate-controller", &format!("started\n{KEY}"));
    fake.api.log("httpbin/a/tidegate-sidecar", &format!("GET /?token={TOKEN}\n"));
    let sidecar = Router::new()
        .route("/config", get(|| async { format!("{{\"version\": \"0.1.0\", \"oops\": {KEY:?}}}") }))
        .route("/metrics", get(|| async { "a_total 1\n" }))
        .route("/ready", get(|| async { "ready\n" }));
    fake.admin("httpbin/a", sidecar).await;
    fake.admin("tidegate-system/ca", Router::new().route("/rotation", get(|| async { "{}" }))).await;
    fake
}

fn unpacked(file: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(file).unwrap()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (path, text)
    });
    entries.collect()
}

async fn reported(choice: Choice) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.tar.gz");
    archive::write(&file, collect::everything(&mesh().await.cluster(), &choice).await).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    unpacked(&file)
}

#[tokio::test]
async fn a_report_has_everything_and_no_secret() {
    let files = reported(Choice::default()).await;
    for expected in [
        "versions.yaml",
        "check.txt",
        "missing.txt",
        "objects/pods.yaml",
        "objects/secret-names.yaml",
        "objects/namespaces.yaml",
        "objects/ingressbackends.policy.openservicemesh.io.yaml",
        "objects/httpbin/pods.yaml",
        "events/httpbin.yaml",
        "events/tidegate-system.yaml",
        "control-plane/c/tidegate-controller.log",
        "control-plane/ca/rotation",
        "sidecars/httpbin/a/tidegate-sidecar.log",
        "sidecars/httpbin/a/config",
        "sidecars/httpbin/a/metrics",
    ] {
        assert!(files.contains_key(&format!("report/{expected}")), "{expected}: {:?}", files.keys());
    }
    for (path, text) in &files {
        for secret in ["PRIVATE KEY", "c2VjcmV0", "secret-data", "eyJ", "env-value"] {
            assert!(!text.contains(secret), "{path} holds {secret}: {text}");
        }
    }
    assert!(files["report/objects/secret-names.yaml"].contains("tidegate-ca-bundle"));
    assert!(files["report/objects/httpbin/pods.yaml"].contains("--transparent"));
    assert!(
        files["report/control-plane/c/tidegate-controller.log"].starts_with("started\n<private key removed>")
    );
    let missing = &files["report/missing.txt"];
    assert!(missing.contains("tidegate-injector: no running pod\n"), "{missing}");
    assert!(
        missing.contains("sidecars/shop/b/config: pod shop/b: port 15000: connection refused\n"),
        "{missing}"
    );
}

#[tokio::test]
async fn a_report_has_the_objects_of_each_kind_that_the_controller_reads() {
    let fake = mesh().await;
    // Secrets never leave the API server.
    let kinds = || Kind::ALL.iter().filter(|kind| **kind != Kind::Secret);
    for kind in kinds() {
        let (resource, object) = one_of(*kind);
        fake.api.apply(&resource, object);
    }
    let report = collect::everything(&fake.cluster(), &Choice::default()).await;
    for kind in kinds() {
        let plural = kind.resource().plural;
        let (file, name) = match kind {
            Kind::Namespace | Kind::Node => (format!("objects/{plural}.yaml"), format!("one-{plural}")),
            kind if kind.is_built_in() => (format!("objects/httpbin/{plural}.yaml"), format!("one-{plural}")),
            kind => (format!("objects/{plural}.{}.yaml", kind.resource().group), format!("one-{plural}")),
        };
        let text = report.files.iter().find(|(path, _)| *path == file).map(|(_, text)| text);
        assert!(
            text.is_some_and(|text| text.contains(&name)),
            "{kind}: {file}: {text:?} {:?}",
            report.missing
        );
    }
}

#[tokio::test]
async fn sidecars_are_chosen_by_namespace_and_pod() {
    let pods = vec![("httpbin".to_owned(), "gone".to_owned())];
    let files = reported(Choice { namespaces: vec!["shop".to_owned()], pods, all: false }).await;
    assert!(!files.keys().any(|path| path.starts_with("report/sidecars/httpbin/")));
    let missing = &files["report/missing.txt"];
    assert!(missing.contains("sidecars/shop/b/metrics: "), "{missing}");
    assert!(missing.contains("httpbin/gone: no pod of this name with a sidecar\n"), "{missing}");
}

#[test]
fn without_the_archives_ending_a_folder_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("report");
    let mut report = BugReport::default();
    report.add("a/b.txt", "text");
    archive::write(&target, report).unwrap();
    assert_eq!(fs::read_to_string(target.join("a/b.txt")).unwrap(), "text");
}

#[test]
fn pods_are_named_with_their_namespace() {
    assert_eq!(parse_pod("a/b"), Ok(("a".to_owned(), "b".to_owned())));
    assert_eq!(parse_pod("b"), Err("\"b\" does not have the form NAMESPACE/NAME".to_owned()));
}
