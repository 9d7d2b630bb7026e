//! The sidecar's ports in a pod. Users know them from their firewalls and manifests.

/// Where what the app dials is redirected.
pub const OUTBOUND: u16 = 15001;
/// Where what others dial is redirected.
pub const INBOUND: u16 = 15003;
/// `/ready`, `/live` and the metrics, for kubelet and Prometheus.
pub const HEALTH: u16 = 15010;
/// Rewritten probes: liveness, readiness, startup; and lifecycle hooks.
pub const PROBES: [u16; 4] = [15901, 15902, 15903, 15904];
