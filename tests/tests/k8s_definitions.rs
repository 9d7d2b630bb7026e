//! `tidegate install` where Open Service Mesh, or `kubectl apply`, left custom resource definitions behind.
//!
//! One test: definitions are the whole cluster's, and a suite has the cluster for itself.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tidegate_tests::helm::Helm;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::run;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, VALUES, install_crds};

const DEFINITIONS: [&str; 2] =
    ["ingressbackends.policy.openservicemesh.io", "meshconfigs.config.openservicemesh.io"];
/// The release of the definitions.
const RELEASE: &str = "tidegate-crds";

/// A mesh of its own whose installation finds bare definitions; all is as before when it is dropped.
struct Takeover {
    cluster: &'static Cluster,
    helm: Helm,
    /// The namespace and the mesh's name.
    name: String,
}

impl Takeover {
    fn start(name: &str, helm: Helm) -> Self {
        let cluster = Cluster::get();
        cluster.load_images(&["sidecar", "controller", "cert-manager", "injector"]);
        install_crds(cluster);
        let takeover = Self { cluster, helm, name: name.to_owned() };
        takeover.forget_release(CONTROL_PLANE);
        for (name, kind, versions) in [
            (DEFINITIONS[0], "IngressBackend", vec!["v1alpha1"]),
            (DEFINITIONS[1], "MeshConfig", vec!["v1alpha1", "v1alpha2"]),
        ] {
            cluster.try_kubectl(["replace", "-f", "-"], &bare(name, kind, &versions).to_string()).unwrap();
        }
        takeover
    }

    /// The definitions stay; that is what the chart asks of Helm.
    fn forget_release(&self, namespace: &str) {
        let mut command = self.cluster.command(self.helm.program());
        command.args(["uninstall", RELEASE, "--ignore-not-found", "--namespace", namespace]);
        run(&mut command, "").unwrap();
    }

    fn install(&self) -> String {
        let mut values = NamedTempFile::new().unwrap();
        values.write_all(VALUES.as_bytes()).unwrap();
        let mut command = self.cluster.command(tidegate_tests::daemon::ours("tidegate"));
        command.env("TIDEGATE_HELM", self.helm.program());
        command.args(["install", "--apply", "--tidegate-namespace", &self.name, "--mesh-name", &self.name]);
        command.args(["--wait", "--timeout", "3m", "--values"]).arg(values.path());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        text
    }

    fn status(&self, kind: &str, namespace: &str, name: &str) -> (String, String) {
        self.cluster.wait_for("a status", &[kind, name, "-n", namespace], |object| {
            let text = |field: &str| object["status"][field].as_str().map(str::to_owned);
            text("currentStatus").zip(text("reason"))
        })
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        let kubectl = |arguments: &[&str]| drop(self.cluster.try_kubectl(arguments, ""));
        let mut uninstall = self.cluster.command(self.helm.program());
        uninstall.args(["uninstall", "tidegate", "--ignore-not-found", "--namespace", &self.name]);
        let _ = run(&mut uninstall, "");
        self.forget_release(&self.name);
        kubectl(&["delete", "namespace", &self.name, &format!("{}-app", self.name), "--ignore-not-found"]);
        // By the commands that a user is told.
        for definition in DEFINITIONS {
            let place = format!("meta.helm.sh/release-namespace={CONTROL_PLANE}");
            let name = format!("meta.helm.sh/release-name={RELEASE}");
            kubectl(&["label", "--overwrite", "crd", definition, "app.kubernetes.io/managed-by=Helm"]);
            kubectl(&["annotate", "--overwrite", "crd", definition, &name, &place]);
        }
        let mut restore = self.cluster.command(Helm::newest().program());
        restore.current_dir(tidegate_tests::golden::repository());
        restore.args(["upgrade", "--install", RELEASE, "charts/tidegate-crds", "--namespace", CONTROL_PLANE]);
        restore.args(["--server-side=true", "--force-conflicts"]);
        if let Err(failure) = run(&mut restore, "") {
            eprintln!("{failure}");
        }
    }
}

/// A definition of the older kind: the first version is the one that is stored, and nothing is validated.
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

/// What Open Service Mesh's users have: a MeshConfig of the older version, and policies, one of which nothing checked.
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

#[test]
fn an_installation_takes_over_the_definitions_that_are_there_and_their_objects_stay_and_count() {
    let [three, four] = Helm::all();
    for (name, helm) in [("takeover-by-helm-3", three), ("takeover-by-helm-4", four)] {
        let takeover = Takeover::start(name, helm);
        let (cluster, app) = (takeover.cluster, format!("{name}-app"));
        cluster.apply(&objects(name));

        let said = takeover.install();
        for definition in DEFINITIONS {
            assert!(said.contains(&format!("Taken over: CustomResourceDefinition {definition}")), "{said}");
            let crd = cluster.get_json(&["crd", definition]);
            assert_eq!(crd["metadata"]["annotations"]["meta.helm.sh/release-namespace"], name);
            assert_eq!(crd["spec"]["versions"].as_array().unwrap().len(), 1, "{crd:#}");
        }
        assert!(said.contains("stored as v1alpha2 now, no longer as v1alpha1"), "{said}");
        assert!(
            said.contains(&format!("IngressBackend {app}/unreadable: spec.backends[0].port.number")),
            "{said}"
        );
        let stored = &cluster.get_json(&["crd", DEFINITIONS[1]])["status"]["storedVersions"];
        assert_eq!(*stored, json!(["v1alpha2"]));

        let config = cluster.get_json(&["meshconfig", "osm-mesh-config", "-n", name]);
        assert_eq!(config["spec"]["traffic"]["outboundPortExclusionList"], json!([6379]));
        let committed = ("committed".to_owned(), "successfully committed by the system".to_owned());
        assert_eq!(takeover.status("ingressbackend", &app, "httpbin"), committed);

        // What no definition of ours would have let in denies, and says why.
        let (status, reason) = takeover.status("ingressbackend", &app, "unreadable");
        assert_eq!(status, "error", "{reason}");
        assert!(reason.contains("spec.backends[0].port.number") && reason.contains("\"web\""), "{reason}");

        // Again there is nothing to take over.
        let mut upgrade = cluster.command(tidegate_tests::daemon::ours("tidegate"));
        upgrade.env("TIDEGATE_HELM", takeover.helm.program());
        upgrade.args(["upgrade", "--tidegate-namespace", name, "--mesh-name", name]);
        let output = upgrade.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && !said.contains("Taken over"), "{said}");
    }
}
