//! The controller: it compiles objects into one policy per workload and streams that to the workload's sidecar.
//!
//! A [`source`] reads [`object`]s; `index` keeps them; `compile` joins everything that decides about one workload
//! into one policy and computes each object's status; `engine` compiles what a change affects; `proxy_health` probes the
//! proxies of EgressProxies; `publish` keeps the results by version; `discovery` streams them over mutual TLS, to each sidecar its own. The kinds of objects are the
//! table in `object/kinds.rs`. [`mod@explain`] answers why a connection is admitted or refused. Start reading at
//! [`Controller::start`].
//!
//! This crate may use Kubernetes' types; it never sees a request.

mod admin;
pub mod admission;
mod compile;
mod discovery;
mod engine;
pub mod explain;
mod index;
mod local_pod;
mod metrics;
pub mod object;
pub mod options;
mod proxy_health;
mod publish;
mod service;
mod serving;
pub mod source;
pub mod status;
#[cfg(test)]
mod testing;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tidegate_core::TrustDomain;
use tidegate_core::contract::names;
use tidegate_crds::MeshConfigSpec;
use tidegate_runtime::admin::AdminServerError;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::drain;
use tidegate_runtime::grpc::RefusedConnections;
use tidegate_runtime::identity::CertificatePage;
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::{Blocker, Readiness};
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::sync::{mpsc, watch};

pub use compile::bypasses_sidecar;
pub use index::Index;
pub use local_pod::LocalPod;
pub use status::{PolicyStatus, StatusWriter};

use admin::AdminServers;
use discovery::DiscoveryService;
use engine::{ControllerState, Engine};
use metrics::ControllerMetrics;
use publish::on_demand::OnDemand;
use publish::policies::PolicyStore;
use publish::store::Store;
use serving::DiscoveryTls;
use source::ObjectSource;
use status::StatusBoard;

/// The service account that the controller runs as. Sidecars expect it in the controller's certificate.
pub const SERVICE_ACCOUNT: &str = names::CONTROLLER;
/// The namespace that it runs in by default.
pub const NAMESPACE: &str = names::DEFAULT_CONTROL_PLANE;

/// How a controller runs.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Where sidecars connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the admin server listens; port 0 takes a free one.
    pub admin: SocketAddr,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// The most connections from sidecars at a time; one address may have a quarter of them.
    pub max_connections: usize,
    /// Whether a Pod has one of our sidecars, and so a policy. [`source::folder::is_workload`] for a folder.
    pub is_workload: fn(&Pod) -> bool,
    /// The name in the label of namespaces that belong to the mesh; without a name, all of them do.
    pub mesh_name: Option<String>,
    /// Where kubelet and Prometheus connect, also from other hosts; read-only.
    pub health: Option<SocketAddr>,
}

/// What a controller needs.
pub struct ControllerDependencies {
    /// Where objects come from.
    pub source: Box<dyn ObjectSource>,
    /// Where statuses go, besides the admin server.
    pub status_writers: Vec<Box<dyn StatusWriter>>,
    /// The controller's own certificate; sidecars are served once there is one.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// The roots that sidecars' certificates must chain to.
    pub trust_bundle: watch::Receiver<Arc<TrustBundle>>,
    /// Where the controller registers its metrics.
    pub metrics: Metrics,
    /// Blocked until every object is compiled and there is a certificate.
    pub readiness: Readiness,
    /// The log level, which the admin server can change.
    pub log: LogHandle,
}

/// Starts a controller; a running one is a [`ControllerHandle`].
#[derive(Debug)]
pub struct Controller;

/// A running controller. Dropping it starts the drain.
#[derive(Debug)]
pub struct ControllerHandle {
    /// Where sidecars connect.
    pub discovery_address: SocketAddr,
    /// Where the admin server listens.
    pub admin_address: SocketAddr,
    /// Where kubelet and Prometheus connect, if configured.
    pub health_address: Option<SocketAddr>,
    /// The MeshConfig in force, if there is one.
    pub mesh_config: watch::Receiver<Option<Arc<MeshConfigSpec>>>,
    /// The Pods of a folder that have one of our sidecars, sorted by namespace and name; empty on a cluster.
    pub pods: watch::Receiver<Arc<Vec<LocalPod>>>,
    trigger: drain::Trigger,
}

/// Why a controller failed to start.
#[derive(Debug, thiserror::Error)]
pub enum ControllerStartError {
    /// Cannot listen on the address for sidecars.
    #[error("discovery address {address}: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The admin server failed to start.
    #[error(transparent)]
    Admin(#[from] AdminServerError),
}

impl Controller {
    /// Binds both addresses and starts. Serves sidecars once there is a certificate. Requires a tokio runtime.
    pub async fn start(
        config: ControllerConfig,
        dependencies: ControllerDependencies,
    ) -> Result<ControllerHandle, ControllerStartError> {
        let ControllerDependencies {
            source,
            mut status_writers,
            credentials,
            trust_bundle,
            metrics,
            readiness,
            log,
        } = dependencies;
        let listen = |source| ControllerStartError::Listen { address: config.listen, source };
        let listener = tidegate_runtime::listen::bind(config.listen).await.map_err(listen)?;
        let discovery_address = listener.local_addr().map_err(listen)?;
        let own_metrics = ControllerMetrics::new(&metrics);
        let refused = RefusedConnections::register(&metrics);
        let shared = shared(&config, &own_metrics);
        let objects = readiness.block("objects");
        let certificate = readiness.block("certificate");
        let certificate_page = CertificatePage::default();
        certificate_page.follow(credentials.clone(), trust_bundle.clone());
        let routes = certificate_page.routes().merge(admin::routes(shared.clone()));
        let servers = AdminServers::bind(&config, routes, metrics, readiness, log).await?;
        let (admin_address, health_address) = servers.addresses();
        let (trigger, drain) = drain::channel();

        status_writers.push(Box::new(shared.statuses.clone()));
        let engine = Engine::new(shared.clone(), status_writers, own_metrics.clone(), objects);
        let (mesh_config, pods) = (engine.mesh_config(), engine.pods());
        let (health, probed) = watch::channel(Arc::default());
        tokio::spawn(until_drain(proxy_health::watch_proxies(engine.probes(), health), drain.clone()));
        // One batch may wait. Later changes accumulate in the next one, each object once.
        let (batches, receiver) = mpsc::channel(1);
        // Ends when the source does.
        tokio::task::spawn_blocking(move || engine.run(receiver, probed));
        tokio::spawn(until_drain(source.run(batches), drain.clone()));
        tokio::spawn(until_drain(hold_until_some(certificate, credentials.clone()), drain.clone()));
        let service = DiscoveryService::new(
            shared.workloads,
            shared.resources,
            config.trust_domain,
            trust_bundle.clone(),
            own_metrics,
            drain.clone(),
        );
        let tls = DiscoveryTls { credentials, trust_bundle };
        tokio::spawn(serving::serve(listener, tls, service, config.max_connections, refused, drain.clone()));
        servers.serve(&drain);
        Ok(ControllerHandle { discovery_address, admin_address, health_address, mesh_config, pods, trigger })
    }
}

/// An empty index and stores without a value: what the engine fills, and what pages and streams read.
fn shared(config: &ControllerConfig, metrics: &ControllerMetrics) -> ControllerState {
    let index = Arc::new(RwLock::new(Index::for_mesh(config.mesh_name.as_deref())));
    let store = Arc::<Store>::default();
    let resources = OnDemand::new(
        Arc::clone(&store),
        Arc::clone(&index),
        config.trust_domain.clone(),
        config.is_workload,
        metrics.destinations_left_out.clone(),
    );
    ControllerState {
        trust_domain: config.trust_domain.clone(),
        is_workload: config.is_workload,
        index,
        workloads: Arc::new(PolicyStore::new(store)),
        resources: Arc::new(resources),
        statuses: StatusBoard::default(),
        problems: Arc::default(),
    }
}

impl ControllerHandle {
    /// Ends every stream, so that sidecars connect to another replica, and waits until all have ended or the deadline
    /// has passed.
    pub async fn shutdown(self, deadline: Duration) -> drain::DrainOutcome {
        self.trigger.drain(deadline).await
    }
}

/// Drops the guard once there is a value.
async fn hold_until_some<T>(guard: Blocker, mut value: watch::Receiver<Option<T>>) {
    let _ = value.wait_for(Option::is_some).await;
    drop(guard);
}

async fn until_drain(work: impl Future<Output = ()>, mut drain: drain::Watch) {
    tokio::select! {
        () = work => {}
        () = drain.started() => {}
    }
}
