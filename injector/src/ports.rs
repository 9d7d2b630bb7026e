//! The ports of a sidecar.

/// The admin server, on loopback.
pub(crate) const ADMIN: u16 = 15000;
/// The outbound listener, to which the Pod's own connections are redirected.
pub(crate) const OUTBOUND: u16 = 15001;
/// The inbound listener, to which connections from others are redirected.
pub(crate) const INBOUND: u16 = 15003;
/// Health and metrics.
pub(crate) const HEALTH: u16 = 15010;
/// Liveness probes of the app.
pub(crate) const LIVENESS: u16 = 15901;
/// Readiness probes of the app.
pub(crate) const READINESS: u16 = 15902;
/// Startup probes of the app.
pub(crate) const STARTUP: u16 = 15903;
/// Lifecycle hooks of the app.
pub(crate) const HOOKS: u16 = 15904;

/// Whether an app must not use a port.
pub(crate) fn is_reserved(port: u16) -> bool {
    [ADMIN, OUTBOUND, INBOUND, HEALTH, LIVENESS, READINESS, STARTUP, HOOKS].contains(&port)
}
