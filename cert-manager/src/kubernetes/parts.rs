//! Everything that a certificate authority on Kubernetes depends on, put together.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tidegate_core::TrustDomain;
use tidegate_core::contract::names::{CERT_MANAGER, ROOT_SECRET};
use tidegate_kubernetes::lease::{Elector, LeaseConfig, LeaseTiming};
use tidegate_kubernetes::watch::{ObjectWatch, WatchMetrics};
use tidegate_runtime::backoff::ExponentialBackoff;
use tidegate_runtime::metrics::Metrics;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::follow::poke;
use super::gateway_secret::{self, GatewaySecrets};
use super::mesh_config::MeshConfigFollower;
use super::namespaces::Namespaces;
use super::root_secret::RootSecret;
use super::token_review::TokenReviewer;
use super::trust_bundle::TrustBundleConfigMaps;

use crate::check_schedule::CheckSchedule;
use crate::ingress_gateway::{GatewayDependencies, GatewayStatus};

/// Where a certificate authority runs, and for which mesh.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaConfig {
    /// The control plane's namespace.
    pub(crate) namespace: String,
    /// The mesh, as in the label of its namespaces.
    pub(crate) mesh_name: String,
    /// This replica's pod.
    pub(crate) pod_name: String,
    /// The audience of callers' tokens.
    pub(crate) audience: String,
    /// The trust domain of callers.
    pub(crate) trust_domain: TrustDomain,
    /// Timing of the Lease.
    pub(crate) lease: LeaseTiming,
}

/// What [`crate::CertManagerDependencies`] needs, and the [`KubernetesTasks`] to run beside it.
#[derive(Debug)]
pub(crate) struct KubernetesParts {
    /// Authenticates callers.
    pub(crate) authenticator: TokenReviewer,
    /// Keeps the root.
    pub(crate) root_store: RootSecret,
    /// Publishes the trust bundle.
    pub(crate) publisher: TrustBundleConfigMaps,
    /// The ingress controller's certificate.
    pub(crate) gateway: GatewayDependencies,
    /// The MeshConfig's lifetime for workloads' certificates, if set.
    pub(crate) workload_life: watch::Receiver<Option<Duration>>,
    /// When to check the root and the published bundles. Woken when one of them changes.
    pub(crate) checks: CheckSchedule,
    /// Has to run beside the certificate authority.
    pub(crate) background: KubernetesTasks,
}

/// Leader election and the tasks that follow the API server's objects.
#[derive(Debug)]
pub struct KubernetesTasks {
    elector: Elector,
    mesh_config: MeshConfigFollower,
    tasks: JoinSet<()>,
}

/// A running [`KubernetesTasks`], until it is dropped or stopped.
#[derive(Debug)]
pub struct RunningKubernetesTasks {
    stop: oneshot::Sender<()>,
    elector: tokio::task::JoinHandle<()>,
    _tasks: JoinSet<()>,
}

impl KubernetesParts {
    /// Builds them and starts the watches.
    pub(crate) fn start(client: &Client, place: &ReplicaConfig, metrics: &Metrics) -> Self {
        let meters = WatchMetrics::new(metrics);
        let ReplicaConfig { namespace, mesh_name, .. } = place;
        let checks = CheckSchedule::default();
        let wake = &checks.wake;
        let mut tasks = JoinSet::new();
        let root_store = RootSecret::new(client.clone(), namespace, mesh_name);
        let roots: Api<Secret> = Api::namespaced(client.clone(), namespace);
        // Its content is read when it is checked.
        let roots = ObjectWatch::lean(roots, |_| Ok(()), meters.kind("root Secret")).named(ROOT_SECRET);
        tasks.spawn(poke(roots, wake.clone()));

        let elector = Elector::new(
            client.clone(),
            LeaseConfig {
                namespace: namespace.clone(),
                name: CERT_MANAGER.to_owned(),
                holder: place.pod_name.clone(),
                timing: place.lease,
            },
        );
        let namespaces = Namespaces::start(client.clone(), namespace, mesh_name, wake, &meters);
        let mesh_config = MeshConfigFollower::start(
            client.clone(),
            namespace,
            namespaces.clone(),
            elector.is_leader(),
            &meters,
        );
        let gateway = GatewayDependencies {
            settings: mesh_config.settings(),
            store: Arc::new(GatewaySecrets::new(client.clone(), root_store.clone(), mesh_name)),
            active: mesh_config.active(),
            checks: CheckSchedule::default(),
        };
        tasks.spawn(gateway_secret::follow(
            client.clone(),
            mesh_config.settings(),
            gateway.checks.wake.clone(),
            meters.kind("gateway Secret"),
        ));
        Self {
            authenticator: TokenReviewer::new(
                client.clone(),
                place.audience.clone(),
                place.trust_domain.clone(),
                namespaces.clone(),
            ),
            root_store,
            publisher: TrustBundleConfigMaps::start(client.clone(), namespaces, mesh_name, wake, &meters),
            gateway,
            workload_life: mesh_config.workload_life(),
            checks,
            background: KubernetesTasks { elector, mesh_config, tasks },
        }
    }
}

impl KubernetesTasks {
    /// Runs; `gateway` is the state of the ingress controller's certificate.
    pub fn run(self, gateway: watch::Receiver<GatewayStatus>) -> RunningKubernetesTasks {
        let Self { elector, mesh_config, mut tasks } = self;
        tasks.spawn(mesh_config.run(gateway));
        let (stop, stopped) = oneshot::channel::<()>();
        let elector = tokio::spawn(elector.run(async {
            // Either sent or dropped means to stop.
            let _ = stopped.await;
        }));
        RunningKubernetesTasks { stop, elector, _tasks: tasks }
    }
}

impl RunningKubernetesTasks {
    /// Stops, and lets another replica lead at once.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.elector.await;
    }
}

/// Waits until the API server answers: while a cluster starts, it may be later than this process.
pub async fn wait_for_api_server(client: &Client) {
    let mut backoff = ExponentialBackoff::new(Duration::from_millis(500), Duration::from_secs(5));
    loop {
        match super::bounded(client.apiserver_version()).await {
            Ok(version) => {
                info!(version = version.git_version, "the API server answers");
                return;
            }
            Err(error) => warn!(%error, "waiting for the API server"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}
