//! `tidegate-injector`: see [`tidegate_injector`].

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use tidegate_core::Identity;
use tidegate_core::contract::names;
use tidegate_injector::options::InjectorOptions;
use tidegate_injector::{ClusterState, PodReviewer};
use tidegate_kubernetes::client;
use tidegate_kubernetes::watch::WatchMetrics;
use tidegate_kubernetes::webhook::{CaBundleKeeper, WebhookLimits, WebhookServer};
use tidegate_runtime::admin::{AdminServer, ProcessName};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::identity::CertificatePage;
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::trust_bundle::TrustBundle;
use tidegate_runtime::{drain, identity, logging, memory, signals, tls, trust_bundle};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const NAME: ProcessName = ProcessName(names::INJECTOR);

/// Waits for the trust bundle before it opens the webhook's port: without it the injector gets no certificate, and the
/// API server refuses every connection. A signal during that wait ends the process at once; later ones drain it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = InjectorOptions::parse();
    let log = logging::init(&options.log)?;
    tls::install_provider();
    signals::raise_file_limit();
    // Installed early, so that a signal during startup drains as well.
    let mut shutdown = std::pin::pin!(signals::shutdown()?);
    tokio::spawn(memory::give_back());
    let own_identity =
        Identity::new(options.common.trust.trust_domain.clone(), &options.common.namespace, NAME.0)
            .context("--namespace")?;
    let client = client::connect(&options.common.client).await?;
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    let (trigger, watch) = drain::channel();

    let starting = readiness.block("trust bundle");
    let certificate = CertificatePage::default();
    serve_pages(&options, &metrics, &readiness, log, &certificate, &watch).await?;
    let bundle = trust_bundle::watch_file(&options.ca.ca_trust_bundle, trust_bundle::DEFAULT_INTERVAL);
    let bundle = tokio::select! {
        _ = &mut shutdown => return Ok(()),
        bundle = bundle => bundle,
    };
    let kept = identity::start(options.ca.clone(), Some(own_identity), bundle.clone(), &metrics);
    certificate.follow(kept.credentials.clone(), bundle.clone());
    let background =
        start_webhook(&options, client, bundle, kept.credentials, &metrics, &readiness, watch).await?;
    drop(starting);
    shutdown.await;
    tracing::info!("draining");
    trigger.drain(options.common.drain_timeout).await;
    kept.task.abort();
    background.iter().for_each(JoinHandle::abort);
    Ok(())
}

/// Serves kubelet's and Prometheus' pages, and the admin pages, until the drain starts.
async fn serve_pages(
    options: &InjectorOptions,
    metrics: &Metrics,
    readiness: &Readiness,
    log: LogHandle,
    certificate: &CertificatePage,
    watch: &drain::Watch,
) -> anyhow::Result<()> {
    if let Some(address) = options.common.health_address {
        let health = AdminServer::health(NAME, metrics.clone(), readiness.clone(), log.clone());
        tokio::spawn(health.bind(address).await?.serve(watch.clone()));
    }
    let admin = AdminServer::new(NAME, metrics.clone(), readiness.clone(), log).merge(certificate.routes());
    tokio::spawn(admin.bind(options.admin_address).await?.serve(watch.clone()));
    Ok(())
}

/// Starts the webhook, its view of the cluster, and the task that keeps the roots in the webhook configuration. They run
/// until they are aborted; the webhook accepts no new connections once the drain starts.
async fn start_webhook(
    options: &InjectorOptions,
    client: kube::Client,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    metrics: &Metrics,
    readiness: &Readiness,
    drain: drain::Watch,
) -> anyhow::Result<[JoinHandle<()>; 3]> {
    let watches = WatchMetrics::new(metrics);
    let (writer, state) = ClusterState::new();
    let following = writer.follow(client.clone(), &options.common.namespace, &watches, readiness);
    let keeper = CaBundleKeeper::<MutatingWebhookConfiguration>::new(
        client,
        options.configuration_name(),
        bundle,
        metrics,
        watches.kind("MutatingWebhookConfiguration"),
        Some(readiness.clone()),
    );
    let server = WebhookServer::bind(
        options.webhook_address,
        names::MUTATE_PATH,
        Arc::new(PodReviewer::new(options.settings(), state)),
        metrics,
        WebhookLimits::default(),
    )
    .await?;
    let serving = server.serve(credentials, readiness.clone(), drain);
    Ok([tokio::spawn(following), tokio::spawn(keeper.run()), tokio::spawn(serving)])
}
