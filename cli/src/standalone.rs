//! `tidegate standalone`: the whole mesh in one process, from a folder of manifests.
//!
//! Nothing is simulated. The CA, the controller and the sidecars are the same code as in the programs and use the same
//! gRPC over the same TLS. Only the inputs differ: objects come from files instead of an API server, tokens are signed
//! with a key of this process, and a pod is an address of this machine instead of a network namespace.

mod gateway;
mod listeners;
mod tokens;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rustls_pki_types::ServerName;
use tidegate_cert_manager::authenticate::signed_jwt::{SignedJwt, SignedJwtOptions};
use tidegate_cert_manager::authority::NewRoot;
use tidegate_cert_manager::manager::CONNECTION_AGE;
use tidegate_cert_manager::rate_limit::RateLimit;
use tidegate_cert_manager::rules::IssuingRules;
use tidegate_cert_manager::service_names::ServiceNames;
use tidegate_cert_manager::store::bundle_file::BundleFile;
use tidegate_cert_manager::store::root_folder::RootFolder;
use tidegate_cert_manager::store::secret_folder::SecretFolder;
use tidegate_cert_manager::{CertManager, CertManagerHandle, CheckSchedule, GatewayDependencies};
use tidegate_controller::source::folder::{FolderSource, is_of_this_machine, is_workload};
use tidegate_controller::{Controller, ControllerHandle, LocalPod};
use tidegate_core::contract::annotations::OUTBOUND;
use tidegate_core::contract::names::TOKEN_AUDIENCE;
use tidegate_core::contract::{environment, ports};
use tidegate_core::{DnsName, Identity, San, TrustDomain};
use tidegate_runtime::forward_proxy::ControlPlaneProxyOptions;
use tidegate_runtime::grpc;
use tidegate_runtime::identity::{self, CaOptions};
use tidegate_runtime::logging::{self, LogHandle, LogOptions};
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::options::TrustDomainOptions;
use tidegate_runtime::readiness::{Blocker, Readiness};
use tidegate_runtime::{memory, signals, trust_bundle};
use tidegate_sidecar::options::{LimitOptions, Options as SidecarOptions, PodOptions};
use tidegate_sidecar::sidecar::Sidecar;
use tidegate_sidecar::telemetry::access_log::AccessLogFormat;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use self::listeners::PodListeners;
use self::tokens::{TokenIssuer, TokenSubject};

/// The server name of the CA within the process.
const CA_NAME: &str = "localhost";
/// Readiness condition while sidecars are starting.
const WAITING_FOR_SIDECARS: &str = "sidecars";
/// Maximum concurrent connections, of which one address may have a quarter: all sidecars may share one address.
const MAX_CONNECTIONS: usize = 4096;
/// Timeout of a graceful shutdown.
const DRAIN: Duration = Duration::from_secs(10);

/// Flags of `tidegate standalone`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StandaloneOptions {
    /// Folder of manifests (.yaml, .yml, .json), watched: Namespace, ServiceAccount, Service, EndpointSlice, Pod, Node,
    /// IngressBackend, Egress, MeshConfig, UpstreamTrafficSetting, Retry, SMI's TrafficTarget, TrafficSplit, HTTPRouteGroup and TCPRoute,
    /// Gateway API's HTTPRoute, GRPCRoute, TLSRoute and TCPRoute. A Pod whose podIP is an address of this machine gets a
    /// sidecar.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Folder for the CA's root, the trust bundle, tokens and the ingress controller's Secret.
    #[arg(long, env = "TIDEGATE_STATE_DIR", value_name = "DIR", default_value = ".tidegate")]
    pub(crate) state_dir: PathBuf,
    /// Create a new root although the state folder's trust bundle shows that there was one, which is lost. No effect if
    /// a root exists.
    #[arg(long, env = environment::NEW_ROOT)]
    pub(crate) new_root: bool,
    /// Admin address of the controller, which `tidegate policy` and `tidegate explain` query.
    #[arg(long, env = environment::ADMIN_ADDRESS, value_name = "ADDRESS", default_value_t = ports::ADMIN_ADDRESS)]
    pub(crate) admin_address: SocketAddr,
    /// Admin address of the CA: its metrics, and the rotation of its root. Port 0 selects a free one.
    #[arg(long, env = "TIDEGATE_CA_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) ca_admin_address: SocketAddr,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub(crate) trust: TrustDomainOptions,
    /// Lifetime of workload certificates, such as 24h.
    #[arg(
        long,
        env = environment::CERTIFICATE_LIFETIME,
        value_name = "DURATION",
        default_value = "24h",
        value_parser = humantime::parse_duration
    )]
    pub(crate) certificate_lifetime: Duration,
    /// Lifetime of the service account tokens that authenticate sidecars to the CA, from 4s to 24h. Rewritten at a
    /// quarter of it.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN_LIFETIME",
        value_name = "DURATION",
        default_value = "1h",
        value_parser = tokens::parse_life
    )]
    pub(crate) token_lifetime: Duration,
    /// Data worker threads of each sidecar [default: the processors this process may use]
    #[arg(long, env = environment::WORKERS, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
    /// Format of the sidecars' access log.
    #[arg(long, env = environment::ACCESS_LOG_FORMAT, value_enum, default_value = "json")]
    pub(crate) access_log_format: AccessLogFormat,
    /// File for the access log [default: standard output]
    #[arg(long, env = environment::ACCESS_LOG_FILE, value_name = "FILE")]
    pub(crate) access_log_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub(crate) limits: LimitOptions,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub(crate) log: LogOptions,
}

/// A mesh in this process.
pub(crate) struct Standalone {
    ca: CertManagerHandle,
    controller: ControllerHandle,
    sidecars: Arc<Sidecars>,
    readiness: Readiness,
    state_dir: PathBuf,
    tasks: Vec<JoinHandle<()>>,
}

/// The sidecars of the local Pods.
struct Sidecars {
    options: StandaloneOptions,
    ca: CaAccess,
    tokens: TokenIssuer,
    discovery: SocketAddr,
    log: LogHandle,
    running: Mutex<BTreeMap<String, Vec<Sidecar>>>,
}

/// How daemons of this process connect to the CA.
struct CaAccess {
    address: SocketAddr,
    trust_bundle: PathBuf,
    lifetime: Duration,
}

/// Runs until SIGINT or SIGTERM, then drains.
pub(crate) async fn run(options: StandaloneOptions) -> anyhow::Result<ExitCode> {
    let log = logging::init(&options.log)?;
    signals::raise_file_limit();
    anyhow::ensure!(options.folder.is_dir(), "--folder: {:?} is not a folder", options.folder);
    let shutdown = signals::shutdown()?;
    tokio::spawn(memory::give_back());
    let standalone = Standalone::start(options, log).await?;
    tracing::info!(
        controller = %standalone.admin_address(),
        ca = ?standalone.ca_admin_address(),
        "the mesh is up; admin pages are at these addresses"
    );
    let signal = shutdown.await;
    tracing::info!(?signal, "draining");
    standalone.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

impl StandaloneOptions {
    /// Options of a mesh that is isolated from all others: free addresses, state in a folder, an access log in a file
    /// there.
    pub(crate) fn in_folder(folder: &Path, state_dir: &Path) -> Self {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            folder: folder.to_owned(),
            state_dir: state_dir.to_owned(),
            new_root: false,
            admin_address: free,
            ca_admin_address: free,
            trust: TrustDomainOptions::default(),
            certificate_lifetime: Duration::from_secs(24 * 3600),
            token_lifetime: Duration::from_secs(3600),
            workers: Some(1),
            access_log_format: AccessLogFormat::Json,
            access_log_file: Some(state_dir.join("access.log")),
            limits: LimitOptions::default(),
            log: LogOptions::default(),
        }
    }
}

impl Standalone {
    /// Starts the CA, then the controller, then a sidecar for each local Pod, including those that are added later.
    pub(crate) async fn start(options: StandaloneOptions, log: LogHandle) -> anyhow::Result<Self> {
        let state = &options.state_dir;
        std::fs::create_dir_all(state).with_context(|| format!("--state-dir {}", state.display()))?;
        let state_dir = state.canonicalize().with_context(|| format!("--state-dir {}", state.display()))?;
        let key_file = state_dir.join("token-key.pub");
        let tokens = TokenIssuer::new(state_dir.join("tokens"), &key_file, options.token_lifetime)?;
        let (gateway, gateway_settings) = watch::channel(None);
        let ca = start_ca(&options, &state_dir, key_file, gateway_settings, &log).await?;
        let access = CaAccess {
            address: ca.grpc_address(),
            trust_bundle: state_dir.join("trust-bundle.pem"),
            lifetime: options.certificate_lifetime,
        };
        let readiness = Readiness::new();
        let waiting = readiness.block(WAITING_FOR_SIDECARS);
        let (controller, certificate) =
            start_controller(&options, &access, &tokens, readiness.clone(), &log).await?;
        let sidecars = Arc::new(Sidecars {
            ca: access,
            tokens,
            discovery: controller.discovery_address,
            log,
            options,
            running: Mutex::default(),
        });
        let tasks = vec![
            certificate,
            tokio::spawn(gateway::follow(controller.mesh_config.clone(), gateway)),
            tokio::spawn(sidecars.clone().follow(controller.pods.clone())),
            tokio::spawn(sidecars.clone().until_ready(controller.pods.clone(), readiness.clone(), waiting)),
            tokio::spawn(sidecars.clone().renew_tokens()),
        ];
        Ok(Self { ca, controller, sidecars, readiness, state_dir, tasks })
    }

    /// The controller's admin address.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.controller.admin_address
    }

    /// The CA's admin address.
    pub(crate) fn ca_admin_address(&self) -> Option<SocketAddr> {
        self.ca.admin_address()
    }

    /// Folder of a Secret's files: `ca.crt`, `tls.crt`, `tls.key`.
    pub(crate) fn secret_folder(&self, namespace: &str, name: &str) -> PathBuf {
        self.state_dir.join("secrets").join(namespace).join(name)
    }

    /// Waits until every initial local Pod has a sidecar with a certificate and a policy.
    pub(crate) async fn ready(&self) {
        self.readiness.ready().await;
    }

    /// Drains the sidecars, then stops the rest.
    pub(crate) async fn shutdown(self) {
        for task in &self.tasks {
            task.abort();
        }
        let running = std::mem::take(&mut *self.sidecars.running.lock().await);
        let drains = running.into_values().flatten().map(|sidecar| tokio::spawn(sidecar.drain()));
        for drain in drains.collect::<Vec<_>>() {
            let _ = drain.await;
        }
        self.controller.shutdown(DRAIN).await;
        self.ca.drain(DRAIN).await;
    }
}

impl Sidecars {
    /// Keeps a sidecar for each local Pod.
    async fn follow(self: Arc<Self>, mut pods: watch::Receiver<Arc<Vec<LocalPod>>>) {
        loop {
            let local = local(&pods.borrow_and_update());
            self.settle(&local).await;
            if pods.changed().await.is_err() {
                return;
            }
        }
    }

    /// Marks the process ready once the objects are read and every local Pod has a ready sidecar.
    async fn until_ready(
        self: Arc<Self>,
        pods: watch::Receiver<Arc<Vec<LocalPod>>>,
        readiness: Readiness,
        waiting: Blocker,
    ) {
        loop {
            let local = local(&pods.borrow());
            if readiness.blocked_by() == [WAITING_FOR_SIDECARS] && self.are_ready(&local).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(waiting);
    }

    /// Whether every Pod with a port in its policy, or with destinations, has sidecars that are all ready. Others need none.
    async fn are_ready(&self, pods: &[LocalPod]) -> bool {
        let running = self.running.lock().await;
        let needs_one = |pod: &&LocalPod| !pod.ports.is_empty() || pod.annotations.contains_key(OUTBOUND);
        pods.iter().filter(needs_one).all(|pod| {
            running.get(&workload(pod)).is_some_and(|sidecars| {
                !sidecars.is_empty() && sidecars.iter().all(|sidecar| sidecar.readiness().is_ready())
            })
        })
    }

    /// Starts and stops sidecars until they match the Pods: one that is gone is drained in the background, and a port or
    /// destination without a sidecar gets one. A sidecar that cannot start is logged and tried again with the next change.
    async fn settle(&self, pods: &[LocalPod]) {
        let mut running = self.running.lock().await;
        let gone: Vec<String> = running
            .keys()
            .filter(|running| !pods.iter().any(|pod| workload(pod) == **running))
            .cloned()
            .collect();
        for workload in gone {
            if let Some((namespace, name)) = workload.split_once('/') {
                self.tokens.forget(namespace, name);
            }
            for sidecar in running.remove(&workload).into_iter().flatten() {
                tokio::spawn(sidecar.drain());
            }
        }
        for pod in pods {
            let sidecars = running.entry(workload(pod)).or_default();
            let missing = match PodListeners::of(pod).map(|listeners| listeners.without(sidecars)) {
                Ok(missing) if missing == PodListeners::default() => continue,
                missing => missing,
            };
            let started = match missing {
                Ok(missing) => self.start(pod, missing).await,
                Err(error) => Err(error),
            };
            match started {
                Ok(sidecar) => sidecars.push(sidecar),
                Err(error) => {
                    tracing::error!(
                        workload = workload(pod),
                        error = format!("{error:#}"),
                        "no sidecar for a Pod"
                    );
                }
            }
        }
    }

    /// Starts a sidecar with these listeners of a Pod. What is added later gets an additional sidecar, so that existing
    /// connections are not interrupted.
    async fn start(&self, pod: &LocalPod, listeners: PodListeners) -> anyhow::Result<Sidecar> {
        let token_file = self.tokens.write(&subject(pod))?;
        let controller = controller_identity(&self.options.trust.trust_domain)?;
        let options = SidecarOptions {
            workload: workload(pod),
            inbound: listeners.inbound,
            outbound: listeners.outbound,
            dns_servers: Vec::new(),
            discovery_address: address(self.discovery)?,
            discovery_server_name: ServerName::try_from(controller.dns_name())?,
            ca: self.ca.options(token_file)?,
            admin_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            workers: self.options.workers,
            access_log_format: self.options.access_log_format,
            access_log_file: self.options.access_log_file.clone(),
            pod: PodOptions::default(),
            limits: self.options.limits.clone(),
            log: self.options.log.clone(),
        };
        let sidecar = Sidecar::start(options, self.log.clone()).await?;
        for inbound in sidecar.inbound() {
            tracing::info!(
                workload = workload(pod),
                listen = %inbound.listen,
                app = %inbound.app,
                admin = %sidecar.admin_address(),
                "a sidecar listens"
            );
        }
        for outbound in sidecar.outbound() {
            tracing::info!(
                workload = workload(pod),
                listen = %outbound.listen,
                destination = %outbound.destination,
                admin = %sidecar.admin_address(),
                "a sidecar listens for its app"
            );
        }
        Ok(sidecar)
    }

    /// Rewrites every token periodically. A token that cannot be written is logged; the old one is valid for three
    /// more intervals.
    async fn renew_tokens(self: Arc<Self>) {
        let mut due = tokio::time::interval(self.tokens.renewal_interval());
        due.tick().await;
        loop {
            due.tick().await;
            for error in self.tokens.renew() {
                tracing::error!(error = format!("{error:#}"), "cannot renew a token");
            }
        }
    }
}

impl CaAccess {
    /// A client of the CA that identifies itself by this token.
    fn options(&self, token_file: PathBuf) -> anyhow::Result<CaOptions> {
        Ok(CaOptions {
            ca_address: address(self.address)?,
            ca_server_name: Some(ServerName::try_from(CA_NAME)?),
            ca_trust_bundle: self.trust_bundle.clone(),
            token_file,
            proxy: ControlPlaneProxyOptions::default(),
            certificate_lifetime: self.lifetime,
        })
    }
}

/// Starts the CA with files instead of Kubernetes objects: tokens by a key of this process, the root, the trust
/// bundle and Secrets in the state folder.
async fn start_ca(
    options: &StandaloneOptions,
    state_dir: &Path,
    key_file: PathBuf,
    gateway: watch::Receiver<Option<tidegate_cert_manager::ingress_gateway::IngressGatewaySettings>>,
    log: &LogHandle,
) -> anyhow::Result<CertManagerHandle> {
    let authenticator = SignedJwt::open(SignedJwtOptions {
        key_files: vec![key_file],
        audience: TOKEN_AUDIENCE.to_owned(),
        issuer: Some(tokens::ISSUER.to_owned()),
        trust_domain: options.trust.trust_domain.clone(),
    })?;
    let rules = IssuingRules::default();
    let config = tidegate_cert_manager::CertManagerConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        admin: Some(options.ca_admin_address),
        serving_names: vec![San::Dns(DnsName::parse(CA_NAME)?)],
        trust_domain: options.trust.trust_domain.clone(),
        new_root: if options.new_root { NewRoot::Wanted } else { NewRoot::WhereNoneWas },
        rules: IssuingRules {
            default_life: options.certificate_lifetime,
            max_life: rules.max_life.max(options.certificate_lifetime),
            ..rules
        },
        service_names: ServiceNames::default(),
        // Files are polled once a second.
        propagation: Duration::from_secs(3),
        rate_limit: RateLimit::default(),
        max_connections: MAX_CONNECTIONS,
        connection_age: CONNECTION_AGE,
    };
    let dependencies = tidegate_cert_manager::CertManagerDependencies {
        authenticator: Arc::new(authenticator),
        root_store: Arc::new(RootFolder::new(state_dir.join("ca"))),
        given: None,
        publishers: vec![Arc::new(BundleFile::new(state_dir.join("trust-bundle.pem")))],
        gateway: Some(GatewayDependencies::alone(
            gateway,
            Arc::new(SecretFolder::new(state_dir.join("secrets"))),
        )),
        // Set by `--certificate-lifetime`.
        workload_life: watch::channel(None).1,
        checks: CheckSchedule::default(),
        metrics: Metrics::new(),
        readiness: Readiness::new(),
        log: log.clone(),
    };
    CertManager::start(config, dependencies).await.context("the CA failed to start")
}

/// Starts the controller on the folder. It gets its certificate from the CA like every other daemon, so this waits
/// until the CA has written a trust bundle.
async fn start_controller(
    options: &StandaloneOptions,
    ca: &CaAccess,
    tokens: &TokenIssuer,
    readiness: Readiness,
    log: &LogHandle,
) -> anyhow::Result<(ControllerHandle, JoinHandle<()>)> {
    let identity = controller_identity(&options.trust.trust_domain)?;
    let token_file = tokens.write(&TokenSubject {
        namespace: identity.namespace().to_owned(),
        service_account: identity.service_account().to_owned(),
        name: identity.service_account().to_owned(),
    })?;
    let metrics = Metrics::new();
    let bundle = trust_bundle::watch_file(&ca.trust_bundle, trust_bundle::DEFAULT_INTERVAL).await;
    let kept = identity::start(ca.options(token_file)?, Some(identity), bundle.clone(), &metrics);
    let config = tidegate_controller::ControllerConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        admin: options.admin_address,
        trust_domain: options.trust.trust_domain.clone(),
        max_connections: MAX_CONNECTIONS,
        is_workload,
        mesh_name: None,
        health: None,
    };
    let dependencies = tidegate_controller::ControllerDependencies {
        source: Box::new(FolderSource::new(&options.folder)),
        status_writers: Vec::new(),
        credentials: kept.credentials,
        trust_bundle: bundle,
        metrics,
        readiness,
        log: log.clone(),
    };
    let controller =
        Controller::start(config, dependencies).await.context("the controller failed to start")?;
    Ok((controller, kept.task))
}

/// The identity that sidecars expect of the controller.
fn controller_identity(trust_domain: &TrustDomain) -> anyhow::Result<Identity> {
    let (namespace, account) = (tidegate_controller::NAMESPACE, tidegate_controller::SERVICE_ACCOUNT);
    Ok(Identity::new(trust_domain.clone(), namespace, account)?)
}

/// The Pods whose sidecars this process runs. Those of other machines have theirs there.
fn local(pods: &[LocalPod]) -> Vec<LocalPod> {
    pods.iter().filter(|pod| pod.ip.is_some_and(is_of_this_machine)).cloned().collect()
}

/// `<namespace>/<name>`, the key of the map of sidecars.
fn workload(pod: &LocalPod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// The subject of a Pod's token.
fn subject(pod: &LocalPod) -> TokenSubject {
    TokenSubject {
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        name: pod.name.clone(),
    }
}

/// An address of this process as a daemon's option; its host is never resolved.
fn address(address: SocketAddr) -> anyhow::Result<grpc::Address> {
    Ok(grpc::Address::new(ServerName::IpAddress(address.ip().into()), address.port()))
}
