//! The sidecar program: parses flags, runs the data plane, and drains on SIGTERM.

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches};
use tidegate_runtime::{logging, memory, signals};
use tidegate_sidecar::intercept::{self, InterceptOptions};
use tidegate_sidecar::options::Options;
use tidegate_sidecar::sidecar::Sidecar;
use tidegate_sidecar::wait::{self, WaitOptions};

fn main() -> anyhow::Result<()> {
    let matches = Options::command()
        .subcommand(InterceptOptions::command())
        .subcommand(WaitOptions::command())
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true)
        .get_matches();
    if let Some(matches) = matches.subcommand_matches("intercept") {
        let options = InterceptOptions::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
        logging::init(&options.log)?;
        return Ok(intercept::run(&options)?);
    }
    if let Some(matches) = matches.subcommand_matches("wait") {
        let options = WaitOptions::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
        logging::init(&options.log)?;
        return Ok(wait::run(&options)?);
    }
    let options = Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let log = logging::init(&options.log)?;
    signals::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = signals::shutdown().context("signal handlers")?;
        tokio::spawn(memory::give_back());
        let sidecar = Sidecar::start(options, log).await?;
        let signal = shutdown.await;
        tracing::info!(?signal, "draining");
        sidecar.drain().await;
        Ok(())
    })
}
