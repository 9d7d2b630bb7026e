//! TCP ports of a sidecar in a Pod, and of the control plane. Users have them in firewalls and manifests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The admin server of a sidecar or daemon, on loopback.
pub const ADMIN: u16 = 15000;
/// Sidecar: where the Pod's own connections are redirected to.
pub const OUTBOUND: u16 = 15001;
/// Sidecar: where connections from others are redirected to.
pub const INBOUND: u16 = 15003;
/// Sidecar: readiness, liveness and metrics, for kubelet and Prometheus.
pub const HEALTH: u16 = 15010;
/// Sidecar: liveness probes of the app.
pub const LIVENESS: u16 = 15901;
/// Sidecar: readiness probes of the app.
pub const READINESS: u16 = 15902;
/// Sidecar: startup probes of the app.
pub const STARTUP: u16 = 15903;
/// Sidecar: lifecycle hooks of the app.
pub const HOOKS: u16 = 15904;
/// Interception: for a moment, the target of the connection that verifies its rules.
pub const CHECK: u16 = 15905;

/// CA: its gRPC service.
pub const CA: u16 = 15012;
/// Controller: the policy stream.
pub const DISCOVERY: u16 = 15128;
/// Controller and injector: their webhooks.
pub const WEBHOOK: u16 = 9443;
/// Daemons: readiness, liveness and metrics, for kubelet and Prometheus.
pub const DAEMON_HEALTH: u16 = 9091;

/// Where the sidecar answers kubelet in place of the app.
pub const PROBES: [u16; 4] = [LIVENESS, READINESS, STARTUP, HOOKS];
/// Ports that others reach without redirection.
pub const NOT_REDIRECTED: [u16; 5] = [HEALTH, LIVENESS, READINESS, STARTUP, HOOKS];
/// Ports that an app with a sidecar must not use.
pub const RESERVED: [u16; 8] = [ADMIN, OUTBOUND, INBOUND, HEALTH, LIVENESS, READINESS, STARTUP, HOOKS];

/// The admin server's usual address.
pub const ADMIN_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN);
