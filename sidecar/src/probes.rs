//! kubelet's probes of the app and its lifecycle hooks, which kubelet sends to the sidecar.
//!
//! kubelet has no mesh certificate, so the injector points its probes at ports of the sidecar. The path identifies one
//! probe of one container; the sidecar runs it against the app and returns the app's response. Nothing else of the app
//! can be reached this way: the paths are fixed at start, and those of hooks are secret.

mod parse;
mod redirect;
mod run;
mod server;
mod trust;

pub(crate) use server::ProbeBindError;
pub(crate) use server::ProbeServer;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Uri};

/// The probes of all containers.
#[derive(Clone, Debug, Default)]
pub struct Probes(pub Arc<[Probe]>);

/// One probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The sidecar's port that kubelet dials.
    pub port: u16,
    /// The path that kubelet requests.
    pub path: Box<str>,
    /// How long the app may take; without a limit, as long as kubelet waits.
    pub timeout: Option<Duration>,
    /// Whether it is a lifecycle hook. For kubelet, a hook fails only if there is no response, so the sidecar sends
    /// none.
    pub is_hook: bool,
    /// The check that is made of the app.
    pub target: ProbeTarget,
}

/// The check that is made of the app.
#[derive(Clone, Debug)]
pub enum ProbeTarget {
    /// An HTTP response.
    Http(HttpTarget),
    /// An accepted TCP connection.
    Tcp {
        /// The app's port.
        port: u16,
    },
    /// `SERVING` from `grpc.health.v1.Health/Check`.
    Grpc {
        /// The app's port.
        port: u16,
        /// Name of the service to check; empty for the whole server.
        service: Box<str>,
    },
}

/// A GET request.
#[derive(Clone, Debug)]
pub struct HttpTarget {
    /// Whether to use TLS. As with kubelet, no certificate is verified: the app is identified by its address.
    pub tls: bool,
    /// The app's port.
    pub port: u16,
    /// Path and query.
    pub path: Uri,
    /// Headers of the probe; `host` replaces the default.
    pub headers: HeaderMap,
}
