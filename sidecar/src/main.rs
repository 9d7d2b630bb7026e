//! The sidecar as a program of its own: flags in, a data plane, and an orderly end on SIGTERM.

use anyhow::Context;
use clap::Parser;
use tidegate_runtime::{logging, signals};
use tidegate_sidecar::options::Options;
use tidegate_sidecar::sidecar::Sidecar;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let log = logging::init(&options.log)?;
    signals::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = signals::shutdown().context("signal handlers")?;
        let sidecar = Sidecar::start(options, log).await?;
        let signal = shutdown.await;
        tracing::info!(?signal, "draining");
        sidecar.drain().await;
        Ok(())
    })
}
