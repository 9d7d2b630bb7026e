//! A mesh whose Service `httpbin` has limits, and peers that are subject to them.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::client::Client;
use crate::mesh::{Mesh, Options};
use crate::pki::Leaf;
use crate::wait::{self, SOON};

/// A port of bytes.
pub const TCP_PORT: u16 = 14002;
/// A port of gRPC.
pub const H2C_PORT: u16 = 14004;

/// Permissive mode; the sidecar has two workers, which share each limit.
pub fn mesh() -> Mesh {
    let ports = vec![(TCP_PORT, "tcp-echo"), (H2C_PORT, "grpc-api")];
    Mesh::with(Options { ports, sidecar_arguments: vec!["--workers=2".into()], ..Options::default() })
}

/// An UpstreamTrafficSetting; `spec` without its host.
pub fn setting(spec: Value) -> Value {
    let mut setting = json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "UpstreamTrafficSetting",
        "metadata": {"name": "limits", "namespace": "httpbin"},
        "spec": spec,
    });
    setting["spec"]["host"] = "httpbin.httpbin.svc.cluster.local".into();
    setting
}

/// An HTTPRouteGroup with this path.
pub fn group(path: &str) -> Value {
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "HTTPRouteGroup",
        "metadata": {"name": "books", "namespace": "httpbin"},
        "spec": {"matches": [{"name": "books", "pathRegex": path}]},
    })
}

/// The sidecar of a Pod of namespace `shop`, as its peer sees it.
pub fn peer(mesh: &Mesh, port: u16, protocol: &str) -> Client {
    let credentials = Arc::new(mesh.sign(&Leaf::workload("shop", "buyer")));
    let tls = mesh.tls().protocols(&[protocol]).credentials(credentials);
    Client::to(mesh.target_port(port)).from(mesh.stranger()).tls(tls)
}

/// `currentStatus` and `reason` of the UpstreamTrafficSetting.
pub fn status(mesh: &Mesh) -> [String; 2] {
    let policies = mesh.controller.admin_json("/policies");
    let found = policies.as_array().unwrap().iter().find(|policy| policy["kind"] == "UpstreamTrafficSetting");
    let found = found.unwrap_or_else(|| panic!("no status in {policies}"));
    [&found["currentStatus"], &found["reason"]].map(|text| text.as_str().unwrap_or_default().to_owned())
}

/// Waits until the sidecar's metrics have this line.
#[track_caller]
pub fn wait_metric(mesh: &Mesh, line: &str) {
    wait::until_true(line, SOON, || {
        let page = mesh.sidecar.admin_get("/metrics").unwrap();
        String::from_utf8_lossy(&page.body).contains(line)
    });
}
