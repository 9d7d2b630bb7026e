//! A running certificate authority: its gRPC service, its admin pages and its background tasks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::contract::names;
use tidegate_core::{San, TrustDomain};
use tidegate_proto::istio_ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tidegate_runtime::admin::{AdminServer, AdminServerError, ProcessName};
use tidegate_runtime::grpc::{
    ConnectionLimits, HANDSHAKE_TIMEOUT, IncomingConnections, RefusedConnections, ServerStream,
};
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::trust_bundle::TrustBundle;
use tidegate_runtime::{drain, listen, tls};
use tokio::sync::watch;
use tonic::transport::Server;
use tracing::{error, info};

use crate::authenticate::Authenticator;
use crate::authority::{
    Advance, Authority, AuthorityError, GivenFiles, NewRoot, NotAllowed, RequiredNames, RotationStatus,
    RotationTiming,
};
use crate::check_schedule::CheckSchedule;
use crate::ingress_gateway::{GatewayDependencies, GatewayStatus, IngressGateway};
use crate::rate_limit::{RateLimit, RateLimiter};
use crate::rules::IssuingRules;
use crate::service::{CertificateService, MAX_CALLS, MAX_HEAD_BYTES, MAX_MESSAGE_BYTES, TokenFirst, WINDOW};
use crate::service_names::{ReservedNames, ServiceNames};
use crate::serving::{ServingCertificate, ServingError};
use crate::store::{BundlePublisher, RootStore};
use crate::telemetry::CaTelemetry;

#[cfg(test)]
mod tests;

/// The name of the process on its pages.
pub const PROCESS: ProcessName = ProcessName(names::CERT_MANAGER);

/// Maximum bytes of an answer: a leaf with its chain.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// Timeout of a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The usual lifetime of a connection. A client sends one request per half of a certificate's lifetime, so a connection
/// that stays longer only occupies a place.
pub const CONNECTION_AGE: Duration = Duration::from_secs(120);

/// Settings of a certificate authority.
#[derive(Debug, Clone)]
pub struct CertManagerConfig {
    /// Address of the gRPC service; port 0 selects a free one.
    pub listen: SocketAddr,
    /// Address of the admin server; `None` for no such server.
    pub admin: Option<SocketAddr>,
    /// Names in the service's own certificate, by which clients connect to it.
    pub serving_names: Vec<San>,
    /// The trust domain of identities.
    pub trust_domain: TrustDomain,
    /// Whether a root may be generated if none is stored.
    pub new_root: NewRoot,
    /// Lifetimes of certificates.
    pub rules: IssuingRules,
    /// Names of Services under which certain workloads serve.
    pub service_names: ServiceNames,
    /// How long workloads may take to read a published bundle. A rotation's steps wait for it.
    pub propagation: Duration,
    /// Limit of requests per identity.
    pub rate_limit: RateLimit,
    /// Maximum concurrent connections, a quarter of which may be from one address; further ones are closed.
    pub max_connections: usize,
    /// Lifetime of a connection, whatever is in progress on it; clients retry.
    pub connection_age: Duration,
}

/// Dependencies of a certificate authority.
pub struct CertManagerDependencies {
    /// Authenticates callers.
    pub authenticator: Arc<dyn Authenticator>,
    /// Keeps the root.
    pub root_store: Arc<dyn RootStore>,
    /// The user's own authority, if there is one.
    pub given: Option<GivenFiles>,
    /// Publish the trust bundle.
    pub publishers: Vec<Arc<dyn BundlePublisher>>,
    /// The ingress controller's certificate, if it can be configured.
    pub gateway: Option<GatewayDependencies>,
    /// Lifetime of workloads' certificates, if set at run time; limited by the rules.
    pub workload_life: watch::Receiver<Option<Duration>>,
    /// When to check the root's store and the publishers. Woken when the content of one may have changed.
    pub checks: CheckSchedule,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Readiness of the process, for its admin page.
    pub readiness: Readiness,
    /// Changes the log level, for the admin page.
    pub log: LogHandle,
}

/// Starts certificate authorities.
#[derive(Debug)]
pub struct CertManager;

/// A running certificate authority. Dropping it starts its shutdown; [`CertManagerHandle::drain`] also waits for the end.
#[derive(Debug)]
pub struct CertManagerHandle {
    grpc_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    authority: Authority,
    gateway: watch::Receiver<GatewayStatus>,
    trigger: drain::Trigger,
}

/// Why a certificate authority could not start.
#[derive(Debug, thiserror::Error)]
pub enum CertManagerStartError {
    /// The authority to issue with is missing.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It has no certificate of its own.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The admin server's address cannot be used.
    #[error(transparent)]
    Admin(#[from] AdminServerError),
    /// The gRPC service's address cannot be used.
    #[error("gRPC address {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
}

impl CertManager {
    /// Starts one. When this returns, it listens and has published the bundle.
    pub async fn start(
        config: CertManagerConfig,
        dependencies: CertManagerDependencies,
    ) -> Result<CertManagerHandle, CertManagerStartError> {
        tls::install_provider();
        let telemetry = CaTelemetry::register(&dependencies.metrics);
        let refused = RefusedConnections::register(&dependencies.metrics);
        let authority = open_authority(&config, &dependencies).await?;
        let serving = ServingCertificate::new(
            config.serving_names.clone(),
            config.rules,
            authority.states(),
            telemetry.clone(),
        )?;
        let bind = |source| CertManagerStartError::Bind { address: config.listen, source };
        let listener = listen::bind(config.listen).await.map_err(bind)?;
        let grpc_address = listener.local_addr().map_err(bind)?;

        let (trigger, watch) = drain::channel();
        let admin_address = match config.admin {
            Some(address) => Some(serve_admin(address, &dependencies, &authority, watch.clone()).await?),
            None => None,
        };
        let limits = ConnectionLimits::of(config.max_connections);
        let incoming = ServerStream::new(listener, serving.configs(), limits, HANDSHAKE_TIMEOUT)
            .proven_by_calls()
            .counted(refused)
            .start();
        let CertManagerDependencies { authenticator, gateway, workload_life, checks, .. } = dependencies;
        let (rules, connection_age) = (config.rules, config.connection_age);
        let service = certificate_service(config, &authority, workload_life.clone(), telemetry.clone());
        let service = TokenFirst { inner: limited(service), authenticator, telemetry: telemetry.clone() };
        tokio::spawn(serve(incoming, service, connection_age, watch.clone()));
        tokio::spawn(serving.run(watch.clone()));
        tokio::spawn(log_workload_life(workload_life, rules));
        tokio::spawn(telemetry.clone().summarize(watch.clone()));
        tokio::spawn(authority.clone().run(checks, watch.clone()));
        tokio::spawn(update_gauges(authority.clone(), telemetry.clone(), watch.clone()));

        let (status, gateway_status) = watch::channel(GatewayStatus::NotConfigured);
        if let Some(gateway) = gateway {
            let keeper = IngressGateway::new(gateway, authority.states(), rules, telemetry, status);
            tokio::spawn(keeper.run(watch));
        }
        info!(%grpc_address, admin_address = ?admin_address, "certificate authority listens");
        Ok(CertManagerHandle { grpc_address, admin_address, authority, gateway: gateway_status, trigger })
    }
}

/// Loads or creates the authority and publishes its bundle.
async fn open_authority(
    config: &CertManagerConfig,
    dependencies: &CertManagerDependencies,
) -> Result<Authority, AuthorityError> {
    Authority::open(
        dependencies.root_store.clone(),
        dependencies.given.clone(),
        dependencies.publishers.clone(),
        RotationTiming { propagation: config.propagation, max_life: config.rules.max_life },
        RequiredNames::new(&config.trust_domain, &config.serving_names, &config.service_names),
        config.new_root,
    )
    .await
}

/// Serves the admin pages until the drain starts, and returns where.
async fn serve_admin(
    address: SocketAddr,
    dependencies: &CertManagerDependencies,
    authority: &Authority,
    drain: drain::Watch,
) -> Result<SocketAddr, AdminServerError> {
    let CertManagerDependencies { metrics, readiness, log, .. } = dependencies;
    let server = AdminServer::new(PROCESS, metrics.clone(), readiness.clone(), log.clone())
        .merge(crate::admin::routes(authority.clone()))
        .bind(address)
        .await?;
    let address = server.local_addr();
    tokio::spawn(server.serve(drain));
    Ok(address)
}

/// The gRPC service, without the checks that come before a request's body.
fn certificate_service(
    config: CertManagerConfig,
    authority: &Authority,
    workload_life: watch::Receiver<Option<Duration>>,
    telemetry: Arc<CaTelemetry>,
) -> CertificateService {
    CertificateService {
        states: authority.states(),
        rules: config.rules,
        workload_life,
        reserved_names: ReservedNames::new(&config.serving_names, &config.service_names),
        service_names: config.service_names,
        limiter: RateLimiter::new(config.rate_limit),
        telemetry,
    }
}

/// The gRPC service with its limits of message sizes.
fn limited(service: CertificateService) -> IstioCertificateServiceServer<CertificateService> {
    IstioCertificateServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_ANSWER_BYTES)
}

/// Serves gRPC until the drain starts.
async fn serve(
    incoming: IncomingConnections,
    service: TokenFirst<IstioCertificateServiceServer<CertificateService>>,
    connection_age: Duration,
    mut stop: drain::Watch,
) {
    let server = Server::builder()
        .timeout(CALL_TIMEOUT)
        .max_concurrent_streams(MAX_CALLS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(MAX_HEAD_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_connection_age(connection_age)
        // It ends at once then; a graceful shutdown could leave it open.
        .max_connection_age_grace(Duration::ZERO)
        .add_service(service);
    if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.started()).await {
        error!(%error, "the gRPC service ended");
    }
}

impl CertManagerHandle {
    /// Where the gRPC service listens.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where the admin server listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The trusted roots now and after each change.
    pub fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.authority.bundle()
    }

    /// The state of the ingress controller's certificate. Without its sender if none can be configured.
    pub fn gateway_status(&self) -> watch::Receiver<GatewayStatus> {
        self.gateway.clone()
    }

    /// Takes the root rotation's next step.
    pub async fn rotate(&self, advance: impl Into<Advance>) -> Result<RotationStatus, NotAllowed> {
        self.authority.next(advance).await
    }

    /// The state of the root rotation.
    pub fn rotation(&self) -> RotationStatus {
        self.authority.status()
    }

    /// The authority itself.
    #[cfg(test)]
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Finishes the calls in progress and ends, after `deadline` at the latest.
    pub async fn drain(self, deadline: Duration) -> drain::DrainOutcome {
        self.trigger.drain(deadline).await
    }
}

/// Updates the authority's gauges.
async fn update_gauges(authority: Authority, telemetry: Arc<CaTelemetry>, mut drain: drain::Watch) {
    let (mut states, mut problems) = (authority.states(), authority.problems());
    loop {
        telemetry.authority(&states.borrow_and_update(), problems.borrow_and_update().is_some());
        tokio::select! {
            () = drain.started() => return,
            changed = states.changed() => if changed.is_err() { return },
            changed = problems.changed() => if changed.is_err() { return },
        }
    }
}

/// Logs the lifetime of workloads' certificates whenever MeshConfig changes it.
async fn log_workload_life(mut life: watch::Receiver<Option<Duration>>, rules: IssuingRules) {
    loop {
        let wanted = *life.borrow_and_update();
        if let Some(wanted) = wanted {
            let given = rules.of_workloads(Some(wanted)).default_life;
            let (wanted, given) = (humantime::format_duration(wanted), humantime::format_duration(given));
            info!(%wanted, %given, "life of workloads' certificates, which is --max-lifetime at most");
        }
        if life.changed().await.is_err() {
            return;
        }
    }
}
