//! `tidegate-controller`: see [`tidegate_controller`].
//!
//! The order of a start: the trust bundle is awaited first, because nothing can be verified without it; the own
//! certificate is requested in the background; then objects are read. A signal during startup ends the process like one
//! afterwards. At the end sidecars are sent to another replica, while the webhook, which the API server still calls,
//! drains in parallel; the Lease is given up last.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use k8s_openapi::api::core::v1::Pod;
use tidegate_controller::admission::{self, ValidatingWebhook};
use tidegate_controller::options::ControllerOptions;
use tidegate_controller::source::ObjectSource;
use tidegate_controller::source::folder::{FolderSource, is_workload};
use tidegate_controller::source::kubernetes::{KubernetesSource, is_injected};
use tidegate_controller::status::kubernetes::KubernetesStatuses;
use tidegate_controller::{Controller, ControllerConfig, ControllerDependencies, StatusWriter};
use tidegate_core::Identity;
use tidegate_kubernetes::client;
use tidegate_kubernetes::lease::{Elector, LeaseConfig, LeaseTiming};
use tidegate_kubernetes::watch::WatchMetrics;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::trust_bundle::{self, TrustBundle};
use tidegate_runtime::{identity, logging, memory, signals, tls};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = ControllerOptions::parse();
    let log = logging::init(&options.log)?;
    tls::install_provider();
    signals::raise_file_limit();
    // From here on, so that a signal during startup drains as well.
    let mut shutdown = std::pin::pin!(signals::shutdown()?);
    tokio::spawn(memory::give_back());
    let trust_domain = options.common.trust.trust_domain.clone();
    let identity =
        Identity::new(trust_domain.clone(), &options.common.namespace, tidegate_controller::SERVICE_ACCOUNT)
            .context("--namespace")?;
    let metrics = Metrics::new();
    let bundle = trust_bundle::watch_file(&options.ca.ca_trust_bundle, trust_bundle::DEFAULT_INTERVAL);
    let trust_bundle = tokio::select! {
        _ = &mut shutdown => return Ok(()),
        bundle = bundle => bundle,
    };
    let kept = identity::start(options.ca.clone(), Some(identity), trust_bundle.clone(), &metrics);
    let readiness = Readiness::new();
    let SourceSetup { source, status_writers, is_workload, mesh_name, webhook, election } =
        match &options.folder {
            Some(folder) => SourceSetup::folder(folder),
            None => {
                SourceSetup::cluster(&options, &kept.credentials, &trust_bundle, &metrics, &readiness).await?
            }
        };
    let config = ControllerConfig {
        listen: options.listen,
        admin: options.admin_address,
        health: options.common.health_address,
        trust_domain,
        max_connections: options.max_connections,
        is_workload,
        mesh_name,
    };
    let credentials = kept.credentials;
    let dependencies =
        ControllerDependencies { source, status_writers, credentials, trust_bundle, metrics, readiness, log };
    let controller = Controller::start(config, dependencies).await?;
    shutdown.await;
    tracing::info!("draining");
    // In the background, because its drain takes longer: the API server still calls it.
    let webhook_ends = tokio::spawn(async move {
        if let Some(webhook) = webhook {
            webhook.shutdown(options.common.drain_timeout).await;
        }
    });
    controller.shutdown(options.common.drain_timeout).await;
    if let Some(election) = election {
        election.resign().await;
    }
    let _ = webhook_ends.await;
    kept.task.abort();
    Ok(())
}

/// Where objects come from and their statuses go, with what only that kind of source has.
struct SourceSetup {
    source: Box<dyn ObjectSource>,
    status_writers: Vec<Box<dyn StatusWriter>>,
    is_workload: fn(&Pod) -> bool,
    mesh_name: Option<String>,
    webhook: Option<ValidatingWebhook>,
    election: Option<Election>,
}

impl SourceSetup {
    /// A folder: every Pod with a loopback address is a workload, every namespace is in the mesh, statuses are shown
    /// by the admin server only.
    fn folder(folder: &Path) -> Self {
        Self {
            source: Box::new(FolderSource::new(folder)),
            status_writers: Vec::new(),
            is_workload,
            mesh_name: None,
            webhook: None,
            election: None,
        }
    }

    /// A cluster: objects by watches, statuses written by the replica that leads, and the webhook if its address is
    /// configured. An error means that the client cannot be configured or the webhook cannot listen; an API server
    /// that does not answer is retried later.
    async fn cluster(
        options: &ControllerOptions,
        credentials: &watch::Receiver<Option<Arc<Credentials>>>,
        trust_bundle: &watch::Receiver<Arc<TrustBundle>>,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> anyhow::Result<Self> {
        let common = &options.common;
        let client = client::connect(&common.client).await?;
        let watches = WatchMetrics::new(metrics);
        let mut webhook = None;
        if let Some(address) = options.webhook_address {
            let dependencies = admission::WebhookDependencies {
                client: client.clone(),
                credentials: credentials.clone(),
                trust_bundle: trust_bundle.clone(),
                metrics: metrics.clone(),
                meter: watches.kind("ValidatingWebhookConfiguration"),
                readiness: readiness.clone(),
            };
            webhook = Some(ValidatingWebhook::start(address, &common.mesh_name, dependencies).await?);
        }
        let lease = LeaseConfig {
            namespace: common.namespace.clone(),
            name: tidegate_controller::SERVICE_ACCOUNT.to_owned(),
            holder: common.pod_name.clone().unwrap_or_default(),
            timing: LeaseTiming::default(),
        };
        let elector = Elector::new(client.clone(), lease);
        let statuses = KubernetesStatuses::new(metrics);
        tokio::spawn(statuses.clone().publish(client.clone(), elector.is_leader()));
        Ok(Self {
            source: Box::new(KubernetesSource::new(client, &common.namespace, watches).counted(metrics)),
            status_writers: vec![Box::new(statuses)],
            is_workload: is_injected,
            mesh_name: Some(common.mesh_name.clone()),
            webhook,
            election: Some(Election::start(elector)),
        })
    }
}

/// This replica's part in the election of a leader.
struct Election {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Election {
    /// Takes part until [`Election::resign`] or the end of the process; without it, others wait until the Lease
    /// expires.
    fn start(elector: Elector) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(elector.run(async {
            let _ = stopped.await;
        }));
        Self { stop, task }
    }

    /// Gives up leadership, so that another replica takes over at once.
    async fn resign(self) {
        drop(self.stop);
        let _ = self.task.await;
    }
}
