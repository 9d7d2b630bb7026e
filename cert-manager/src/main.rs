//! The `tidegate-cert-manager` program: flags in, a certificate authority out, until SIGTERM.

use anyhow::Context;
use clap::Parser;
use tidegate_cert_manager::kubernetes::wait_for_api_server;
use tidegate_cert_manager::manager::PROCESS;
use tidegate_cert_manager::{CertManager, CertManagerOptions};
use tidegate_runtime::admin::AdminServer;
use tidegate_runtime::drain::{self, DrainOutcome};
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::{logging, memory, signals};
use tracing::{info, warn};

fn main() -> anyhow::Result<()> {
    let options = CertManagerOptions::parse();
    let log = logging::init(&options.log)?;
    signals::raise_file_limit();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(options, log))
}

/// Runs until a signal. On Kubernetes it first waits for the API server, during which a signal ends it at once; the
/// Lease is given back before the drain, so that another replica writes Secrets meanwhile.
async fn run(options: CertManagerOptions, log: logging::LogHandle) -> anyhow::Result<()> {
    let mut shutdown = std::pin::pin!(signals::shutdown()?);
    tokio::spawn(memory::give_back());
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    let (draining, drained) = drain::channel();
    // First, because kubelet's liveness probe must succeed while this waits for the API server.
    let starting = readiness.block("certificate authority");
    if let Some(address) = options.common.health_address {
        let health = AdminServer::health(PROCESS, metrics.clone(), readiness.clone(), log.clone());
        tokio::spawn(health.bind(address).await?.serve(drained));
    }
    let (config, dependencies, background) = if options.kubernetes.kubernetes {
        let client = tidegate_kubernetes::client::connect(&options.common.client).await?;
        tokio::select! {
            () = wait_for_api_server(&client) => {}
            signal = &mut shutdown => {
                info!(?signal, "ended before the API server answered");
                return Ok(());
            }
        }
        let (config, dependencies, background) =
            options.build_on_kubernetes(&client, metrics, readiness, log)?;
        (config, dependencies, Some(background))
    } else {
        let (config, dependencies) = options.build(metrics, readiness, log)?;
        (config, dependencies, None)
    };
    let manager =
        CertManager::start(config, dependencies).await.context("the certificate authority does not start")?;
    drop(starting);
    let background = background.map(|background| background.run(manager.gateway_status()));
    let signal = shutdown.await;
    info!(?signal, "draining");
    draining.start();
    if let Some(background) = background {
        background.stop().await;
    }
    match manager.drain(options.common.drain_timeout).await {
        DrainOutcome::Complete => info!("drained"),
        DrainOutcome::DeadlinePassed { remaining } => {
            warn!(remaining, "ended before everything was finished");
        }
    }
    Ok(())
}
