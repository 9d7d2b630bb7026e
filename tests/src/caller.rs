//! App to app: a Service of the mesh, and a pod that calls it through two sidecars.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::client::Client;
use crate::daemon::Daemon;
use crate::mesh::{Mesh, Options, PORT};
use crate::wait::{self, SOON};

/// The Service's address: no host has it, but the sidecar knows the endpoints behind it.
pub const CLUSTER_IP: &str = "10.96.0.10:80";

/// A pod that calls the Service in front of `httpbin/httpbin`.
#[derive(Debug)]
pub struct CallerMesh {
    /// The Service's pod, and the control plane.
    pub mesh: Mesh,
    /// Name of the Service's port, which declares what it carries.
    pub port: &'static str,
    /// The calling pod's sidecar.
    pub caller: Daemon,
}

impl CallerMesh {
    /// The Service's port carries HTTP.
    pub fn start(options: Options) -> Self {
        Self::calling("http", options)
    }

    /// The Service's port has this name, which declares what it carries.
    pub fn calling(port: &'static str, options: Options) -> Self {
        let mut mesh = Mesh::with(options);
        let caller = mesh.caller(CLUSTER_IP);
        let mut story = Self { mesh, port, caller };
        let pod = story.mesh.target();
        story.endpoints(&[(pod, "httpbin")]);
        story.caller.start_ready();
        story
    }

    /// Sets the Service's endpoints, each with the Pod that it claims to be.
    pub fn endpoints(&mut self, endpoints: &[(SocketAddr, &str)]) {
        let port = self.port;
        let slices = endpoints.iter().enumerate().map(|(i, (address, pod))| slice(i, *address, pod, port));
        let documents: Vec<_> = [service(port)].into_iter().chain(slices).collect();
        self.mesh.apply("service", &documents);
    }

    /// The caller's app.
    pub fn app(&self) -> Client {
        Client::to(self.mesh.way_out())
    }

    /// The caller's sidecar's state for the Service's address.
    pub fn known(&self) -> Value {
        let config = self.caller.admin_json("/config");
        let destinations = config["destinations"].as_array().unwrap();
        destinations.iter().find(|known| known["address"] == CLUSTER_IP).cloned().unwrap_or_default()
    }

    /// Waits until the caller's sidecar knows these endpoints.
    pub fn wait_known(&self, endpoints: &[SocketAddr]) {
        wait::until_true("the caller's sidecar knows the endpoints", SOON, || {
            let known = self.known();
            let addresses = known["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
            addresses.len() == endpoints.len()
                && endpoints.iter().all(|e| addresses.iter().any(|a| a["address"] == e.to_string()))
        });
    }
}

/// The Service `httpbin/called`, with one port of this name.
pub fn service(port: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "called", "namespace": "httpbin"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": port, "port": 80, "targetPort": PORT}]},
    })
}

/// One of its slices, with one endpoint, which is this Pod of `httpbin`.
pub fn slice(number: usize, address: SocketAddr, pod: &str, port: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("called-{number}"),
            "namespace": "httpbin",
            "labels": {"kubernetes.io/service-name": "called"},
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [address.ip().to_string()],
            "targetRef": {"kind": "Pod", "name": pod, "namespace": "httpbin"},
        }],
        "ports": [{"name": port, "port": address.port()}],
    })
}
