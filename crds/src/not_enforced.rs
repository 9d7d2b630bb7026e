//! Kinds of other meshes that Tidegate does not enforce: those of Open Service Mesh and osm-edge, of the Service Mesh
//! Interface, and of Istio. An object of one changes nothing, and its author is told so.

/// API groups, each with its kinds and what does not happen.
const GROUPS: [(&str, &[(&str, &str)]); 16] = [
    (
        "policy.openservicemesh.io",
        &[
            ("Egress", "workloads reach what is outside the mesh with and without it"),
            ("EgressGateway", "traffic leaves the mesh from each Pod itself"),
            ("UpstreamTrafficSetting", "its limits of connections and requests do not hold"),
            ("Retry", "nothing is sent twice"),
            ("Telemetry", "logs and metrics are as the MeshConfig and flags say"),
            ("AccessControl", "it opens nothing: write an IngressBackend, which has the same fields"),
            ("AccessCert", "no certificate is made: use the MeshConfig's certificate.ingressGateway"),
            ("IngressBackend", ""),
        ],
    ),
    (
        "config.openservicemesh.io",
        &[
            ("MeshRootCertificate", "the Secret tidegate-ca-bundle holds the root"),
            ("MultiClusterService", "a mesh is of one cluster"),
            ("ExtensionService", "no service outside is asked"),
            ("MeshConfig", ""),
        ],
    ),
    (
        "access.smi-spec.io",
        &[(
            "TrafficTarget",
            "with permissive mode every workload of the mesh is let in, and without it none is, whatever it says",
        )],
    ),
    (
        "specs.smi-spec.io",
        &[
            ("HTTPRouteGroup", "no policy of requests within the mesh looks at it"),
            ("TCPRoute", "no policy of connections within the mesh looks at it"),
            ("UDPRoute", "UDP does not pass the mesh"),
        ],
    ),
    ("split.smi-spec.io", &[("TrafficSplit", "traffic goes to the Service's own endpoints")]),
    ("plugin.flomesh.io", &[("Plugin", SIDECARS), ("PluginChain", SIDECARS), ("PluginConfig", SIDECARS)]),
    (
        "flomesh.io",
        &[("ServiceExport", CLUSTERS), ("ServiceImport", CLUSTERS), ("GlobalTrafficPolicy", CLUSTERS)],
    ),
    ("multicluster.x-k8s.io", &[("ServiceExport", CLUSTERS), ("ServiceImport", CLUSTERS)]),
    ("policy.flomesh.io", &[("IngressBackend", RENAMED), ("AccessControl", RENAMED), ("Egress", EGRESS)]),
    ("config.flomesh.io", &[("MeshConfig", RENAMED)]),
    (
        "networking.istio.io",
        &[
            ("ServiceEntry", "traffic to its hosts is passed on as it is"),
            ("VirtualService", "traffic goes to the Service that is dialled"),
            ("DestinationRule", "its balancing, limits and TLS settings do not hold"),
            ("Gateway", "Tidegate runs no gateway: your ingress controller is it"),
            ("Sidecar", "a sidecar knows every Service"),
            ("WorkloadEntry", "workloads outside the cluster are no part of the mesh"),
            ("WorkloadGroup", "workloads outside the cluster are no part of the mesh"),
            ("EnvoyFilter", SIDECARS),
            ("ProxyConfig", SIDECARS),
        ],
    ),
    (
        "security.istio.io",
        &[
            ("AuthorizationPolicy", "it keeps nobody out and lets nobody in"),
            ("PeerAuthentication", "workloads of the mesh always speak mutual TLS to each other"),
            ("RequestAuthentication", "no token of a request is verified"),
        ],
    ),
    ("telemetry.istio.io", &[("Telemetry", "logs and metrics are as the MeshConfig and flags say")]),
    ("extensions.istio.io", &[("WasmPlugin", SIDECARS)]),
    ("install.istio.io", &[("IstioOperator", "it installs nothing here")]),
    ("metrics.smi-spec.io", &[("TrafficMetrics", "sidecars have metrics of their own")]),
];

const SIDECARS: &str = "Tidegate's sidecars take no extensions";
const CLUSTERS: &str = "a mesh is of one cluster";
const EGRESS: &str = "workloads reach what is outside the mesh with and without it";
const RENAMED: &str = "Tidegate reads the group openservicemesh.io";

/// What does not happen although an object of this API group and kind asks for it; nothing if the kind is ours, or no
/// mesh's.
pub fn effect(group: &str, kind: &str) -> Option<&'static str> {
    let (_, kinds) = GROUPS.iter().find(|(known, _)| *known == group)?;
    match kinds.iter().find(|(known, _)| *known == kind) {
        Some((_, "")) => None,
        Some((_, effect)) => Some(effect),
        None => Some("it changes nothing"),
    }
}

/// [`effect`], by an `apiVersion` such as `networking.istio.io/v1`, as a sentence about an object of the kind.
pub fn warning(api_version: &str, kind: &str) -> Option<String> {
    let (group, _) = api_version.split_once('/')?;
    effect(group, kind).map(|effect| format!("{kind} is not enforced yet: {effect}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_other_meshes_say_what_does_not_happen_and_ours_and_kubernetes_own_say_nothing() {
        assert_eq!(
            warning("policy.openservicemesh.io/v1alpha1", "Retry").as_deref(),
            Some("Retry is not enforced yet: nothing is sent twice")
        );
        assert!(warning("networking.istio.io/v1beta1", "ServiceEntry").is_some());
        assert_eq!(
            warning("security.istio.io/v2", "Unheard").as_deref(),
            Some("Unheard is not enforced yet: it changes nothing")
        );
        for (version, kind) in [
            ("policy.openservicemesh.io/v1alpha1", "IngressBackend"),
            ("config.openservicemesh.io/v1alpha2", "MeshConfig"),
            ("apps/v1", "Deployment"),
            ("gateway.networking.k8s.io/v1", "HTTPRoute"),
            ("v1", "Pod"),
        ] {
            assert_eq!(warning(version, kind), None, "{version} {kind}");
        }
    }
}
