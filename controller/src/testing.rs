//! Manifests for tests, and an index of them.

pub(crate) mod shop;

use serde_json::Value;

use crate::index::{Affected, Index};
use crate::object::Change;
use crate::object::stored::Stored;
use crate::source::folder::FolderSource;

/// The meshed workload of most tests: a Pod, and a Service whose own port is 80 and whose `targetPort` is 14001.
pub(crate) const HTTPBIN: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: httpbin-1, namespace: httpbin, labels: {app: httpbin}}
spec:
  serviceAccountName: httpbin
  containers: [{name: app, ports: [{name: web, containerPort: 14001}]}]
status: {podIP: 127.0.0.11}
---
apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: httpbin}
spec:
  selector: {app: httpbin}
  ports: [{name: http, port: 80, targetPort: 14001}]
";

/// A MeshConfig that admits mesh peers.
pub(crate) const PERMISSIVE: &str = r"
apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshConfig
metadata: {name: osm-mesh-config, namespace: tidegate-system}
spec: {traffic: {enablePermissiveTrafficPolicyMode: true}}
";

/// A MeshConfig that leaves mesh peers to TrafficTargets.
pub(crate) const NOT_PERMISSIVE: &str = r"
apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshConfig
metadata: {name: osm-mesh-config, namespace: tidegate-system}
spec: {traffic: {enablePermissiveTrafficPolicyMode: false}}
";

/// A TrafficTarget that lets `shop/buyer` get books from [`HTTPBIN`], and its HTTPRouteGroup.
pub(crate) const BOOKS: &str = r"
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: books, namespace: httpbin}
spec:
  destination: {kind: ServiceAccount, name: httpbin, namespace: httpbin}
  rules: [{kind: HTTPRouteGroup, name: books, matches: [get]}]
  sources: [{kind: ServiceAccount, name: buyer, namespace: shop}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: books, namespace: httpbin}
spec:
  matches:
  - {name: get, pathRegex: /books.*, methods: [GET]}
  - {name: all, pathRegex: '.*', methods: ['*']}
";

/// An ingress controller: a Service with two ready endpoints, one that is not ready, and one without the condition.
pub(crate) const GATEWAY: &str = r"
apiVersion: v1
kind: Service
metadata: {name: ingress-nginx-controller, namespace: ingress-nginx}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: ingress-nginx-controller-1
  namespace: ingress-nginx
  labels: {kubernetes.io/service-name: ingress-nginx-controller}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints:
- addresses: [127.0.0.2]
  conditions: {ready: true}
- addresses: [127.0.0.3]
  conditions: {ready: false}
- addresses: [127.0.0.4]
";

/// The sources that name [`GATEWAY`].
pub(crate) const FROM_GATEWAY: &str =
    "{kind: Service, name: ingress-nginx-controller, namespace: ingress-nginx}";

/// An IngressBackend in namespace `httpbin`; `backends` and `sources` are YAML lists without their brackets.
pub(crate) fn ingress_backend(name: &str, backends: &str, sources: &str) -> String {
    format!(
        "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: IngressBackend\n\
         metadata: {{name: {name}, namespace: httpbin}}\nspec: {{backends: [{backends}], sources: [{sources}]}}\n"
    )
}

/// A backend `httpbin:14001` with this protocol and more fields as YAML.
pub(crate) fn backend(protocol: &str, more: &str) -> String {
    format!("{{name: httpbin, port: {{number: 14001, protocol: {protocol}}}{more}}}")
}

/// An index of these documents, read through the folder source.
pub(crate) fn index(documents: &[&str]) -> Index {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    Index::of(FolderSource::new(folder.path()).load().changes)
}

/// Like [`index`], but of a cluster whose Pods are all known and whose namespaces are in the mesh `osm`.
pub(crate) fn cluster_index(documents: &[&str]) -> Index {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    let mut index = Index::for_mesh(Some("osm"));
    for change in FolderSource::new(folder.path()).load().changes {
        index.apply(change, &mut Affected::default());
    }
    index
}

/// An object of a custom resource as a cluster may have stored it, also one that cannot be read.
pub(crate) fn stored<K: Stored>(object: &Value) -> Change {
    Change::Apply { object: K::decode(&object.to_string(), "").unwrap(), origin: None }
}
