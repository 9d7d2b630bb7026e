//! One sidecar, from its flags to its last connection. Both the program and `tidegate standalone` run it.

use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, SystemTime};

use tidegate_core::contract::{names, ports};
use tidegate_runtime::admin::{AdminServer, AdminServerError, ProcessName};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::identity;
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::{Blocker, Readiness};
use tidegate_runtime::signals::{self, LogRotation};
use tidegate_runtime::trust_bundle::{self, TrustBundle};
use tidegate_runtime::{drain, listen, tls};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{self, ConfigView};
use crate::destinations::Destinations;
use crate::discovery::{Discovery, DiscoveryClientConfig};
use crate::dns;
use crate::http::HttpContext;
use crate::limits::Limits;
use crate::listener::{FixedOutbound, InboundTarget, Listener, Redirected};
use crate::options::{InboundListener, Options, OutboundListener};
use crate::probes::{ProbeBindError, ProbeServer};
use crate::snapshot::{self, Publisher, Snapshots};
use crate::span_export::SpanExporter;
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::{AccessLog, AccessLogFormat, AccessLogSink};
use crate::telemetry::egress::EgressUsage;
use crate::telemetry::metrics::DataPlaneMetrics;
use crate::telemetry::recent::{RecentRequests, RecentSink, recent_queue};
use crate::telemetry::trace::{SpanSink, span_queue};
use crate::tls::{PeerTls, ServerTls};
use crate::worker::{self, RunningWorkers, Workers, WorkersConfig};

/// How often the trust bundle's file is read.
const BUNDLE_INTERVAL: Duration = Duration::from_secs(1);

const PROCESS: ProcessName = ProcessName(names::SIDECAR);

/// A running sidecar.
pub struct Sidecar {
    workers: RunningWorkers,
    inbound: Arc<[InboundListener]>,
    outbound: Arc<[OutboundListener]>,
    admin_address: SocketAddr,
    readiness: Readiness,
    drain: drain::Trigger,
    drain_timeout: Duration,
    control: JoinSet<()>,
}

/// Why a sidecar does not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarStartError {
    /// An address cannot be bound, or a thread cannot be created.
    #[error(transparent)]
    Workers(#[from] worker::WorkersStartError),
    /// The admin server cannot be started.
    #[error(transparent)]
    Admin(#[from] AdminServerError),
    /// A port for the app's probes cannot be bound.
    #[error(transparent)]
    Probes(#[from] ProbeBindError),
    /// The access log cannot be opened.
    #[error("access log {0:?}: {1}")]
    AccessLog(String, std::io::Error),
    /// A signal handler cannot be installed.
    #[error("signal handlers: {0}")]
    Signals(#[source] std::io::Error),
}

impl Sidecar {
    /// Starts listening at once; refuses everything until certificate and policy have arrived. Requires a tokio
    /// runtime, which becomes the control thread's; the data workers have their own.
    ///
    /// # Errors
    ///
    /// If an address cannot be bound, the access log cannot be opened, or a thread cannot be created.
    pub async fn start(options: Options, log: LogHandle) -> Result<Self, SidecarStartError> {
        tls::install_provider();
        let (metrics, readiness) = (Metrics::default(), Readiness::new());
        let blockers = ReadinessBlockers::new(&readiness);
        let (publisher, snapshots) = snapshot::channel();
        let publisher = Arc::new(publisher);
        let access_log = open_access_log(&options)?;
        let (spans, finished_spans) = span_queue();
        let (recent_sink, recorded) = recent_queue();
        let counts = DataPlaneMetrics::new(access_log.clone()).with_spans(spans.counts().clone());
        let (remotes, usage) = (counts.remotes().clone(), EgressUsage::default());
        let (lost, workload) = (spans.counts().clone(), options.workload.clone());
        let exporter = SpanExporter::new(finished_spans, lost, snapshots.clone(), remotes.clone(), workload);
        metrics.add_collector(Box::new(counts.clone()));

        let recent = RecentRequests::new(remotes.clone());
        let destinations = Arc::new(Destinations::of_workload(&options.workload, remotes));
        let count = worker_count(&options);
        let workers = Workers::start(WorkersConfig {
            count,
            listeners: listeners(&options),
            limits: Limits::from(&options.limits),
            snapshots,
            destinations: destinations.clone(),
            http_context: http_context(
                count,
                (options.access_log_format, access_log.clone()),
                counts,
                spans,
                (recent_sink, usage.clone()),
            ),
        })?;
        let view = config_view(&options, workers.addresses(), &destinations, &publisher);
        let inbound = view.inbound.clone();
        let admin = AdminServer::new(PROCESS, metrics.clone(), readiness.clone(), log.clone())
            .merge(admin::routes(view, usage, recent.clone()))
            .bind(options.admin_address)
            .await?;
        let (drain, draining) = drain::channel();
        let mut control = JoinSet::new();
        let health = AdminServer::health(PROCESS, metrics.clone(), readiness.clone(), log);
        serve_kubelet(&options, health, &draining, &mut control).await?;
        let admin_address = admin.local_addr();
        control.spawn(admin.serve(draining));
        control.spawn(exporter.run());
        control.spawn(recent.collect(recorded));
        if let Some(sink) = access_log {
            control.spawn(rotate(sink, signals::log_rotation().map_err(SidecarStartError::Signals)?));
        }
        let (drain_timeout, outbound) = (options.limits.drain_timeout, options.outbound.as_slice().into());
        control.spawn(keep_up_to_date(
            options,
            publisher,
            destinations,
            blockers,
            metrics,
            readiness.clone(),
        ));
        Ok(Self { workers, inbound, outbound, admin_address, readiness, drain, drain_timeout, control })
    }

    /// The fixed inbound listeners, with the ports that were bound.
    pub fn inbound(&self) -> &[InboundListener] {
        &self.inbound
    }

    /// The fixed listeners for the app's own connections, as they were given.
    pub fn outbound(&self) -> &[OutboundListener] {
        &self.outbound
    }

    /// Address of the admin server.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Ready once the certificate and the first policy have arrived.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Stops accepting connections, waits for those that are open, and ends. The admin server runs until then.
    pub async fn drain(mut self) {
        self.workers.drain(self.drain_timeout).await;
        self.drain.start();
        self.control.shutdown().await;
    }
}

/// Opens the access log, if it is enabled.
fn open_access_log(options: &Options) -> Result<Option<AccessLogSink>, SidecarStartError> {
    if options.access_log_format == AccessLogFormat::Off {
        return Ok(None);
    }
    let target = options.access_log_target();
    let sink = AccessLogSink::open(&target);
    sink.map(Some).map_err(|error| SidecarStartError::AccessLog(format!("{target:?}"), error))
}

/// Data workers: by default one for each processor.
fn worker_count(options: &Options) -> usize {
    options.workers.map_or_else(|| available_parallelism().map_or(1, Into::into), usize::from)
}

/// Serves kubelet: the health address, if there is one, and the probes of the app.
async fn serve_kubelet(
    options: &Options,
    health: AdminServer,
    draining: &drain::Watch,
    control: &mut JoinSet<()>,
) -> Result<(), SidecarStartError> {
    if let Some(address) = options.pod.health_address {
        control.spawn(health.bind(address).await?.serve(draining.clone()));
    }
    for server in ProbeServer::bind_all(&options.pod.probes)? {
        control.spawn(server.serve(draining.clone()));
    }
    Ok(())
}

/// Creates the HTTP context of each of `workers` workers.
fn http_context(
    workers: usize,
    (format, access_log): (AccessLogFormat, Option<AccessLogSink>),
    counts: DataPlaneMetrics,
    spans: SpanSink,
    (recent, usage): (RecentSink, EgressUsage),
) -> Arc<dyn Fn(Rc<Limits>, Snapshots) -> Rc<HttpContext> + Send + Sync> {
    Arc::new(move |limits, snapshots| {
        let log = access_log.clone().map(|sink| AccessLog::new(format, sink));
        let telemetry = Telemetry::new(&counts, log).with_spans(spans.clone());
        let telemetry = telemetry.with_recent(recent.clone()).with_egress(&usage);
        Rc::new(HttpContext::new(limits, Rc::new(telemetry), snapshots).of_one_in(workers))
    })
}

/// The view of `/config`. `bound` are the addresses of [`listeners`], in their order.
fn config_view(
    options: &Options,
    bound: &[SocketAddr],
    destinations: &Arc<Destinations>,
    publisher: &Arc<Publisher>,
) -> ConfigView {
    let (inbound, outbound) = bound.split_at(bound.len() - outbound_listeners(options).len());
    let fixed = inbound.iter().zip(&options.inbound);
    ConfigView {
        workload: options.workload.as_str().into(),
        inbound: fixed.map(|(listen, inbound)| InboundListener { listen: *listen, ..*inbound }).collect(),
        transparent: options.pod.transparent.then(|| inbound.first().copied()).flatten(),
        outbound: outbound.into(),
        destinations: destinations.clone(),
        publisher: publisher.clone(),
    }
}

/// Inbound listeners, followed by those of [`outbound_listeners`].
fn listeners(options: &Options) -> Vec<Listener> {
    let fixed = |inbound: &InboundListener| {
        Listener::Fixed(InboundTarget { address: inbound.listen, port: inbound.app.port(), app: inbound.app })
    };
    let mut listeners: Vec<_> = if options.pod.transparent {
        vec![Listener::Redirected(redirected(options, options.pod.inbound_port))]
    } else {
        options.inbound.iter().map(fixed).collect()
    };
    listeners.extend(outbound_listeners(options));
    listeners
}

/// Listeners for connections that the app opens.
fn outbound_listeners(options: &Options) -> Vec<Listener> {
    let fixed = |outbound: &OutboundListener| {
        Listener::FixedOutbound(FixedOutbound { address: outbound.listen, destination: outbound.destination })
    };
    let mut listeners: Vec<_> = options.outbound.iter().map(fixed).collect();
    if options.pod.transparent {
        listeners.push(Listener::RedirectedOutbound(redirected(options, options.pod.outbound_port)));
    }
    listeners
}

/// A listener on this port for connections that the kernel redirects.
fn redirected(options: &Options, port: u16) -> Redirected {
    let pod = &options.pod;
    let mut own_ports =
        vec![pod.inbound_port, pod.outbound_port, ports::HEALTH, options.admin_address.port()];
    own_ports.extend(ports::PROBES);
    own_ports.extend(pod.health_address.map(|address| address.port()));
    own_ports.extend(pod.probes.0.iter().map(|probe| probe.port));
    Redirected {
        address: listen::possible((Ipv6Addr::UNSPECIFIED, port).into()),
        pod_ips: pod.pod_ips.0.clone(),
        own_ports: own_ports.into(),
    }
}

/// Reopens the access log on SIGUSR1.
async fn rotate(sink: AccessLogSink, mut rotation: LogRotation) {
    loop {
        rotation.requested().await;
        sink.rotate();
    }
}

/// Blocks readiness until certificate and policy have arrived.
struct ReadinessBlockers {
    certificate: Blocker,
    policy: Blocker,
}

impl ReadinessBlockers {
    fn new(readiness: &Readiness) -> Self {
        Self { certificate: readiness.block("certificate"), policy: readiness.block("policy") }
    }
}

/// The control thread's work: keeps certificate and configuration up to date for as long as the process lives.
async fn keep_up_to_date(
    options: Options,
    publisher: Arc<Publisher>,
    destinations: Arc<Destinations>,
    blockers: ReadinessBlockers,
    metrics: Metrics,
    readiness: Readiness,
) {
    let bundle = trust_bundle::watch_file(options.ca.ca_trust_bundle.clone(), BUNDLE_INTERVAL).await;
    let kept = identity::start(options.ca.clone(), None, bundle.clone(), &metrics);
    let discovery = Discovery::new(
        DiscoveryClientConfig {
            address: options.discovery_address,
            proxy: options.ca.proxy.clone(),
            server_name: options.discovery_server_name,
            workload: options.workload,
            instance: format!("{:016x}", rand::random::<u64>()),
        },
        kept.credentials.clone(),
        bundle.clone(),
        publisher.clone(),
        destinations.clone(),
        blockers.policy,
    );
    let certificates =
        publish_certificates(kept.credentials, bundle, publisher, blockers.certificate, readiness);
    tokio::join!(discovery.run(), dns::run(destinations, options.dns_servers), certificates);
}

/// Builds TLS configurations for each new certificate or trust bundle; not ready while the certificate is expired.
async fn publish_certificates(
    mut credentials: watch::Receiver<Option<Arc<Credentials>>>,
    mut bundle: watch::Receiver<Arc<TrustBundle>>,
    publisher: Arc<Publisher>,
    blocker: Blocker,
    readiness: Readiness,
) {
    let mut blocker = Some(blocker);
    let mut published: Option<(u64, Arc<TrustBundle>)> = None;
    loop {
        let newest = credentials.borrow_and_update().clone();
        let roots = bundle.borrow_and_update().clone();
        if let Some(newest) = newest {
            let is_new = published.as_ref().is_none_or(|(generation, bundle)| {
                *generation != newest.generation || !Arc::ptr_eq(bundle, &roots)
            });
            if is_new {
                let both = ServerTls::new(newest.clone(), roots.clone())
                    .and_then(|tls| Ok((tls, PeerTls::new(&newest, roots.clone())?)));
                match both {
                    Ok((tls, peer_tls)) => {
                        publisher.update(|snapshot| {
                            snapshot.tls = Some(Arc::new(tls));
                            snapshot.peer_tls = Some(Arc::new(peer_tls));
                        });
                        published = Some((newest.generation, roots));
                    }
                    Err(error) => {
                        tracing::error!(%error, "TLS cannot be set up with the new certificate or trust bundle; the previous ones stay in use");
                    }
                }
            }
            let is_expired = newest.is_expired(SystemTime::now());
            if is_expired && blocker.is_none() {
                tracing::error!("the certificate has expired and the CA has not issued a new one");
                blocker = Some(readiness.block("certificate"));
            } else if !is_expired && published.is_some() {
                blocker = None;
            }
        }
        // The sender of `credentials` also wakes this task when they expire.
        tokio::select! {
            changed = credentials.changed() => if changed.is_err() { return },
            changed = bundle.changed() => if changed.is_err() { return },
        }
    }
}
