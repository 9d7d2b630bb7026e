//! `tidegate install` where Open Service Mesh, or `kubectl apply`, left custom resource definitions behind.
//!
//! Definitions are cluster-wide, so the test has its own cluster.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tidegate_tests::helm::Helm;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::mesh::VALUES;

const DEFINITIONS: [(&str, &str, &[&str]); 10] = [
    ("ingressbackends.policy.openservicemesh.io", "IngressBackend", &["v1alpha1"]),
    ("egresses.policy.openservicemesh.io", "Egress", &["v1alpha1"]),
    ("meshconfigs.config.openservicemesh.io", "MeshConfig", &["v1alpha1", "v1alpha2"]),
    ("traffictargets.access.smi-spec.io", "TrafficTarget", &["v1alpha3"]),
    ("trafficsplits.split.smi-spec.io", "TrafficSplit", &["v1alpha2", "v1alpha4"]),
    ("httproutegroups.specs.smi-spec.io", "HTTPRouteGroup", &["v1alpha4"]),
    ("tcproutes.specs.smi-spec.io", "TCPRoute", &["v1alpha4"]),
    ("retries.policy.openservicemesh.io", "Retry", &["v1alpha1"]),
    ("upstreamtrafficsettings.policy.openservicemesh.io", "UpstreamTrafficSetting", &["v1alpha1"]),
    ("egressproxies.tidegate.io", "EgressProxy", &["v1alpha1"]),
];

/// A definition that stays Istio's.
const SERVICE_ENTRY: (&str, &str, &[&str]) =
    ("serviceentries.networking.istio.io", "ServiceEntry", &["v1", "v1beta1"]);

/// Runs a `tidegate` command for the mesh of this name, with this Helm; returns its messages.
fn tidegate(cluster: &Cluster, helm: &Helm, mesh: &str, arguments: &[&str]) -> String {
    let mut command = cluster.command(tidegate_tests::daemon::ours("tidegate"));
    command.env("TIDEGATE_HELM", helm.program()).args(arguments);
    command.args(["--tidegate-namespace", mesh, "--mesh-name", mesh]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// A definition like Open Service Mesh's: the first version is stored, and nothing is validated.
fn bare(name: &str, kind: &str, versions: &[&str]) -> Value {
    let (plural, group) = name.split_once('.').unwrap();
    let any = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(i, version)| {
            let status = json!({"status": {}});
            json!({"name": version, "served": true, "storage": i == 0, "schema": any, "subresources": status})
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "openservicemesh.io"}},
        "spec": {
            "group": group, "scope": "Namespaced", "versions": versions, "conversion": {"strategy": "None"},
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                      "singular": kind.to_lowercase(), "shortNames": [kind.to_lowercase()]},
        },
    })
}

/// Objects of Open Service Mesh's users: a MeshConfig of the older version, and policies, one of which was never
/// validated.
fn objects(mesh: &str) -> String {
    let app = format!("{mesh}-app");
    let backend = |name: &str, number: Value| {
        json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
            "metadata": {"name": name, "namespace": app},
            "spec": {"backends": [{"name": "httpbin", "port": {"number": number, "protocol": "http"}}],
                     "sources": [{"kind": "IPRange", "name": "10.0.0.0/8"}]},
        })
    };
    let labels = json!({"openservicemesh.io/monitored-by": mesh});
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": mesh}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": app, "labels": labels}}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "httpbin", "namespace": app},
            "spec": {"selector": {"app": "httpbin"}, "ports": [{"port": 80, "targetPort": 14001}]},
        }),
        json!({
            "apiVersion": "config.openservicemesh.io/v1alpha1", "kind": "MeshConfig",
            "metadata": {"name": "osm-mesh-config", "namespace": mesh},
            "spec": {"traffic": {"enableEgress": true, "enablePermissiveTrafficPolicyMode": false,
                                 "outboundPortExclusionList": [6379]}},
        }),
        backend("httpbin", 14001.into()),
        backend("unreadable", "web".into()),
    ];
    let documents: Vec<String> = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    documents.concat()
}

/// Asserts that an upgrade installs the definitions of Gateway API's routes on request, except those that the cluster
/// has, and that a later one keeps them.
fn assert_gateway_api_on_request(cluster: &Cluster, helm: &Helm, mesh: &str) {
    const ROUTES: [&str; 4] = ["httproutes", "grpcroutes", "tcproutes", "tlsroutes"];
    let definition = |kind: &str| ["crd".to_owned(), format!("{kind}.gateway.networking.k8s.io")];
    let mut foreign = bare("grpcroutes.gateway.networking.k8s.io", "GRPCRoute", &["v1"]);
    foreign["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, for a test"});
    cluster.apply(&foreign.to_string());
    for arguments in [["upgrade", "--gateway-api"].as_slice(), &["upgrade"]] {
        tidegate(cluster, helm, mesh, arguments);
        for kind in ROUTES {
            let [crd, name] = definition(kind);
            cluster.kubectl(["wait", &crd, &name, "--for=condition=Established", "--timeout=60s"]);
            let labels = &cluster.get_json(&[&crd, &name])["metadata"]["labels"];
            let owner = if kind == "grpcroutes" { Value::Null } else { "tidegate".into() };
            assert_eq!(labels["app.kubernetes.io/part-of"], owner, "{kind}");
        }
    }
    cluster.apply(
        &json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "httpbin", "namespace": format!("{mesh}-app")},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "httpbin", "port": 80}],
                     "rules": [{"backendRefs": [{"name": "httpbin", "port": 80}]}]},
        })
        .to_string(),
    );
    for kind in ROUTES {
        let [crd, name] = definition(kind);
        cluster.kubectl(["delete", &crd, &name]);
    }
}

/// Asserts that the MeshConfig that was there is kept, and that a manifest of the older version means the same.
fn assert_mesh_config_of_both_versions(cluster: &Cluster, mesh: &str) {
    let config = cluster.get_json(&["meshconfig", "osm-mesh-config", "-n", mesh]);
    assert_eq!(config["spec"]["traffic"]["outboundPortExclusionList"], json!([6379]));
    // A manifest of the older version is accepted, and means the same.
    cluster.apply(
        &json!({
            "apiVersion": "config.openservicemesh.io/v1alpha1", "kind": "MeshConfig",
            "metadata": {"name": "osm-mesh-config", "namespace": mesh},
            "spec": {"traffic": {"useHTTPSIngress": true, "outboundPortExclusionList": [6380]}},
        })
        .to_string(),
    );
    let config = cluster.get_json(&["meshconfig", "osm-mesh-config", "-n", mesh]);
    assert_eq!(config["apiVersion"], "config.openservicemesh.io/v1alpha2");
    assert_eq!(config["spec"]["traffic"]["outboundPortExclusionList"], json!([6380]));
}

#[test]
fn an_installation_takes_over_the_definitions_that_are_there_and_their_objects_stay_and_count() {
    let cluster = Cluster::own("defs");
    cluster.load_images(&["sidecar", "controller", "cert-manager", "injector"]);
    let mut values = NamedTempFile::new().unwrap();
    values.write_all(VALUES.as_bytes()).unwrap();
    let values = values.path().to_str().unwrap();
    for (mesh, helm) in ["by-helm-3", "by-helm-4"].into_iter().zip(Helm::all()) {
        for (name, kind, versions) in DEFINITIONS.into_iter().chain([SERVICE_ENTRY]) {
            let definition = bare(name, kind, versions).to_string();
            // The second time, the first installation's own definition is there.
            if cluster.try_kubectl(["replace", "-f", "-"], &definition).is_err() {
                cluster.apply(&definition);
            }
            cluster.kubectl(["wait", "crd", name, "--for=condition=Established", "--timeout=60s"]);
        }
        cluster.apply(&objects(mesh));

        let said = tidegate(&cluster, &helm, mesh, &["install", "--apply", "--wait", "--values", values]);
        for (name, _, versions) in DEFINITIONS {
            assert!(said.contains(&format!("Taken over: CustomResourceDefinition {name}")), "{said}");
            let crd = cluster.get_json(&["crd", name]);
            assert_eq!(crd["metadata"]["annotations"]["meta.helm.sh/release-namespace"], mesh);
            // The older version of a MeshConfig is still served, but no longer stored.
            assert_eq!(crd["spec"]["versions"].as_array().unwrap().len(), versions.len(), "{crd:#}");
        }
        assert!(!said.contains(SERVICE_ENTRY.0), "{said}");
        let metadata = &cluster.get_json(&["crd", SERVICE_ENTRY.0])["metadata"];
        assert_eq!(metadata["labels"], json!({"app.kubernetes.io/name": "openservicemesh.io"}));
        assert_eq!(metadata["annotations"]["meta.helm.sh/release-name"], Value::Null);
        assert!(said.contains("stored as v1alpha2 now, no longer as v1alpha1"), "{said}");
        let app = format!("{mesh}-app");
        let unreadable = format!("IngressBackend {app}/unreadable: spec.backends[0].port.number");
        assert!(said.contains(&unreadable), "{said}");
        let stored =
            &cluster.get_json(&["crd", "meshconfigs.config.openservicemesh.io"])["status"]["storedVersions"];
        assert_eq!(*stored, json!(["v1alpha2"]));

        assert_mesh_config_of_both_versions(&cluster, mesh);
        let status = |name: &str| {
            cluster.wait_for("a status", &["ingressbackend", name, "-n", &app], |object| {
                let text = |field: &str| object["status"][field].as_str().map(str::to_owned);
                text("currentStatus").zip(text("reason"))
            })
        };
        let committed = ("committed".to_owned(), "successfully committed by the system".to_owned());
        assert_eq!(status("httpbin"), committed);
        // An object that our definition would have rejected denies, and its status gives the reason.
        let (current, reason) = status("unreadable");
        assert_eq!(current, "error", "{reason}");
        assert!(reason.contains("spec.backends[0].port.number") && reason.contains("\"web\""), "{reason}");

        // Now there is nothing left to take over.
        let said = tidegate(&cluster, &helm, mesh, &["upgrade"]);
        assert!(!said.contains("Taken over"), "{said}");
        assert_gateway_api_on_request(&cluster, &helm, mesh);
        tidegate(&cluster, &helm, mesh, &["uninstall", "--yes", "--delete-mesh-config"]);
        cluster.kubectl(["delete", "namespace", mesh, &app, "--wait=false"]);
    }
}
