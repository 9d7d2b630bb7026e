//! The certificate authority on a real API server: tokens of real pods, the Secrets and ConfigMaps that it maintains.
//!
//! It runs on this machine, beside the cluster, for its own mesh in its own namespace; all its input comes from the API
//! server.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::kubernetes::cluster::run;
use tidegate_tests::kubernetes::mesh::install_crds;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::{Cluster, ROLLOUT};
use tidegate_tests::loopback::Block;
use tidegate_tests::wait;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status};

const SERVER_NAME: &str = "ca.example";
/// The API server caches for ten seconds that a token is valid.
const TOKEN_MEMORY: Duration = Duration::from_secs(30);

/// Replicas of a certificate authority, and the namespace of their control plane.
struct AuthorityReplicas {
    replicas: Vec<Daemon>,
    block: Block,
    control_plane: Namespace,
    _folder: TempDir,
}

impl AuthorityReplicas {
    fn start(replicas: u8) -> Self {
        let cluster = Cluster::get();
        install_crds(cluster);
        let control_plane = Namespace::new("ca");
        let (folder, block) = (tempfile::tempdir().unwrap(), Block::claim());
        let kubeconfig = folder.path().join("kubeconfig");
        let text = cluster.kubectl(["config", "view", "--raw", "--minify", "--flatten"]);
        std::fs::write(&kubeconfig, text).unwrap();
        let daemon = |number: u8| {
            let admin = block.at(number, 15014);
            let arguments = [
                "--kubernetes".to_owned(),
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--pod-name=replica-{number}"),
                format!("--namespace={}", control_plane.name()),
                format!("--mesh-name={}", control_plane.name()),
                format!("--listen={}", block.at(number, 15012)),
                format!("--admin-address={admin}"),
                format!("--serving-name={SERVER_NAME}"),
                "--bundle-propagation=0s".to_owned(),
            ];
            let name = format!("ca-{number}");
            Daemon::new("tidegate-cert-manager", &name, folder.path(), arguments.into(), Some(admin))
        };
        let mut replicas: Vec<_> = (1..=replicas).map(daemon).collect();
        for replica in &mut replicas {
            replica.start();
        }
        for replica in &mut replicas {
            replica.wait_ready();
        }
        Self { replicas, block, control_plane, _folder: folder }
    }

    /// A namespace with this mesh's label.
    fn meshed(&self) -> Namespace {
        let namespace = Namespace::new("ca-app");
        self.label(&namespace);
        namespace
    }

    fn label(&self, namespace: &Namespace) {
        let label = format!("openservicemesh.io/monitored-by={}", self.control_plane.name());
        namespace.cluster().kubectl(["label", "namespace", namespace.name(), &label]);
    }

    async fn ask(&self, replica: u8, token: &str) -> Result<String, Status> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.bundle(&self.control_plane)))
            .domain_name(SERVER_NAME);
        let address = format!("https://{}", self.block.at(replica, 15012));
        let channel =
            Channel::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
        let mut csr = CertificateParams::default();
        csr.distinguished_name = DistinguishedName::new();
        let csr = csr.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request =
            Request::new(IstioCertificateRequest { csr, validity_duration: 3600, ..Default::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain.remove(0))
    }

    /// The name of this mesh's trust bundles.
    fn bundle_name(&self) -> String {
        format!("tidegate-trust-bundle-{}", self.control_plane.name())
    }

    /// The trust bundle in a namespace, once it exists.
    #[track_caller]
    fn bundle(&self, namespace: &Namespace) -> String {
        namespace.wait_for("the trust bundle", &["configmap", &self.bundle_name()], |map| {
            map["data"]["ca.crt"].as_str().map(str::to_owned)
        })
    }

    fn mesh_config(&self, gateway: &Value) {
        let certificate = json!({
            "serviceCertValidityDuration": "24h", "certKeyBitSize": 2048, "ingressGateway": gateway,
        });
        let config = json!({
            "apiVersion": "config.openservicemesh.io/v1alpha2",
            "kind": "MeshConfig",
            "metadata": {"name": "osm-mesh-config"},
            "spec": {"certificate": certificate},
        });
        self.control_plane.apply(&config.to_string());
    }

    #[track_caller]
    fn wait_for_condition(&self, status: &str, message: &str) {
        self.control_plane.wait_for(message, &["meshconfig", "osm-mesh-config"], |config| {
            let mut conditions = config["status"]["conditions"].as_array()?.iter();
            let ours = conditions.find(|condition| condition["type"] == "IngressGatewayReady")?;
            (ours["status"] == status && ours["message"].as_str()?.contains(message)).then_some(())
        });
    }
}

fn roots(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// A pod that need not run: only its token is used.
fn pod(namespace: &Namespace, name: &str) {
    // The account is created a moment after its namespace.
    namespace.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "none", "image": "tidegate.test/none:1", "imagePullPolicy": "Never"}]},
    });
    namespace.apply(&pod.to_string());
}

fn token(namespace: &Namespace, arguments: &[&str]) -> String {
    namespace.kubectl(&[&["create", "token", "default"], arguments].concat()).trim().to_owned()
}

fn gateway(namespace: &str, secret: &str) -> Value {
    json!({
        "subjectAltNames": ["nginx.ingress.cluster.local"],
        "validityDuration": "24h",
        "secret": {"name": secret, "namespace": namespace},
    })
}

fn leaf(secret: &Value) -> String {
    secret["data"]["tls.crt"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_of_a_pod_in_the_mesh_gets_a_certificate_until_the_pod_is_gone_and_no_other_token_does() {
    let authority = AuthorityReplicas::start(1);
    let (namespace, outside) = (authority.meshed(), Namespace::new("ca-outside"));
    // Once the bundle is published, the authority knows the namespace.
    authority.bundle(&namespace);
    for namespace in [&namespace, &outside] {
        pod(namespace, "app");
    }
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=app"];
    let audience = format!("--audience=tidegate-ca-{}", authority.control_plane.name());
    let good = token(&namespace, &[&[audience.as_str()], &bound[..]].concat());
    let of_another_mesh = token(&namespace, &[&["--audience=tidegate-ca"], &bound[..]].concat());

    let leaf = authority.ask(1, &good).await.unwrap();
    let text =
        run(Command::new("openssl").args(["x509", "-noout", "-ext", "subjectAltName"]), &leaf).unwrap();
    let name = namespace.name();
    let own = format!("DNS:default.{name}.cluster.local, URI:spiffe://cluster.local/ns/{name}/sa/default");
    assert_eq!(text.lines().last().unwrap().trim(), own);

    let mut altered = good.clone();
    let last = altered.pop().unwrap();
    altered.push(if last == 'A' { 'B' } else { 'A' });
    altered.insert(altered.rfind('.').unwrap() + 1, 'A');
    let table = [
        ("the API server's audience", token(&namespace, &bound), "audience"),
        ("another mesh's audience", of_another_mesh, "audience"),
        ("no pod", token(&namespace, &[&audience]), "not bound to a pod"),
        ("altered", altered, "does not accept the token"),
    ];
    for (what, token, reason) in table {
        let status = authority.ask(1, &token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status}");
        assert!(status.message().contains(reason), "{what}: {status}");
    }

    let stranger = token(&outside, &[&[audience.as_str()], &bound[..]].concat());
    let status = authority.ask(1, &stranger).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("is not in the mesh"), "{status}");
    authority.label(&outside);
    authority.bundle(&outside);
    authority.ask(1, &stranger).await.unwrap();

    namespace.kubectl(&["delete", "pod", "app", "--force", "--grace-period=0"]);
    // Its successor of the same name is another pod.
    pod(&namespace, "app");
    let deadline = Instant::now() + TOKEN_MEMORY;
    let status = loop {
        match authority.ask(1, &good).await {
            Err(status) => break status,
            Ok(_) => assert!(Instant::now() < deadline, "the token outlives its pod"),
        }
    };
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let next = token(&namespace, &[&[audience.as_str()], &bound[..]].concat());
    authority.ask(1, &next).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_has_the_trust_bundle_as_long_as_it_is_in_the_mesh() {
    let authority = AuthorityReplicas::start(2);
    let namespace = Namespace::new("ca-app");
    authority.label(&namespace);
    assert_eq!(authority.bundle(&namespace), authority.bundle(&authority.control_plane));
    namespace.kubectl(&["delete", "configmap", &authority.bundle_name()]);
    let before = authority.bundle(&namespace);
    namespace.kubectl(&[
        "patch",
        "configmap",
        &authority.bundle_name(),
        "-p",
        "{\"data\":{\"ca.crt\":\"mine\"}}",
    ]);
    wait::until_true("the bundle is put back", ROLLOUT, || authority.bundle(&namespace) == before);

    // The namespace leaves the mesh: its bundle stays, and is kept up to date for sidecars that are still running.
    let label = "openservicemesh.io/monitored-by-";
    namespace.cluster().kubectl(["label", "namespace", namespace.name(), label]);
    assert_eq!(authority.replicas[0].admin_post("/rotation/next", "").unwrap().status(), 200);
    wait::until_true("both roots", ROLLOUT, || roots(&authority.bundle(&namespace)) == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_root_and_take_over_each_others_steps() {
    let authority = AuthorityReplicas::start(3);
    let rotation = |replica: usize| authority.replicas[replica].admin_json("/rotation");
    let first = rotation(0)["issuing_root"].clone();
    for replica in 0..3 {
        assert_eq!(rotation(replica)["issuing_root"], first);
    }
    let namespace = authority.meshed();
    for (step, taken_by, trusted) in [("trust-both", 0, 2), ("issue-new", 1, 2)] {
        let path = if step == "issue-new" { "/rotation/next?force=true" } else { "/rotation/next" };
        assert_eq!(authority.replicas[taken_by].admin_post(path, "").unwrap().status(), 200);
        wait::until_true("every replica has taken it over", ROLLOUT, || {
            (0..3).all(|replica| rotation(replica)["step"] == step)
        });
        assert_eq!(rotation(2)["trusted_roots"].as_array().unwrap().len(), trusted);
        assert_eq!(rotation(2)["required_roots"], rotation(taken_by)["required_roots"]);
        wait::until_true("the bundle follows", ROLLOUT, || roots(&authority.bundle(&namespace)) == trusted);
    }
    assert_ne!(rotation(2)["issuing_root"], first);
    let early = authority.replicas[2].admin_post("/rotation/next", "").unwrap();
    assert_eq!(early.status(), 409, "certificates under the old root are still in use");
}

/// Requests a Secret whose name another object has, one in a missing namespace, and an invalid duration. The Secret
/// `client` of `namespace` stays until another one is written, which is in the namespace that is returned.
fn assert_errors_are_in_the_status(authority: &AuthorityReplicas, namespace: &Namespace) -> Namespace {
    let secret =
        |name: &str| namespace.wait_for("the Secret", &["secret", name], |secret| Some(secret.clone()));
    namespace.kubectl(&["create", "secret", "generic", "taken", "--from-literal=a=b"]);
    authority.mesh_config(&gateway(namespace.name(), "taken"));
    authority.wait_for_condition("False", "is there with type \"Opaque\"");
    assert_eq!(secret("taken")["data"]["a"], "Yg==");
    secret("client");
    let absent = format!("{}-late", namespace.name());
    authority.mesh_config(&gateway(&absent, "client"));
    authority.wait_for_condition("False", &format!("namespaces \"{absent}\" not found"));
    let late = Namespace::named(&absent);
    late.wait_for("the Secret", &["secret", "client"], |_| Some(()));
    authority.wait_for_condition("True", "holds a certificate until");
    namespace.cluster().wait_until_gone(&["-n", namespace.name(), "secret", "client"]);
    let mut soon = gateway(&absent, "client");
    soon["validityDuration"] = json!("soon");
    authority.mesh_config(&soon);
    authority.wait_for_condition("False", "spec.certificate.ingressGateway.validityDuration: \"soon\"");
    late.get_json(&["secret", "client"]);
    late
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_secret_is_kept_in_place_and_its_errors_are_in_the_status() {
    let authority = AuthorityReplicas::start(2);
    let namespace = Namespace::new("ca-ingress");
    let secret =
        |name: &str| namespace.wait_for("the Secret", &["secret", name], |secret| Some(secret.clone()));
    authority.mesh_config(&Value::Null);
    authority.wait_for_condition("Unknown", "no certificate is configured");
    authority.mesh_config(&gateway(namespace.name(), "client"));
    // As documented: when this returns, the Secret exists.
    authority.control_plane.kubectl(&[
        "wait",
        "meshconfig/osm-mesh-config",
        "--for=condition=IngressGatewayReady",
        "--timeout=60s",
    ]);
    namespace.get_json(&["secret", "client"]);
    let first = secret("client");
    assert_eq!(first["type"], "kubernetes.io/tls");
    let keys: Vec<_> = first["data"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["ca.crt", "tls.crt", "tls.key"]);
    authority.wait_for_condition("True", "holds a certificate until");

    // Updated in place, with what others have added, and with a new leaf where the roots change.
    namespace.kubectl(&["label", "secret", "client", "team=a"]);
    namespace.kubectl(&["annotate", "secret", "client", "note=b"]);
    assert_eq!(authority.replicas[0].admin_post("/rotation/next", "").unwrap().status(), 200);
    let rotated = namespace.wait_for("a new leaf", &["secret", "client"], |secret| {
        (leaf(secret) != leaf(&first)).then(|| secret.clone())
    });
    assert_ne!(rotated["data"]["ca.crt"], first["data"]["ca.crt"], "one write brings both");
    assert_eq!(rotated["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(rotated["metadata"]["labels"]["team"], "a");
    assert_eq!(rotated["metadata"]["annotations"]["note"], "b");

    namespace.kubectl(&["delete", "secret", "client", "--wait=false"]);
    let put_back = namespace.wait_for("another Secret", &["secret", "client"], |secret| {
        (secret["metadata"]["uid"] != first["metadata"]["uid"]).then(|| secret.clone())
    });
    assert_eq!(put_back["data"]["ca.crt"], rotated["data"]["ca.crt"]);

    let late = assert_errors_are_in_the_status(&authority, &namespace);
    authority.mesh_config(&Value::Null);
    late.cluster().wait_until_gone(&["-n", late.name(), "secret", "client"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_of_the_users_own_is_used_and_another_one_begins_a_rotation() {
    let authority = AuthorityReplicas::start(2);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let arguments = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=own -keyout {} -out {}",
        path("ca.key"),
        path("ca.crt")
    );
    run(Command::new("openssl").args(arguments.split(' ')), "").unwrap();
    let secret = authority.control_plane.kubectl(&[
        "create",
        "secret",
        "generic",
        "tidegate-ca-bundle",
        "--dry-run=client",
        "--output=json",
        &format!("--from-file=ca.crt={}", path("ca.crt")),
        &format!("--from-file=private.key={}", path("ca.key")),
    ]);
    let cluster = authority.control_plane.cluster();
    cluster.try_kubectl(["-n", authority.control_plane.name(), "replace", "-f", "-"], &secret).unwrap();
    wait::until_true("both replicas trust it", ROLLOUT, || {
        authority.replicas.iter().all(|replica| replica.admin_json("/rotation")["step"] == "trust-both")
    });
    let own = std::fs::read_to_string(path("ca.crt")).unwrap();
    let own: String = own.lines().filter(|line| !line.starts_with('-')).collect();
    wait::until_true("the bundle holds it", ROLLOUT, || {
        authority.bundle(&authority.control_plane).replace('\n', "").contains(&own)
    });
    assert_eq!(authority.replicas[1].admin_post("/rotation/next?force=true", "").unwrap().status(), 200);
    let issuing = &authority.replicas[1].admin_json("/rotation")["issuing_root"];
    wait::until_true("the other one issues by it too", ROLLOUT, || {
        authority.replicas[0].admin_json("/rotation")["issuing_root"] == *issuing
    });
}
