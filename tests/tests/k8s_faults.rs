//! Faults of Open Service Mesh on a real cluster; each test shows that Tidegate does not have one of them.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::{Pod, PodOutcome};
use tidegate_tests::kubernetes::workload::Workload;
use tidegate_tests::wait;

const SECRET: &str = "faults-gateway";
const PRINCIPAL: &str = "ingress-nginx.ingress-nginx.cluster.local";

/// The ingress controllers' client certificate and trusted roots, both PEM.
struct GatewaySecret {
    credentials: String,
    roots: String,
}

impl GatewaySecret {
    fn read() -> Self {
        let mesh = Mesh::get();
        mesh.patch_config(&json!({"certificate": {"ingressGateway": {
            "secret": {"name": SECRET, "namespace": CONTROL_PLANE},
            "subjectAltNames": [PRINCIPAL],
            "validityDuration": "24h",
        }}}));
        let text = |secret: &Value, key: &str| {
            let bytes = BASE64_STANDARD.decode(secret["data"][key].as_str()?).unwrap();
            Some(String::from_utf8(bytes).unwrap())
        };
        mesh.cluster().wait_for("the gateway's Secret", &["secret", SECRET, "-n", CONTROL_PLANE], |secret| {
            let credentials = text(secret, "tls.crt")? + &text(secret, "tls.key")?;
            Some(Self { credentials, roots: text(secret, "ca.crt")? })
        })
    }

    /// GET over TLS, as an ingress controller in `from`; `more` are further arguments of the test app.
    fn get(&self, from: &Pod, target: &str, namespace: &Namespace, more: &[&str]) -> PodOutcome {
        let name = format!("server.{}.cluster.local", namespace.name());
        // A value that begins with dashes, like PEM, must be in one argument with its flag.
        let roots = format!("--roots={}", self.roots);
        let credentials = format!("--credentials={}", self.credentials);
        let arguments = ["tls", target, &roots, "--expect", &name, &credentials];
        PodOutcome::of(&from.ask(&[&arguments, more].concat()))
    }
}

/// An httpbin with two ports in the mesh, and a pod outside of it.
struct Scene {
    meshed: Namespace,
    _outside: Namespace,
    server: Pod,
    client: Pod,
}

impl Scene {
    fn start() -> Self {
        Mesh::get();
        let (meshed, outside) = (Namespace::meshed("faults"), Namespace::new("outside"));
        Workload::new("server", &["serve", "--http=14001,14002"])
            .port("http", 14001, 14001)
            .port("http-two", 14002, 14002)
            .ready_over_http(14001)
            .deploy(&meshed);
        Workload::client("client").deploy(&outside);
        let (server, client) = (meshed.pod("server"), outside.pod("client"));
        Self { meshed, _outside: outside, server, client }
    }

    fn address(&self, port: u16) -> String {
        format!("{}:{port}", self.server.ip())
    }

    fn policy(&self, name: &str, backends: &[Value], sources: &[Value]) {
        let policy = json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1",
            "kind": "IngressBackend",
            "metadata": {"name": name},
            "spec": {"backends": backends, "sources": sources},
        });
        self.meshed.apply(&policy.to_string());
        let (state, reason) = self.meshed.policy_status(name);
        assert_eq!(state, "committed", "{name}: {reason}");
    }
}

fn backend(service: &str, port: u16, protocol: &str) -> Value {
    json!({"name": service, "port": {"number": port, "protocol": protocol}})
}

fn principal(name: &str) -> Value {
    json!({"kind": "AuthenticatedPrincipal", "name": name})
}

fn anywhere() -> Value {
    json!({"kind": "IPRange", "name": "0.0.0.0/0"})
}

#[test]
fn a_policy_for_one_port_of_a_pod_opens_no_other() {
    let secret = GatewaySecret::read();
    let scene = Scene::start();
    scene.policy("open", &[backend("server", 14001, "http")], &[anywhere()]);
    scene.policy("closed", &[backend("server", 14002, "https")], &[principal("somebody.else.cluster.local")]);
    scene.client.get_until(&format!("http://{}/get", scene.address(14001)), 200);
    wait::until_true("the policy of the second port is there", Duration::from_secs(30), || {
        secret.get(&scene.client, &scene.address(14002), &scene.meshed, &[]).status() == 403
    });
    let plain = scene.client.get(&format!("http://{}/get", scene.address(14002)));
    assert_eq!(plain, PodOutcome::Refused("reset".to_owned()));
    scene.policy("closed", &[backend("server", 14002, "https")], &[principal(PRINCIPAL)]);
    wait::until_true("the right principal comes in", Duration::from_secs(30), || {
        secret.get(&scene.client, &scene.address(14002), &scene.meshed, &[]).status() == 200
    });
}

#[test]
fn the_gateways_certificate_opens_nothing_but_what_its_policies_say() {
    let secret = GatewaySecret::read();
    let scene = Scene::start();
    // Mesh peers are admitted at these ports: permissive mode is on.
    let peer = Namespace::meshed("peer");
    Workload::client("client").deploy(&peer);
    for port in [14001, 14002] {
        let url = format!("http://server.{}:{port}/get", scene.meshed.name());
        peer.pod("client").get_until(&url, 200);
    }
    let in_mesh = format!("server.{}.svc.cluster.local", scene.meshed.name());
    let host = format!("server.{}:14001", scene.meshed.name());
    // With and without the names that a mesh peer sends.
    let ask = |port: u16, alpn: &str| {
        let named = ["--alpn", alpn, "--server-name", &in_mesh, "--host", &host];
        [&named[..2], &named].map(|more| secret.get(&scene.client, &scene.address(port), &scene.meshed, more))
    };
    let statuses = |port: u16, alpn: &str| ask(port, alpn).map(|outcome| outcome.status());
    let resets = [(); 2].map(|()| PodOutcome::Refused("reset".to_owned()));
    let mesh_is_closed = |port: u16| {
        // HTTP gets an answer; opaque bytes can only be cut off.
        assert_eq!(statuses(port, "tidegate/h1"), [403; 2], "{port}");
        assert_eq!(ask(port, "tidegate/tcp"), resets, "{port}");
    };

    let all = ["http/1.1", "osm"];
    scene.policy("ours", &[backend("server", 14001, "https")], &[principal("somebody.else.cluster.local")]);
    wait::until_true("the policy is there and admits another principal", Duration::from_secs(30), || {
        all.iter().all(|alpn| statuses(14001, alpn) == [403; 2])
    });
    mesh_is_closed(14001);
    // The same certificate with the same request is admitted as soon as the policy allows it, and on no other path or
    // port.
    scene.policy("ours", &[backend("server", 14001, "https")], &[principal(PRINCIPAL)]);
    wait::until_true("the policy admits the gateway", Duration::from_secs(30), || {
        all.iter().all(|alpn| statuses(14001, alpn) == [200; 2])
    });
    mesh_is_closed(14001);
    for alpn in all {
        assert_eq!(ask(14002, alpn), resets, "{alpn}");
    }
    mesh_is_closed(14002);
}

#[test]
fn two_services_of_one_port_may_both_have_a_policy_and_changes_of_it_count() {
    let scene = Scene::start();
    let twin = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "twin"},
        "spec": {"selector": {"app": "server"}, "ports": [{"name": "http", "port": 14001, "targetPort": 14001}]},
    });
    scene.meshed.apply(&twin.to_string());
    let backends = [backend("server", 14001, "http"), backend("twin", 14001, "http")];
    scene.policy("both", &backends, &[anywhere()]);
    let url = format!("http://{}/get", scene.address(14001));
    scene.client.get_until(&url, 200);
    scene.policy("both", &backends, &[json!({"kind": "IPRange", "name": "192.0.2.0/24"})]);
    wait::until_true("the change counts", Duration::from_secs(30), || {
        scene.client.get(&url) == PodOutcome::Refused("reset".to_owned())
    });
}
