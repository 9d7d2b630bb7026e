//! One certificate authority, started: its gRPC service, its admin page and the tasks that keep things fresh.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::contract::names;
use tidegate_core::{San, TrustDomain};
use tidegate_proto::istio_ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tidegate_runtime::admin::{AdminError, AdminServer, ProcessName};
use tidegate_runtime::grpc::{ConnectionLimits, HANDSHAKE_TIMEOUT, RefusedConnections, ServerStream};
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::trust_bundle::TrustBundle;
use tidegate_runtime::{drain, listen, tls};
use tokio::sync::{Notify, watch};
use tonic::transport::Server;
use tracing::{error, info};

use crate::authenticate::Authenticator;
use crate::authority::{
    Advance, Authority, AuthorityError, GivenFiles, NewRoot, NotAllowed, RequiredNames, RotationStatus,
    RotationTiming,
};
use crate::ingress_gateway::{GatewayStatus, IngressGateway, IngressGatewaySettings};
use crate::rate_limit::{RateLimit, RateLimiter};
use crate::rules::IssuingRules;
use crate::service::{CertificateService, MAX_CALLS, MAX_HEAD_BYTES, MAX_MESSAGE_BYTES, TokenFirst, WINDOW};
use crate::service_names::{ReservedNames, ServiceNames};
use crate::serving::{ServingCertificate, ServingError};
use crate::store::{BundlePublisher, RootStore, SecretStore};
use crate::telemetry::Telemetry;

#[cfg(test)]
mod tests;

/// What the process is called on its pages.
pub const PROCESS: ProcessName = ProcessName(names::CERT_MANAGER);

/// The most bytes of an answer: a leaf with its chain.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may live unless there is a reason for another limit. A client asks once in half a certificate's
/// life: one that stays longer holds a place for nothing.
pub const CONNECTION_AGE: Duration = Duration::from_secs(120);

/// How a certificate authority behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the gRPC service listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the admin server listens, if there is to be one.
    pub admin: Option<SocketAddr>,
    /// Names that the service's own certificate holds: what clients call it by.
    pub serving_names: Vec<San>,
    /// Where identities end.
    pub trust_domain: TrustDomain,
    /// Whether a root may be made where none is stored.
    pub new_root: NewRoot,
    /// How long certificates live.
    pub rules: IssuingRules,
    /// Names of Services that certain workloads serve under.
    pub service_names: ServiceNames,
    /// How long everybody may take to read a bundle that was published. A rotation's steps wait for it.
    pub propagation: Duration,
    /// How often one identity may ask.
    pub rate_limit: RateLimit,
    /// Connections at once; beyond them, or a quarter of them from one address, new ones are closed.
    pub max_connections: usize,
    /// How long one of them may live, whatever is in progress on it then: its client asks again.
    pub connection_age: Duration,
}

/// What a certificate authority stands on.
pub struct Dependencies {
    /// Judges callers.
    pub authenticator: Arc<dyn Authenticator>,
    /// Keeps the root.
    pub root_store: Arc<dyn RootStore>,
    /// The user's own authority, if there is one.
    pub given: Option<GivenFiles>,
    /// Make the trust bundle known.
    pub publishers: Vec<Arc<dyn BundlePublisher>>,
    /// The ingress controller's certificate, if anybody may ask for one.
    pub gateway: Option<GatewayDependencies>,
    /// How long workloads' certificates are to live, if anybody says so at run time; never longer than the rules say.
    pub workload_life: watch::Receiver<Option<Duration>>,
    /// Poked when something that the root's store or a publisher holds may have changed: then it is looked at at once,
    /// otherwise each second.
    pub wake: Arc<Notify>,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Whether the process may be sent work, for its admin page.
    pub readiness: Readiness,
    /// Steers the process' logs from the admin page.
    pub log: LogHandle,
}

/// What the ingress controller's certificate stands on.
pub struct GatewayDependencies {
    /// What the user wants now; `None` when nothing.
    pub settings: watch::Receiver<Option<IngressGatewaySettings>>,
    /// Where the certificate goes.
    pub store: Arc<dyn SecretStore>,
    /// Whether this process is the one of several to act, and knows the settings. What is there stays while it is not.
    pub active: watch::Receiver<bool>,
    /// Poked when the Secret may have changed: then it is looked at at once, otherwise after `interval`.
    pub wake: Arc<Notify>,
    /// How often Secrets and the wall clock are looked at in any case: [`LOOK_INTERVAL`].
    pub interval: Duration,
}

/// [`GatewayDependencies::interval`], unless there is a reason for another one.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl std::fmt::Debug for GatewayDependencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayDependencies").field("active", &*self.active.borrow()).finish_non_exhaustive()
    }
}

impl GatewayDependencies {
    /// For a process that has the store to itself.
    pub fn alone(
        settings: watch::Receiver<Option<IngressGatewaySettings>>,
        store: Arc<dyn SecretStore>,
    ) -> Self {
        // The sender goes: it stays true.
        Self {
            settings,
            store,
            active: watch::channel(true).1,
            wake: Arc::default(),
            interval: LOOK_INTERVAL,
        }
    }
}

/// Starts certificate authorities.
#[derive(Debug)]
pub struct CertManager;

/// A certificate authority that runs. Dropping it starts its end; [`CertManagerHandle::drain`] also waits for it.
#[derive(Debug)]
pub struct CertManagerHandle {
    grpc_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    authority: Authority,
    gateway: watch::Receiver<GatewayStatus>,
    trigger: drain::Trigger,
}

/// Why a certificate authority does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The authority to issue with is missing.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It cannot show a certificate itself.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The admin server's address cannot be used.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The gRPC service's address cannot be used.
    #[error("gRPC address {address}: {source}")]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

impl CertManager {
    /// Starts one. When this returns, it listens, the bundle was published and the first request will be answered.
    pub async fn start(config: Config, dependencies: Dependencies) -> Result<CertManagerHandle, StartError> {
        tls::install_provider();
        let Dependencies {
            authenticator,
            root_store,
            given,
            publishers,
            gateway,
            workload_life,
            wake,
            metrics,
            readiness,
            log,
        } = dependencies;
        let telemetry = Telemetry::register(&metrics);
        let refused = RefusedConnections::register(&metrics);
        let timing = RotationTiming { propagation: config.propagation, max_life: config.rules.max_life };
        let reserved_names = ReservedNames::new(&config.serving_names, &config.service_names);
        let names = RequiredNames::new(&config.trust_domain, &config.serving_names, &config.service_names);
        let authority =
            Authority::open(root_store, given, publishers, timing, names, config.new_root).await?;
        let serving = ServingCertificate::new(
            config.serving_names.clone(),
            config.rules,
            authority.states(),
            telemetry.clone(),
        )?;
        let bind = |source| StartError::Bind { address: config.listen, source };
        let listener = listen::bind(config.listen).await.map_err(bind)?;
        let grpc_address = listener.local_addr().map_err(bind)?;

        let (trigger, watch) = drain::channel();
        let mut admin_address = None;
        if let Some(address) = config.admin {
            let server = AdminServer::new(PROCESS, metrics, readiness, log)
                .merge(crate::admin::routes(authority.clone()))
                .bind(address)
                .await?;
            admin_address = Some(server.local_addr());
            tokio::spawn(server.serve(watch.clone()));
        }
        let service = CertificateService {
            states: authority.states(),
            rules: config.rules,
            workload_life: workload_life.clone(),
            service_names: config.service_names,
            reserved_names,
            limiter: RateLimiter::new(config.rate_limit),
            telemetry: telemetry.clone(),
        };
        let limits = ConnectionLimits::of(config.max_connections);
        let incoming = ServerStream::new(listener, serving.configs(), limits, HANDSHAKE_TIMEOUT)
            .proven_by_calls()
            .counted(refused)
            .start();
        let service = IstioCertificateServiceServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_ANSWER_BYTES);
        let service = TokenFirst { inner: service, authenticator, telemetry: telemetry.clone() };
        let server = Server::builder()
            .timeout(CALL_TIMEOUT)
            .max_concurrent_streams(MAX_CALLS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .http2_max_header_list_size(MAX_HEAD_BYTES)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .max_connection_age(config.connection_age)
            // It ends at once then: one that is only asked to leave may stay.
            .max_connection_age_grace(Duration::ZERO)
            .add_service(service);
        let mut stop = watch.clone();
        tokio::spawn(async move {
            let served = server.serve_with_incoming_shutdown(incoming, stop.started()).await;
            if let Err(error) = served {
                error!(%error, "the gRPC service ended");
            }
            drop(stop);
        });
        tokio::spawn(serving.run(watch.clone()));
        tokio::spawn(tell_life(workload_life, config.rules));
        tokio::spawn(telemetry.clone().summarize(watch.clone()));
        tokio::spawn(authority.clone().run(wake, watch.clone()));
        tokio::spawn(follow(authority.clone(), telemetry.clone(), watch.clone()));

        let (status, gateway_status) = watch::channel(GatewayStatus::NotConfigured);
        if let Some(gateway) = gateway {
            let states = authority.states();
            let keeper = IngressGateway::new(gateway, states, config.rules, telemetry, status);
            tokio::spawn(keeper.run(watch));
        }
        info!(%grpc_address, admin_address = ?admin_address, "certificate authority listens");
        Ok(CertManagerHandle { grpc_address, admin_address, authority, gateway: gateway_status, trigger })
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

    /// How the ingress controller's certificate is. Its sender is gone if none can be asked for.
    pub fn gateway_status(&self) -> watch::Receiver<GatewayStatus> {
        self.gateway.clone()
    }

    /// Takes the root rotation's next step.
    pub async fn rotate(&self, advance: impl Into<Advance>) -> Result<RotationStatus, NotAllowed> {
        self.authority.next(advance).await
    }

    /// Where the root rotation is.
    pub fn rotation(&self) -> RotationStatus {
        self.authority.status()
    }

    /// The authority itself, to hand out to others.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Finishes the calls in progress and ends, at the latest after `deadline`.
    pub async fn drain(self, deadline: Duration) -> drain::Outcome {
        self.trigger.drain(deadline).await
    }
}

/// Keeps the authority's gauges right.
async fn follow(authority: Authority, telemetry: Arc<Telemetry>, mut drain: drain::Watch) {
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

/// Logs the life of workloads' certificates whenever MeshConfig changes it.
async fn tell_life(mut life: watch::Receiver<Option<Duration>>, rules: IssuingRules) {
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
