//! A cluster for tests: an API server on loopback, with stub admin servers behind the ports of its Pods.

use axum::Router;
use serde_json::{Value, json};
use tidegate_core::contract::ports;
use tidegate_kubernetes::fake_api::{FakeApi, RecordedRequest};
use tokio::net::TcpListener;

use super::client::Cluster;

/// The API paths of the kinds that tests use.
const KINDS: &[(&str, &str)] = &[
    ("Namespace", "v1/namespaces"),
    ("Pod", "v1/pods"),
    ("Service", "v1/services"),
    ("Secret", "v1/secrets"),
    ("ConfigMap", "v1/configmaps"),
    ("Event", "v1/events"),
    ("Node", "v1/nodes"),
    ("EndpointSlice", "discovery.k8s.io/v1/endpointslices"),
    ("Deployment", "apps/v1/deployments"),
    ("ReplicaSet", "apps/v1/replicasets"),
    ("Lease", "coordination.k8s.io/v1/leases"),
    ("PodDisruptionBudget", "policy/v1/poddisruptionbudgets"),
    ("IngressBackend", "policy.openservicemesh.io/v1alpha1/ingressbackends"),
    ("MeshConfig", "config.openservicemesh.io/v1alpha2/meshconfigs"),
    ("TrafficTarget", "access.smi-spec.io/v1alpha3/traffictargets"),
    ("TrafficSplit", "split.smi-spec.io/v1alpha4/trafficsplits"),
    ("HTTPRouteGroup", "specs.smi-spec.io/v1alpha4/httproutegroups"),
    ("TCPRoute", "specs.smi-spec.io/v1alpha4/tcproutes"),
    ("Retry", "policy.openservicemesh.io/v1alpha1/retries"),
    ("UpstreamTrafficSetting", "policy.openservicemesh.io/v1alpha1/upstreamtrafficsettings"),
    ("HTTPRoute", "gateway.networking.k8s.io/v1/httproutes"),
    ("GRPCRoute", "gateway.networking.k8s.io/v1/grpcroutes"),
    ("ServiceEntry", "networking.istio.io/v1/serviceentries"),
    ("EgressProxy", "tidegate.io/v1alpha1/egressproxies"),
    ("Egress", "policy.openservicemesh.io/v1alpha1/egresses"),
    ("EgressGateway", "policy.openservicemesh.io/v1alpha1/egressgateways"),
    ("CustomResourceDefinition", "apiextensions.k8s.io/v1/customresourcedefinitions"),
    ("MutatingWebhookConfiguration", "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
    ("ValidatingWebhookConfiguration", "admissionregistration.k8s.io/v1/validatingwebhookconfigurations"),
];

/// A running cluster.
pub(crate) struct TestCluster {
    pub(crate) api: FakeApi,
}

impl TestCluster {
    /// Starts with these objects, each with `kind` and `metadata`.
    pub(crate) async fn start(objects: Vec<Value>) -> Self {
        let fake = Self { api: FakeApi::start().await };
        objects.into_iter().for_each(|object| fake.put(object));
        fake
    }

    /// A client of it, for mesh `osm` with its control plane in `tidegate-system`.
    pub(crate) fn cluster(&self) -> Cluster {
        Cluster {
            client: self.api.client(),
            server: format!("http://{}", self.api.address()),
            control_plane: "tidegate-system".to_owned(),
            mesh_name: "osm".to_owned(),
        }
    }

    /// Serves port-forwards to a Pod's admin port with these routes.
    pub(crate) async fn admin(&self, pod: &str, routes: Router) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        self.api.forward(pod, ports::ADMIN, listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    }

    /// Adds an object, or replaces it.
    pub(crate) fn put(&self, object: Value) {
        let kind = object["kind"].as_str().unwrap().to_owned();
        self.api.apply(resource(&kind), object);
    }

    /// The current state of an object of the control plane's namespace, or of a cluster-scoped one.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Value {
        let places = ["", "tidegate-system"];
        places.iter().find_map(|place| self.api.get(resource(kind), place, name)).unwrap_or_default()
    }

    /// Removes an object.
    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.api.delete(resource(kind), namespace, name);
    }

    /// Every request that was not a read.
    pub(crate) fn changes(&self) -> Vec<RecordedRequest> {
        let requests = self.api.requests().into_iter();
        requests.filter(|request| !matches!(request.verb, "get" | "list" | "watch")).collect()
    }
}

fn resource(kind: &str) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).unwrap().1
}

/// A namespace with labels.
pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A running Pod of the control plane.
pub(crate) fn control_plane_pod(part: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "tidegate-system", "labels": {
            "app.kubernetes.io/name": part,
            "app.kubernetes.io/instance": "osm",
            "app.kubernetes.io/part-of": "tidegate",
        }},
        "spec": {"containers": [{"name": part, "image": format!("tidegate/{part}:0.1.0")}]},
        "status": {"phase": "Running"},
    })
}

/// A running Pod with a sidecar.
pub(crate) fn meshed_pod(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"tidegate.io/sidecar": "injected"}},
        "spec": {
            "containers": [{"name": "app", "image": "app:1"}],
            "initContainers": [
                {"name": "tidegate-sidecar", "image": "tidegate/sidecar:0.1.0", "restartPolicy": "Always"},
            ],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    })
}

/// A running Pod without a sidecar.
pub(crate) fn plain_pod(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.2"},
    })
}

/// An IngressBackend of namespace `namespace` that opens `port` of each of `services`.
pub(crate) fn ingress_backend(
    namespace: &str,
    name: &str,
    services: &[&str],
    port: u16,
    sources: Value,
) -> Value {
    let backends: Vec<Value> = services
        .iter()
        .map(|service| json!({"name": service, "port": {"number": port, "protocol": "http"}}))
        .collect();
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backends": backends, "sources": sources},
    })
}
