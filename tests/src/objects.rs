//! Objects as tests write them.

use serde_json::{Map, Value, json};

/// The namespace and the Service of the ingress controller.
pub const GATEWAY: (&str, &str) = ("ingress-nginx", "ingress-nginx-controller");

/// An IngressBackend in namespace `httpbin`.
pub fn policy(name: &str, backends: &[Value], sources: &[Value]) -> Value {
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "IngressBackend",
        "metadata": {"name": name, "namespace": "httpbin"},
        "spec": {"backends": backends, "sources": sources},
    })
}

/// A backend of some protocol.
pub fn backend(service: &str, port: u16, protocol: &str) -> Value {
    json!({"name": service, "port": {"number": port, "protocol": protocol}})
}

/// A backend of protocol https.
pub fn https(service: &str, port: u16, skip: bool, sni_hosts: &[&str]) -> Value {
    let mut backend = backend(service, port, "https");
    let mut tls = json!({"skipClientCertValidation": skip});
    if !sni_hosts.is_empty() {
        tls["sniHosts"] = json!(sni_hosts);
    }
    backend["tls"] = tls;
    backend
}

/// The ingress controller's Service as a source.
pub fn gateway() -> Value {
    json!({"kind": "Service", "namespace": GATEWAY.0, "name": GATEWAY.1})
}

/// A principal as a source.
pub fn principal(name: &str) -> Value {
    json!({"kind": "AuthenticatedPrincipal", "name": name})
}

/// A range of addresses as a source.
pub fn range(cidr: &str) -> Value {
    json!({"kind": "IPRange", "name": cidr})
}

/// A Service of namespace `httpbin` that selects `app`; each port is (number, name), and the name determines the app's
/// protocol.
pub fn service(name: &str, app: &str, ports: &[(u16, &str)]) -> Value {
    let port = |(number, name): &(u16, &str)| json!({"name": name, "port": number, "targetPort": number});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "httpbin"},
        "spec": {"selector": {"app": app}, "ports": ports.iter().map(port).collect::<Vec<_>>()},
    })
}

/// A Pod of namespace `httpbin`, labelled `app`.
pub fn pod(name: &str, account: &str, address: &str, annotations: &[(&str, &str)]) -> Value {
    let annotations: Map<_, _> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "httpbin", "labels": {"app": name}, "annotations": annotations},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app"}]},
        "status": {"podIP": address},
    })
}

/// The EndpointSlice of the ingress controller's Service.
pub fn gateway_endpoints(addresses: &[String]) -> Value {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-1", GATEWAY.1),
            "namespace": GATEWAY.0,
            "labels": {"kubernetes.io/service-name": GATEWAY.1},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 80}],
    })
}

/// The ingress controller's namespace and Service.
pub(crate) fn gateway_service() -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GATEWAY.0}}),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": GATEWAY.1, "namespace": GATEWAY.0},
            "spec": {"ports": [{"name": "http", "port": 80}]},
        }),
    ]
}

/// A MeshConfig with permissive mode on or off.
pub fn mesh_config(permissive: bool) -> Value {
    json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2",
        "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "osm-system"},
        "spec": {"traffic": {"enablePermissiveTrafficPolicyMode": permissive}},
    })
}

/// The ServiceEntry of Istio's example "Using an External HTTPS Proxy", as users have it; `$PROXY_IP` and `$PROXY_PORT` are to
/// be filled in.
pub const COMPANY_PROXY: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: proxy
spec:
  hosts:
  - my-company-proxy.com # ignored
  addresses:
  - $PROXY_IP/32
  ports:
  - number: $PROXY_PORT
    name: tcp
    protocol: TCP
  location: MESH_EXTERNAL
  resolution: NONE
";
