//! The ingress guide of Open Service Mesh, command by command, on a real cluster with a real nginx.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::run;
use tidegate_tests::kubernetes::ingress::{IngressNginx, SERVICE};
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::wait;

const NGINX: &str = "ingress-nginx";
const SECRET: &str = "osm-nginx-client-cert";
/// What the guide adds under `spec.certificate`.
const GATEWAY: &str = "    ingressGateway:
      secret:
        name: osm-nginx-client-cert
        namespace: <osm-namespace> # replace <osm-namespace> with the namespace where osm-edge is installed
      subjectAltNames:
      - ingress-nginx.ingress-nginx.cluster.local
      validityDuration: 24h
";
const COMMITTED: (&str, &str) = ("committed", "successfully committed by the system");

/// A manifest of the guide, with the guide's shell variables filled in.
fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/ingress-guide").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.replace("$nginx_ingress_namespace", NGINX).replace("$nginx_ingress_service", SERVICE)
}

/// The guide's state after its preparations: nginx outside the mesh, httpbin in it.
struct Guide {
    cluster: &'static Cluster,
    nginx: IngressNginx,
    httpbin: Namespace,
}

impl Guide {
    fn start() -> Self {
        let cluster = Mesh::get().cluster();
        // Another suite may have configured one.
        Mesh::get().patch_config(&json!({"certificate": {"ingressGateway": null}}));
        let nginx = IngressNginx::start(NGINX);
        cluster.tidegate(["namespace", "add", NGINX, "--mesh-name", "osm", "--disable-sidecar-injection"]);
        let httpbin = Namespace::named("httpbin");
        cluster.tidegate(["namespace", "add", "httpbin"]);
        httpbin.apply(&manifest("httpbin.yaml"));
        httpbin.wait_rolled_out("deployment/httpbin");
        Self { cluster, nginx, httpbin }
    }

    /// `kubectl apply` of one of the guide's files; nginx follows its Ingress, as the controller would.
    fn apply(&self, name: &str) {
        self.cluster.apply(&manifest(name));
        self.nginx.sync("httpbin", "httpbin");
    }

    /// Waits until an answer begins with this line; a policy takes effect within a second.
    fn expect(&self, line: &str, what: &str) -> Vec<String> {
        let mut last = Vec::new();
        wait::until_true(&format!("{what}: {line}, and not {last:?}"), Duration::from_secs(30), || {
            last = self.nginx.curl_head("/get");
            last.first().is_some_and(|first| first == line)
        });
        last
    }

    fn assert_committed(&self, what: &str) {
        let (state, reason) = self.httpbin.policy_status("httpbin");
        assert_eq!((state.as_str(), reason.as_str()), COMMITTED, "{what}");
    }

    /// `kubectl edit`, with an editor that types the guide's text.
    fn edit_mesh_config(&self) {
        let folder = tempfile::tempdir().unwrap();
        let (editor, block) = (folder.path().join("editor"), folder.path().join("block"));
        fs::write(&block, GATEWAY.replace("<osm-namespace>", CONTROL_PLANE)).unwrap();
        fs::write(&editor, format!("sed -i '/^  certificate:$/r {}' \"$1\"", block.display())).unwrap();
        let mut edit = self.cluster.command(self.cluster.kubectl_program());
        edit.args(["edit", "meshconfig", "osm-mesh-config", "-n", CONTROL_PLANE]);
        edit.env("KUBE_EDITOR", format!("sh {}", editor.display()));
        let said = run(&mut edit, "").unwrap_or_else(|failure| panic!("{failure}"));
        assert!(said.ends_with("meshconfig.config.openservicemesh.io/osm-mesh-config edited\n"), "{said}");
        let secret = ["secret", SECRET, "-n", CONTROL_PLANE];
        self.cluster.wait_for("the gateway's Secret", &secret, |secret| {
            assert_eq!(secret["type"], "kubernetes.io/tls");
            let keys: Vec<_> = secret["data"].as_object()?.keys().cloned().collect();
            (keys == ["ca.crt", "tls.crt", "tls.key"]).then_some(())
        });
    }
}

#[test]
fn the_guide_runs_as_written_and_nginx_may_move_while_its_label_is_gone() {
    let guide = Guide::start();
    let meshes = guide.cluster.tidegate(["mesh", "list"]);
    assert!(
        meshes.lines().any(|line| line.split_whitespace().take(2).eq(["osm", CONTROL_PLANE])),
        "{meshes}"
    );
    let pods = guide.cluster.kubectl(["get", "pods", "-n", "httpbin", "--no-headers"]);
    let columns: Vec<_> = pods.split_whitespace().collect();
    assert_eq!(columns[1..3], ["2/2", "Running"], "{pods}");
    let services = guide.cluster.kubectl(["get", "svc", "-n", "httpbin", "--no-headers"]);
    let columns: Vec<_> = services.split_whitespace().collect();
    assert_eq!([columns[0], columns[1], columns[4]], ["httpbin", "ClusterIP", "14001/TCP"], "{services}");

    // Without a policy every request is refused.
    let http = manifest("1-http.yaml");
    let (ingress, _) = http.split_once("\n---\n").unwrap();
    guide.cluster.apply(ingress);
    guide.nginx.sync("httpbin", "httpbin");
    guide.expect("HTTP/1.1 502 Bad Gateway", "no policy");
    assert!(guide.nginx.log().contains("recv() failed (104: Connection reset by peer)"));

    guide.apply("1-http.yaml");
    let answer = guide.expect("HTTP/1.1 200 OK", "http");
    for line in [
        "Content-Type: application/json",
        "Connection: keep-alive",
        "access-control-allow-origin: *",
        "access-control-allow-credentials: true",
    ] {
        assert!(answer.contains(&line.to_owned()), "{line}: {answer:?}");
    }
    guide.assert_committed("http");

    guide.edit_mesh_config();
    guide.apply("2-https.yaml");
    guide.expect("HTTP/1.1 200 OK", "https");
    guide.assert_committed("https");

    guide.apply("3-https-untrusted.yaml");
    let answer = guide.expect("HTTP/1.1 403 Forbidden", "untrusted");
    for line in ["Content-Type: text/plain", "Content-Length: 19", "Connection: keep-alive"] {
        assert!(answer.iter().any(|given| given.eq_ignore_ascii_case(line)), "{line}: {answer:?}");
    }
    assert_eq!(guide.nginx.curl(&[], "/get"), ["RBAC: access denied"]);
    guide.assert_committed("untrusted");

    guide.apply("4-https-skip.yaml");
    guide.expect("HTTP/1.1 200 OK", "skip");
    guide.assert_committed("skip");

    nginx_moves_while_its_label_is_gone(&guide);
    the_secret_comes_back(&guide);
}

/// In this case Open Service Mesh kept the old addresses permanently: label removed, pod replaced, label restored.
fn nginx_moves_while_its_label_is_gone(guide: &Guide) {
    guide.apply("2-https.yaml");
    guide.expect("HTTP/1.1 200 OK", "before the move");
    guide.nginx.restart();
    guide.nginx.sync("httpbin", "httpbin");
    guide.expect("HTTP/1.1 200 OK", "another address");

    guide.cluster.tidegate(["namespace", "remove", NGINX]);
    guide.nginx.restart();
    guide.nginx.sync("httpbin", "httpbin");
    guide.expect("HTTP/1.1 200 OK", "another address, its label gone");
    guide.cluster.tidegate(["namespace", "add", NGINX, "--disable-sidecar-injection"]);
    guide.nginx.sync("httpbin", "httpbin");
    guide.expect("HTTP/1.1 200 OK", "another address, its label gone and back");
    guide.assert_committed("another address, its label gone and back");
}

fn the_secret_comes_back(guide: &Guide) {
    let secret = ["secret", SECRET, "-n", CONTROL_PLANE];
    let old = guide.cluster.get_json(&secret)["metadata"]["uid"].clone();
    guide.cluster.kubectl([&["delete"], &secret[..]].concat());
    guide.cluster.wait_for("the Secret is put back", &secret, |secret| {
        (secret["metadata"]["uid"] != old).then_some(())
    });
    guide.nginx.sync("httpbin", "httpbin");
    guide.expect("HTTP/1.1 200 OK", "with the new Secret");
}
