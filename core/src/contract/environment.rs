//! Variables of several programs, or that a Pod's template sets.

/// The control plane's namespace.
pub const NAMESPACE: &str = "TIDEGATE_NAMESPACE";
/// The mesh's name.
pub const MESH_NAME: &str = "TIDEGATE_MESH_NAME";
/// A daemon's own Pod.
pub const POD_NAME: &str = "TIDEGATE_POD_NAME";
/// A daemon uses an API server instead of folders.
pub const KUBERNETES: &str = "TIDEGATE_KUBERNETES";
/// Address of the webhook.
pub const WEBHOOK_ADDRESS: &str = "TIDEGATE_WEBHOOK_ADDRESS";
/// Address for kubelet and Prometheus.
pub const HEALTH_ADDRESS: &str = "TIDEGATE_HEALTH_ADDRESS";
/// Address of the admin server.
pub const ADMIN_ADDRESS: &str = "TIDEGATE_ADMIN_ADDRESS";
/// The controller's address.
pub const DISCOVERY_ADDRESS: &str = "TIDEGATE_DISCOVERY_ADDRESS";
/// Roots of forward proxies with https, as PEM.
pub const PROXY_CA_BUNDLE: &str = "TIDEGATE_PROXY_CA_BUNDLE";
/// The CA makes a new root although there was one.
pub const NEW_ROOT: &str = "TIDEGATE_CA_NEW_ROOT";
/// The lifetime that a process requests for its certificate.
pub const CERTIFICATE_LIFETIME: &str = "TIDEGATE_CERTIFICATE_LIFETIME";
/// What to log.
pub const LOG_LEVEL: &str = "TIDEGATE_LOG_LEVEL";
/// Format of the access log.
pub const ACCESS_LOG_FORMAT: &str = "TIDEGATE_ACCESS_LOG_FORMAT";
/// File of the access log.
pub const ACCESS_LOG_FILE: &str = "TIDEGATE_ACCESS_LOG_FILE";
/// Data worker threads.
pub const WORKERS: &str = "TIDEGATE_WORKERS";
/// Maximum duration of a drain.
pub const DRAIN_TIMEOUT: &str = "TIDEGATE_DRAIN_TIMEOUT";
/// Where connections from others are redirected to, for the sidecar and for the interception step.
pub const INBOUND_PORT: &str = "TIDEGATE_INBOUND_PORT";
/// Where the app's own connections are redirected to, for the sidecar and for the interception step.
pub const OUTBOUND_PORT: &str = "TIDEGATE_OUTBOUND_PORT";
/// The Pod's addresses, separated by commas, from the downward API.
pub const POD_IPS: &str = "POD_IPS";
