//! Installing, upgrading and uninstalling on a real cluster: by Helm 3, by Helm 4, by `tidegate install`.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tidegate_tests::helm::Helm;
use tidegate_tests::kubernetes::cluster::{CommandFailure, run};
use tidegate_tests::kubernetes::mesh::{DAEMONS, VALUES, install_crds};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::{Cluster, ROLLOUT};

const CHART: &str = "charts/tidegate";
const ROOT: &str = "tidegate-ca-bundle";
const SHORT_LIFE: Duration = Duration::from_secs(20);

/// A mesh beside those of other tests; its namespace is deleted when it is dropped.
struct Installation {
    cluster: &'static Cluster,
    helm: Helm,
    /// The name of the namespace and of the mesh, and the suffix of the names of cluster-wide objects.
    name: String,
    values: NamedTempFile,
}

impl Installation {
    fn new(name: &str, helm: Helm) -> Self {
        let cluster = Cluster::get();
        cluster.load_images(&["sidecar", "controller", "cert-manager", "injector"]);
        let mut values = NamedTempFile::new().unwrap();
        writeln!(values, "{VALUES}meshName: {name}").unwrap();
        let installation = Self { cluster, helm, name: name.to_owned(), values };
        install_crds(cluster);
        installation
    }

    /// The namespace, which admits only pods without privileges.
    fn make_namespace(&self) {
        self.cluster.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}}}",
            self.name
        ));
    }

    fn helm<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let mut command = self.cluster.command(self.helm.program());
        command.current_dir(tidegate_tests::golden::repository()).args(arguments);
        run(&mut command, "").unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// A Helm command for the release.
    fn release(&self, words: &[&str], more: &[&str]) {
        self.helm([words, &["--namespace", &self.name], more].concat());
    }

    fn tidegate(&self, command: &str, more: &[&str]) -> String {
        self.try_tidegate(&self.name, command, more).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// `tidegate` for a mesh in this namespace.
    fn try_tidegate(&self, mesh: &str, command: &str, more: &[&str]) -> Result<String, CommandFailure> {
        let namespace = format!("--tidegate-namespace={}", self.name);
        let mesh = format!("--mesh-name={mesh}");
        let arguments = [&[command, namespace.as_str(), mesh.as_str()], more].concat();
        let mut command = self.cluster.command(tidegate_tests::daemon::ours("tidegate"));
        command.env("TIDEGATE_HELM", self.helm.program()).args(arguments);
        run(&mut command, "")
    }

    fn values(&self) -> &str {
        self.values.path().to_str().unwrap()
    }

    fn object(&self, kind: &str, name: &str) -> Value {
        self.cluster.get_json(&[kind, name, "-n", &self.name])
    }

    fn is_there(&self, kind: &str, name: &str) -> bool {
        self.cluster.try_get_json(&[kind, name, "-n", &self.name]).is_ok()
    }

    fn root(&self) -> Value {
        self.cluster.wait_for("a root", &["secret", ROOT, "-n", &self.name], |secret| {
            (!secret["data"].is_null()).then(|| secret["data"].clone())
        })
    }

    /// A file with the roots by which the API server verifies the webhooks.
    fn trust_bundle(&self) -> NamedTempFile {
        let map = self.object("configmap", &format!("tidegate-trust-bundle-{}", self.name));
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(map["data"]["ca.crt"].as_str().unwrap().as_bytes()).unwrap();
        file
    }

    fn mesh_config(&self) -> Value {
        self.object("meshconfig", "osm-mesh-config")["spec"].clone()
    }

    /// The effect of a user's `kubectl edit`.
    fn edit_mesh_config(&self) {
        let edit = json!({"spec": {
            "traffic": {"enableEgress": false, "outboundPortExclusionList": [6379]},
            "sidecar": {"logLevel": null},
            "certificate": {"ingressGateway": {
                "subjectAltNames": ["ingress-nginx.ingress-nginx.cluster.local"],
                "validityDuration": "24h",
                "secret": {"name": "client-cert", "namespace": self.name},
            }},
        }});
        let edit = edit.to_string();
        self.cluster.kubectl([
            "patch",
            "meshconfig",
            "osm-mesh-config",
            "-n",
            &self.name,
            "--type=merge",
            "-p",
            &edit,
        ]);
    }

    /// The caBundle of each of the injector's webhooks, once all have one.
    fn ca_bundles(&self) -> Value {
        let configuration = format!("tidegate-injector-{}", self.name);
        self.cluster.wait_for("a caBundle", &["mutatingwebhookconfiguration", &configuration], |found| {
            let webhooks = found["webhooks"].as_array().unwrap();
            let bundles: Vec<Value> =
                webhooks.iter().map(|webhook| webhook["clientConfig"]["caBundle"].clone()).collect();
            bundles.iter().all(Value::is_string).then_some(Value::Array(bundles))
        })
    }

    fn wait_ready(&self) {
        for daemon in DAEMONS {
            let (target, limit) =
                (format!("deployment/{daemon}"), format!("--timeout={}s", ROLLOUT.as_secs()));
            self.cluster.kubectl(["rollout", "status", &target, "-n", &self.name, &limit]);
        }
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in DAEMONS {
                let logs = ["logs", "-n", &self.name, &format!("deployment/{daemon}"), "--tail=20"];
                eprintln!("{daemon}: {:?}", self.cluster.try_kubectl(logs, ""));
            }
            let pods = self.cluster.try_kubectl(["describe", "pods", "-n", &self.name], "");
            eprintln!("{}", pods.unwrap_or_else(|failure| failure.to_string()));
        }
        let mut command = self.cluster.command(self.helm.program());
        command.args(["uninstall", "tidegate", "--ignore-not-found", "--namespace", &self.name]);
        let _ = run(&mut command, "");
        let _ = self
            .cluster
            .try_kubectl(["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"], "");
    }
}

#[test]
fn with_helm_3_an_upgrade_keeps_root_meshconfig_and_ca_bundle_and_so_does_a_new_installation() {
    let [helm, _] = Helm::all();
    assert_keeps(&Installation::new("with-helm-3", helm));
}

#[test]
fn with_helm_4_an_upgrade_keeps_root_meshconfig_and_ca_bundle_and_so_does_a_new_installation() {
    let [_, helm] = Helm::all();
    assert_keeps(&Installation::new("with-helm-4", helm));
}

fn assert_keeps(installation: &Installation) {
    installation.make_namespace();
    let install = ["install", "tidegate", CHART];
    installation.release(&install, &["--values", installation.values()]);
    installation.wait_ready();
    let (root, ca_bundles) = (installation.root(), installation.ca_bundles());
    installation.edit_mesh_config();
    let edited = installation.mesh_config();
    assert_eq!(edited["traffic"]["enableEgress"], false);

    // Twice: the second upgrade finds what the first one has written.
    for replicas in [2, 1] {
        let set = format!("controller.replicas={replicas}");
        installation.release(&["upgrade", "tidegate", CHART], &["--reset-then-reuse-values", "--set", &set]);
        installation.wait_ready();
        assert_eq!(installation.object("deployment", "tidegate-controller")["spec"]["replicas"], replicas);
        assert_eq!(installation.root(), root);
        assert_eq!(installation.mesh_config(), edited);
        assert_eq!(installation.ca_bundles(), ca_bundles);
    }

    installation.release(&["uninstall", "tidegate", "--wait"], &[]);
    for daemon in DAEMONS {
        assert!(!installation.is_there("deployment", daemon), "{daemon}");
        assert!(!installation.is_there("serviceaccount", daemon), "{daemon}");
    }
    let cluster =
        |kind: &str, name: &str| installation.is_there(kind, &format!("{name}-{}", installation.name));
    assert!(!cluster("mutatingwebhookconfiguration", "tidegate-injector"));
    assert!(!cluster("validatingwebhookconfiguration", "tidegate-controller"));
    assert!(!cluster("clusterrole", "tidegate-controller"));
    assert_eq!(installation.root(), root);

    installation.release(&install, &["--values", installation.values()]);
    installation.wait_ready();
    assert_eq!(installation.root(), root);
    assert_eq!(installation.mesh_config(), edited);
    assert_eq!(installation.ca_bundles(), ca_bundles);
}

#[test]
fn the_api_server_accepts_every_rendering_to_the_letter() {
    let installation = Installation::new("renderings", Helm::newest());
    installation.make_namespace();
    let cases: [&[&str]; 3] = [
        &["--values", "charts/tidegate/values-ha.yaml"],
        &[
            "--values",
            "tests/golden/chart/everything.values.yaml",
            "--set",
            "certManager.gatewaySecretNamespaces={kube-public}",
        ],
        &["--set", "meshConfig.create=false"],
    ];
    for values in cases {
        let template = ["template", "tidegate", CHART, "--namespace", &installation.name];
        let rendered = installation.helm([&template, values].concat());
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        installation
            .cluster
            .try_kubectl(apply, &rendered)
            .unwrap_or_else(|failure| panic!("{values:?}: {failure}"));
    }
}

#[test]
fn an_installation_whose_images_cannot_be_pulled_names_the_pod_and_the_reason() {
    let installation = Installation::new("without-images", Helm::newest());
    let flags =
        ["--apply", "--skip-crds", "--wait", "--timeout", "30s", "--set", "image.registry=localhost:1/none"];
    let failure = installation.try_tidegate(&installation.name, "install", &flags).unwrap_err();
    // The others wait for the trust bundle, which this one would write.
    assert!(failure.stderr.contains("waiting: pod tidegate-cert-manager-"), "{failure}");
    assert!(failure.stderr.contains("ImagePullBackOff: image localhost:1/none/cert-manager:"), "{failure}");
    assert!(failure.stderr.contains("not ready after 30s: "), "{failure}");
    assert!(failure.stderr.contains("hint: the values image.registry and image.tag"), "{failure}");
    let again = installation.try_tidegate(&installation.name, "install", &flags).unwrap_err();
    assert!(again.stderr.contains("hint: a control plane already exists: use `tidegate upgrade`"), "{again}");
    let number =
        installation.try_tidegate(&installation.name, "install", &["--set", "image.tag=1"]).unwrap_err();
    assert!(number.stderr.contains("hint: --set parses numbers"), "{number}");
}

#[test]
fn tidegate_installs_upgrades_and_uninstalls_and_admission_goes_on_over_renewals_of_its_certificates() {
    let installation = Installation::new("with-tidegate", Helm::newest());
    let values = installation.values();
    installation.tidegate("install", &["--apply", "--skip-crds", "--wait", "--values", values]);
    installation.wait_ready();
    let root = installation.root();
    installation.edit_mesh_config();
    let edited = installation.mesh_config();

    let short = |daemon| format!("{daemon}.extraArgs={{--certificate-lifetime={}s}}", SHORT_LIFE.as_secs());
    let (injector, controller) = (short("injector"), short("controller"));
    let set = ["--set", "certManager.replicas=2", "--set", &injector, "--set", &controller];
    installation.tidegate("upgrade", &[&["--skip-crds", "--wait"], &set[..]].concat());
    installation.wait_ready();
    assert_eq!(installation.object("deployment", "tidegate-cert-manager")["spec"]["replicas"], 2);
    assert_eq!(installation.root(), root);
    assert_eq!(installation.mesh_config(), edited);

    assert_admits_over_renewals(&installation);

    let generation =
        || installation.object("deployment", "tidegate-controller")["metadata"]["generation"].clone();
    let before = generation();
    for (command, flags) in [
        ("upgrade", vec!["--skip-crds"]),
        ("uninstall", vec![]),
        ("uninstall", vec!["--yes", "--delete-all"]),
    ] {
        let refused = installation.try_tidegate("blue", command, &flags).unwrap_err();
        assert_eq!(refused.code, Some(1), "{refused}");
        assert!(refused.stderr.contains("of mesh \"with-tidegate\", not of \"blue\""), "{refused}");
    }
    assert_eq!(generation(), before);
    assert_eq!(installation.root(), root);

    let asked = installation.try_tidegate(&installation.name, "uninstall", &["--delete-root"]).unwrap_err();
    assert!(asked.stderr.contains("confirm with --yes"), "{asked}");
    assert!(asked.stderr.contains(&format!("To be deleted: Secret {}/{ROOT}", installation.name)), "{asked}");
    assert!(installation.is_there("deployment", "tidegate-controller"));
    installation.tidegate("uninstall", &[]);
    assert!(!installation.is_there("deployment", "tidegate-controller"));
    assert!(!installation.is_there("lease", "tidegate-controller"));
    assert_eq!(installation.root(), root);
    assert_eq!(installation.mesh_config(), edited);

    installation.tidegate("uninstall", &["--yes", "--delete-root"]);
    assert!(!installation.is_there("secret", ROOT));
    let bundle = format!("tidegate-trust-bundle-{}", installation.name);
    assert!(!installation.is_there("configmap", &bundle));
    assert_eq!(installation.mesh_config(), edited);
    installation.tidegate("uninstall", &["--yes", "--delete-mesh-config", "--delete-namespace"]);
    let namespace = installation.cluster.try_get_json(&["namespace", &installation.name]);
    assert!(namespace.is_err(), "the command has returned before the namespace was gone: {namespace:?}");
    let refused = installation.try_tidegate(&installation.name, "uninstall", &[]).unwrap_err();
    assert!(refused.stderr.contains("namespace with-tidegate has no control plane"), "{refused}");
}

/// The API server trusts a webhook as long as its certificate is valid. Sends requests without a pause until both
/// webhooks have outlived their first certificate and have had two more.
fn assert_admits_over_renewals(installation: &Installation) {
    let first_end = SystemTime::now() + SHORT_LIFE;
    let (mesh, cluster) = (&installation.name, installation.cluster);
    let namespace = Namespace::new("renewals");
    let name = namespace.name();
    cluster.tidegate(["namespace", "add", name, "--mesh-name", mesh]);
    namespace.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"},
        "spec": {"containers": [{"name": "app", "image": "tidegate.test/app:1"}]},
    });
    let policy = |range: &str| {
        json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1",
            "kind": "IngressBackend",
            "metadata": {"name": "policy"},
            "spec": {
                "backends": [{"name": "app", "port": {"number": 80, "protocol": "http"}}],
                "sources": [{"kind": "IPRange", "name": range}],
            },
        })
    };
    let asked = [pod, policy("10.0.0.0/8"), policy("ten")];
    let services = ["tidegate-injector", "tidegate-controller"];
    let bundle = installation.trust_bundle();
    let is_renewed = || {
        services.iter().all(|daemon| {
            let log = cluster.kubectl(["logs", "-n", mesh, &format!("deployment/{daemon}")]);
            log.matches("certificate received").count() >= 3
        })
    };
    let (mut rounds, deadline) = (0, SystemTime::now() + 4 * SHORT_LIFE);
    while SystemTime::now() < first_end || !is_renewed() {
        assert!(SystemTime::now() < deadline, "certificates are not renewed");
        let (made, refusals) = namespace.would_make(&asked);
        let containers = made[0]["spec"]["initContainers"].as_array().unwrap();
        assert!(containers.iter().any(|container| container["name"] == "tidegate-sidecar"), "{made:#?}");
        assert_eq!((made.len(), refusals.len()), (2, 1), "{made:#?} {refusals:?}");
        assert!(refusals[0].contains("(spec.sources[0].name)"), "{refusals:?}");
        // The API server keeps its connections open; a new one is accepted as well.
        for daemon in services {
            assert_shows_a_good_certificate(installation, daemon, bundle.path());
        }
        rounds += 1;
    }
    assert!(rounds >= 10, "{rounds}");
}

/// Verifies the name and the root as the API server does.
fn assert_shows_a_good_certificate(installation: &Installation, daemon: &str, bundle: &Path) {
    let address = installation.object("service", daemon)["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let name = format!("{daemon}.{}.svc", installation.name);
    let mut command = installation.cluster.on_node();
    command.args(["openssl", "s_client", "-connect", &format!("{address}:443"), "-servername", &name]);
    command.args(["-verify_hostname", &name, "-verify_return_error", "-CAfile"]).arg(bundle);
    run(&mut command, "").unwrap_or_else(|failure| panic!("{failure}"));
}
