//! Everything that a certificate authority on Kubernetes stands on, put together.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tidegate_core::TrustDomain;
use tidegate_core::contract::names::{CERT_MANAGER, ROOT_SECRET};
use tidegate_kubernetes::lease::{Elector, LeaseConfig, LeaseTiming};
use tidegate_kubernetes::watch::{Watch, WatchMetrics};
use tidegate_runtime::backoff::Backoff;
use tidegate_runtime::metrics::Metrics;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::follow::poke;
use super::gateway_secret::{self, GatewaySecrets};
use super::mesh_config::MeshConfigFollower;
use super::namespaces::Namespaces;
use super::root_secret::RootSecret;
use super::token_review::TokenReviewer;
use super::trust_bundle::TrustBundleConfigMaps;

use crate::ingress_gateway::GatewayStatus;
use crate::manager::{GatewayDependencies, LOOK_INTERVAL};

/// Where a certificate authority runs, and for whom.
#[derive(Debug, Clone)]
pub struct Place {
    /// The control plane's namespace.
    pub namespace: String,
    /// The mesh that namespaces name in their label.
    pub mesh_name: String,
    /// This replica's pod.
    pub pod_name: String,
    /// The audience of callers' tokens.
    pub audience: String,
    /// The trust domain of callers.
    pub trust_domain: TrustDomain,
    /// How fast the Lease changes hands.
    pub lease: LeaseTiming,
}

/// What [`crate::Dependencies`] takes, and [`Background`] beside it.
#[derive(Debug)]
pub struct Parts {
    /// Judges callers.
    pub authenticator: TokenReviewer,
    /// Keeps the root.
    pub root_store: RootSecret,
    /// Publishes the trust bundle.
    pub publisher: TrustBundleConfigMaps,
    /// The ingress controller's certificate.
    pub gateway: GatewayDependencies,
    /// How long workloads' certificates are to live, if the MeshConfig says so.
    pub workload_life: watch::Receiver<Option<Duration>>,
    /// Poked when the root or a published bundle changes.
    pub wake: Arc<Notify>,
    /// Has to run beside the certificate authority.
    pub background: Background,
}

/// Leader election and the tasks that follow the API server's objects.
#[derive(Debug)]
pub struct Background {
    elector: Elector,
    mesh_config: MeshConfigFollower,
    tasks: JoinSet<()>,
}

/// A [`Background`] that runs, until it is dropped or stopped.
#[derive(Debug)]
pub struct RunningBackground {
    stop: oneshot::Sender<()>,
    elector: tokio::task::JoinHandle<()>,
    _tasks: JoinSet<()>,
}

impl Parts {
    /// Puts them together and starts to watch.
    pub fn start(client: &Client, place: &Place, metrics: &Metrics) -> Self {
        let meters = WatchMetrics::new(metrics);
        let Place { namespace, mesh_name, .. } = place;
        let wake = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let root_store = RootSecret::new(client.clone(), namespace, mesh_name);
        let roots: Api<Secret> = Api::namespaced(client.clone(), namespace);
        // What is in it is read when it is looked at.
        let roots = Watch::lean(roots, |_| Ok(()), meters.kind("root Secret")).named(ROOT_SECRET);
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
        let namespaces = Namespaces::start(client.clone(), namespace, mesh_name, &wake, &meters);
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
            wake: Arc::default(),
            interval: LOOK_INTERVAL,
        };
        tasks.spawn(gateway_secret::follow(
            client.clone(),
            mesh_config.settings(),
            gateway.wake.clone(),
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
            publisher: TrustBundleConfigMaps::start(client.clone(), namespaces, mesh_name, &wake, &meters),
            gateway,
            workload_life: mesh_config.workload_life(),
            wake,
            background: Background { elector, mesh_config, tasks },
        }
    }
}

impl Background {
    /// Runs; `gateway` says how the ingress controller's certificate is.
    pub fn run(self, gateway: watch::Receiver<GatewayStatus>) -> RunningBackground {
        let Self { elector, mesh_config, mut tasks } = self;
        tasks.spawn(mesh_config.run(gateway));
        let (stop, stopped) = oneshot::channel::<()>();
        let elector = tokio::spawn(elector.run(async {
            // Dropped or sent: it is over.
            let _ = stopped.await;
        }));
        RunningBackground { stop, elector, _tasks: tasks }
    }
}

impl RunningBackground {
    /// Ends, and lets another replica lead at once.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.elector.await;
    }
}

/// Waits until the API server answers: on a cluster that starts, it may come later than we do.
pub async fn wait_for_api_server(client: &Client) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
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
