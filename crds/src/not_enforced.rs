//! Kinds of other meshes that Tidegate does not enforce: those of Open Service Mesh and osm-edge, of the Service Mesh
//! Interface, and of Istio. An object of such a kind has no effect, and produces a warning.

/// API groups, each with its kinds and the effect that does not happen.
const GROUPS: [(&str, &[(&str, &str)]); 16] = [
    (
        "policy.openservicemesh.io",
        &[
            ("Egress", ""),
            ("EgressGateway", "traffic leaves the mesh from each Pod itself"),
            ("UpstreamTrafficSetting", ""),
            ("Retry", ""),
            ("Telemetry", "the MeshConfig and flags configure logs and metrics"),
            ("AccessControl", "it has no effect: use an IngressBackend, which has the same fields"),
            ("AccessCert", "no certificate is issued: use the MeshConfig's certificate.ingressGateway"),
            ("IngressBackend", ""),
        ],
    ),
    (
        "config.openservicemesh.io",
        &[
            ("MeshRootCertificate", "the Secret tidegate-ca-bundle holds the root"),
            ("MultiClusterService", "a mesh is limited to one cluster"),
            ("ExtensionService", "no external service is called"),
            ("MeshConfig", ""),
        ],
    ),
    ("access.smi-spec.io", &[("TrafficTarget", ""), ("IdentityBinding", "name ServiceAccounts instead")]),
    ("specs.smi-spec.io", &[("HTTPRouteGroup", ""), ("TCPRoute", ""), ("UDPRoute", "UDP bypasses the mesh")]),
    ("split.smi-spec.io", &[("TrafficSplit", "")]),
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
            ("ServiceEntry", ""),
            ("VirtualService", "traffic goes to the Service that the client connects to"),
            ("DestinationRule", "its load balancing, limits and TLS settings are not enforced"),
            ("Gateway", "Tidegate runs no gateway: use your ingress controller"),
            ("Sidecar", "every sidecar can reach every Service"),
            ("WorkloadEntry", "workloads outside the cluster are not part of the mesh"),
            ("WorkloadGroup", "workloads outside the cluster are not part of the mesh"),
            ("EnvoyFilter", SIDECARS),
            ("ProxyConfig", SIDECARS),
        ],
    ),
    (
        "security.istio.io",
        &[
            ("AuthorizationPolicy", "it neither denies nor admits anything"),
            ("PeerAuthentication", "workloads of the mesh always use mutual TLS with each other"),
            ("RequestAuthentication", "request tokens are not verified"),
        ],
    ),
    ("telemetry.istio.io", &[("Telemetry", "the MeshConfig and flags configure logs and metrics")]),
    ("extensions.istio.io", &[("WasmPlugin", SIDECARS)]),
    ("install.istio.io", &[("IstioOperator", "it installs nothing")]),
    ("metrics.smi-spec.io", &[("TrafficMetrics", "sidecars have their own metrics")]),
];

const SIDECARS: &str = "Tidegate's sidecars do not support extensions";
const CLUSTERS: &str = "a mesh is limited to one cluster";
const EGRESS: &str = "workloads can reach destinations outside the mesh with and without it";
const RENAMED: &str = "Tidegate reads the group openservicemesh.io";

/// The effect that an object of this API group and kind requests and does not get; `None` if the kind is ours, or
/// belongs to no mesh.
pub fn effect(group: &str, kind: &str) -> Option<&'static str> {
    let (_, kinds) = GROUPS.iter().find(|(known, _)| *known == group)?;
    match kinds.iter().find(|(known, _)| *known == kind) {
        Some((_, "")) => None,
        Some((_, effect)) => Some(effect),
        None => Some("it has no effect"),
    }
}

/// Like [`effect`], for an `apiVersion` such as `networking.istio.io/v1`, as a sentence about an object of the kind.
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
            warning("policy.openservicemesh.io/v1alpha1", "EgressGateway").as_deref(),
            Some("EgressGateway is not enforced yet: traffic leaves the mesh from each Pod itself")
        );
        assert!(warning("networking.istio.io/v1beta1", "VirtualService").is_some());
        assert_eq!(
            warning("security.istio.io/v2", "Unheard").as_deref(),
            Some("Unheard is not enforced yet: it has no effect")
        );
        for (version, kind) in [
            ("policy.openservicemesh.io/v1alpha1", "IngressBackend"),
            ("policy.openservicemesh.io/v1alpha1", "UpstreamTrafficSetting"),
            ("config.openservicemesh.io/v1alpha2", "MeshConfig"),
            ("access.smi-spec.io/v1alpha3", "TrafficTarget"),
            ("specs.smi-spec.io/v1alpha4", "TCPRoute"),
            ("networking.istio.io/v1alpha3", "ServiceEntry"),
            ("tidegate.io/v1alpha1", "EgressProxy"),
            ("apps/v1", "Deployment"),
            ("gateway.networking.k8s.io/v1", "HTTPRoute"),
            ("v1", "Pod"),
        ] {
            assert_eq!(warning(version, kind), None, "{version} {kind}");
        }
    }
}
