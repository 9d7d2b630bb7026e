//! `tidegate-controller`: see [`tidegate_controller`].

use anyhow::Context;
use clap::Parser;
use tidegate_controller::admission::{self, Webhook};
use tidegate_controller::options::Options;
use tidegate_controller::source::Source;
use tidegate_controller::source::folder::{FolderSource, is_local};
use tidegate_controller::source::kubernetes::{KubernetesSource, is_injected};
use tidegate_controller::status::kubernetes::KubernetesStatuses;
use tidegate_controller::{Config, Controller, Dependencies, StatusWriter};
use tidegate_core::Identity;
use tidegate_kubernetes::client;
use tidegate_kubernetes::lease::{Elector, LeaseConfig, LeaseTiming};
use tidegate_kubernetes::watch::WatchMetrics;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::{identity, logging, memory, signals, tls, trust_bundle};
use tokio::sync::oneshot;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let log = logging::init(&options.log)?;
    tls::install_provider();
    signals::raise_file_limit();
    // From here on, so that a signal during the start drains as well.
    let mut shutdown = std::pin::pin!(signals::shutdown()?);
    tokio::spawn(memory::give_back());
    let identity = Identity::new(
        options.common.trust.trust_domain.clone(),
        &options.common.namespace,
        tidegate_controller::SERVICE_ACCOUNT,
    )
    .context("--namespace")?;
    let metrics = Metrics::new();
    let bundle = trust_bundle::watch_file(&options.ca.ca_trust_bundle, trust_bundle::DEFAULT_INTERVAL);
    let trust_bundle = tokio::select! {
        _ = &mut shutdown => return Ok(()),
        bundle = bundle => bundle,
    };
    let kept = identity::start(options.ca, Some(identity), trust_bundle.clone(), &metrics);
    let mut config = Config {
        listen: options.listen,
        admin: options.admin_address,
        health: options.common.health_address,
        trust_domain: options.common.trust.trust_domain,
        max_connections: options.max_connections,
        is_workload: is_local,
        mesh_name: None,
    };
    let readiness = Readiness::new();
    let mut webhook = None;
    let mut status_writers: Vec<Box<dyn StatusWriter>> = Vec::new();
    let (stop, stopped) = oneshot::channel::<()>();
    let (source, election): (Box<dyn Source>, _) = match options.folder {
        Some(folder) => (Box::new(FolderSource::new(folder)), None),
        None => {
            let client = client::connect(&options.common.client).await?;
            config.is_workload = is_injected;
            let watches = WatchMetrics::new(&metrics);
            if let Some(address) = options.webhook_address {
                let dependencies = admission::Dependencies {
                    client: client.clone(),
                    credentials: kept.credentials.clone(),
                    trust_bundle: trust_bundle.clone(),
                    metrics: metrics.clone(),
                    meter: watches.kind("ValidatingWebhookConfiguration"),
                    readiness: readiness.clone(),
                };
                webhook = Some(Webhook::start(address, &options.common.mesh_name, dependencies).await?);
            }
            config.mesh_name = Some(options.common.mesh_name);
            let lease = LeaseConfig {
                namespace: options.common.namespace.clone(),
                name: tidegate_controller::SERVICE_ACCOUNT.to_owned(),
                holder: options.common.pod_name.unwrap_or_default(),
                timing: LeaseTiming::default(),
            };
            let elector = Elector::new(client.clone(), lease);
            let statuses = KubernetesStatuses::new(&metrics);
            status_writers.push(Box::new(statuses.clone()));
            tokio::spawn(statuses.publish(client.clone(), elector.is_leader()));
            let election = tokio::spawn(elector.run(async {
                let _ = stopped.await;
            }));
            let source = KubernetesSource::new(client, &options.common.namespace, watches).counted(&metrics);
            (Box::new(source), Some(election))
        }
    };
    let dependencies = Dependencies {
        source,
        status_writers,
        credentials: kept.credentials,
        trust_bundle,
        metrics,
        readiness,
        log,
    };
    let controller = Controller::start(config, dependencies).await?;
    shutdown.await;
    tracing::info!("draining");
    // It lingers, for the API server still asks; nothing else waits for it.
    let webhook_ends = tokio::spawn(async move {
        if let Some(webhook) = webhook {
            webhook.shutdown(options.common.drain_timeout).await;
        }
    });
    controller.shutdown(options.common.drain_timeout).await;
    // Another replica takes over at once.
    drop(stop);
    if let Some(election) = election {
        let _ = election.await;
    }
    let _ = webhook_ends.await;
    kept.task.abort();
    Ok(())
}
