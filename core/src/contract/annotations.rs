//! Annotations of namespaces, Pods, policies and the MeshConfig.

/// Namespace or Pod: whether to add a sidecar.
pub const SIDECAR_INJECTION: &str = "openservicemesh.io/sidecar-injection";
/// Namespace or Pod: whether Prometheus should scrape sidecars.
pub const METRICS: &str = "openservicemesh.io/metrics";
/// Namespace or Pod: `refuse` restricts a Pod's UDP to DNS servers.
pub const UDP: &str = "tidegate.io/udp";
/// Namespace or Pod: limits of the sidecar, as `<flag>=<value>` separated by commas.
pub const SIDECAR_LIMITS: &str = "tidegate.io/sidecar-limits";
/// Namespace or Pod: a resource limit or request of the sidecar; `limits-` or `requests-` and the resource follow.
pub const SIDECAR_RESOURCE: &str = "openservicemesh.io/sidecar-resource-";

/// Pod: inbound ports that bypass the sidecar.
pub const INBOUND_PORT_EXCLUSIONS: &str = "openservicemesh.io/inbound-port-exclusion-list";
/// Pod: outbound ports that bypass the sidecar.
pub const OUTBOUND_PORT_EXCLUSIONS: &str = "openservicemesh.io/outbound-port-exclusion-list";
/// Pod: outbound ranges that bypass the sidecar.
pub const OUTBOUND_RANGE_EXCLUSIONS: &str = "openservicemesh.io/outbound-ip-range-exclusion-list";
/// Pod: the only outbound ranges that go through the sidecar.
pub const OUTBOUND_RANGE_INCLUSIONS: &str = "openservicemesh.io/outbound-ip-range-inclusion-list";

/// Pod, with `tidegate standalone`: the app's address, if it is not the Pod's.
pub const APP_ADDRESS: &str = "tidegate.io/app-address";
/// Pod, with `tidegate standalone`: where the app reaches destinations, as `LISTEN=DESTINATION` separated by commas.
pub const OUTBOUND: &str = "tidegate.io/outbound";

/// TrafficTarget, UpstreamTrafficSetting, Egress, and MeshConfig for its external authorization: `true` reports what would be
/// refused, without refusing it.
pub const AUDIT: &str = "tidegate.io/audit";

/// MeshConfig: more namespaces for the ingress controller's certificate.
pub const GATEWAY_NAMESPACES: &str = "tidegate.io/ingress-gateway-namespaces";
/// MeshConfig: a selector of more namespaces for the ingress controller's certificate.
pub const GATEWAY_NAMESPACE_SELECTOR: &str = "tidegate.io/ingress-gateway-namespace-selector";
/// MeshConfig: the name of a second Secret, with the roots alone.
pub const GATEWAY_CA_SECRET: &str = "tidegate.io/ingress-gateway-ca-secret";
/// The root's Secret: where copies of the ingress controller's certificate are, so that they can be deleted.
pub const GATEWAY_SECRETS: &str = "tidegate.io/ingress-gateway-secrets";

/// Pod: whether Prometheus scrapes it.
pub const PROMETHEUS_SCRAPE: &str = "prometheus.io/scrape";
/// Pod: the port of its metrics.
pub const PROMETHEUS_PORT: &str = "prometheus.io/port";
/// Pod: the path of its metrics.
pub const PROMETHEUS_PATH: &str = "prometheus.io/path";
