//! kubelet's probes of the app, and its lifecycle hooks, asked for by kubelet at the sidecar.
//!
//! kubelet has no certificate of the mesh, so the injector points its probes at ports of the sidecar. Each names by its
//! path one probe of one container; we ask the app for it and answer with what the app said. Nothing else of the app
//! can be reached this way: the paths are those that were given at the start, and those of hooks are secrets.

mod ask;
mod parse;
mod redirect;
mod server;
mod trust;

pub use parse::ProbesError;
pub use server::ProbeBindError;
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
    /// The sidecar's port that kubelet comes to.
    pub port: u16,
    /// The path that kubelet asks for.
    pub path: Box<str>,
    /// How long the app may take; as long as kubelet waits, if there is no limit.
    pub timeout: Option<Duration>,
    /// A lifecycle hook, which to kubelet has failed only if there is no answer at all: then it gets none from us.
    pub is_hook: bool,
    /// What is asked of the app.
    pub target: Target,
}

/// What is asked of the app.
#[derive(Clone, Debug)]
pub enum Target {
    /// An answer of HTTP.
    Http(HttpTarget),
    /// That it accepts a connection.
    Tcp {
        /// The app's port.
        port: u16,
    },
    /// That `grpc.health.v1.Health/Check` says SERVING.
    Grpc {
        /// The app's port.
        port: u16,
        /// Name of the service that is asked about; empty for the whole.
        service: Box<str>,
    },
}

/// A GET.
#[derive(Clone, Debug)]
pub struct HttpTarget {
    /// Whether it goes over TLS. As with kubelet, no certificate is verified: the app is the peer by its address.
    pub tls: bool,
    /// The app's port.
    pub port: u16,
    /// Path and query.
    pub path: Uri,
    /// Headers that the probe asks for; `host` among them replaces ours.
    pub headers: HeaderMap,
}
