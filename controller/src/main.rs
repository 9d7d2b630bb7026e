//! `tidegate-controller`: see [`tidegate_controller`].

use anyhow::Context;
use clap::Parser;
use tidegate_controller::options::Options;
use tidegate_controller::source::folder::{FolderSource, is_local};
use tidegate_controller::{Config, Controller, Dependencies};
use tidegate_core::Identity;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::{identity, logging, signals, tls, trust_bundle};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let log = logging::init(&options.log)?;
    tls::install_provider();
    signals::raise_file_limit();
    // From here on, so that a signal during the start drains as well.
    let mut shutdown = std::pin::pin!(signals::shutdown()?);
    let identity =
        Identity::new(options.trust_domain.clone(), &options.namespace, tidegate_controller::SERVICE_ACCOUNT)
            .context("--namespace")?;
    let metrics = Metrics::new();
    let bundle = trust_bundle::watch_file(&options.ca.ca_trust_bundle, trust_bundle::DEFAULT_INTERVAL);
    let trust_bundle = tokio::select! {
        _ = &mut shutdown => return Ok(()),
        bundle = bundle => bundle,
    };
    let kept = identity::start(options.ca, Some(identity), trust_bundle.clone(), &metrics);
    let config = Config {
        listen: options.listen,
        admin: options.admin_address,
        trust_domain: options.trust_domain,
        max_connections: options.max_connections,
        is_workload: is_local,
    };
    let dependencies = Dependencies {
        source: Box::new(FolderSource::new(options.folder)),
        credentials: kept.credentials,
        trust_bundle,
        metrics,
        readiness: Readiness::new(),
        log,
    };
    let controller = Controller::start(config, dependencies).await?;
    shutdown.await;
    tracing::info!("draining");
    controller.shutdown(options.drain_timeout).await;
    kept.task.abort();
    Ok(())
}
