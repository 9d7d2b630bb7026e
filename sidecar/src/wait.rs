//! `tidegate-sidecar wait`: for an init container that waits for a server, such as a database.
//!
//! A connection from a meshed app succeeds before the sidecar has found a server, so a wait that only connects ends at
//! once. This one waits for an answer (`attempt`).

mod attempt;
mod target;

use std::io;
use std::pin::pin;
use std::time::Duration;

use clap::Parser;
use tidegate_core::contract::names::SIDECAR_USER;
use tidegate_runtime::logging::LogOptions;
use tidegate_runtime::signals::{self, Signal};
use tokio::time::sleep;
use tracing::info;

pub use target::{WaitTarget, WaitTargetError};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Wait until servers answer. Works through a sidecar, where a connection alone proves nothing. Exits with status 0
/// once all servers have answered, and with another status on timeout.
#[derive(Parser, Clone, Debug)]
#[command(name = "wait")]
pub struct WaitOptions {
    /// A server. tcp://HOST:PORT answers with its first bytes, or by closing a connection whose end it has read;
    /// http://HOST[:PORT][/PATH] answers with a status from 200 to 399. May be repeated, or separated by commas.
    #[arg(
        long = "for",
        env = "TIDEGATE_WAIT_FOR",
        value_name = "URL",
        required = true,
        value_delimiter = ','
    )]
    pub targets: Vec<WaitTarget>,

    /// Timeout for all servers together.
    #[arg(long, env = "TIDEGATE_WAIT_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogOptions,
}

/// Why the wait ended before all servers answered.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The wait would bypass the sidecar.
    #[error(
        "the wait must not run as user {SIDECAR_USER}: it is the sidecar's, whose connections are not redirected; set \
         securityContext.runAsUser of the container to another one, such as 65532"
    )]
    AsSidecar,
    /// The timeout has passed.
    #[error("{target} has not answered within {}: {reason}", humantime::format_duration(*timeout))]
    Late {
        /// The server.
        target: WaitTarget,
        /// The timeout for all servers.
        timeout: Duration,
        /// Why the last attempt failed.
        reason: String,
    },
    /// A signal ended the wait.
    #[error("ended by {signal} while {target} has not answered: {reason}")]
    Ended {
        /// The signal.
        signal: Signal,
        /// The server.
        target: WaitTarget,
        /// Why the last attempt failed.
        reason: String,
    },
    /// Signals or the runtime cannot be set up.
    #[error("cannot wait: {0}")]
    Start(#[from] io::Error),
}

/// Returns once every server has answered.
///
/// # Errors
///
/// On timeout, on SIGTERM or SIGINT, or if run as the sidecar's user.
pub fn run(options: &WaitOptions) -> Result<(), WaitError> {
    if rustix::process::geteuid().as_raw() == SIDECAR_USER {
        return Err(WaitError::AsSidecar);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let shutdown = signals::shutdown()?;
        wait(options, shutdown).await
    })
}

/// Waits for each target in its turn. A signal ends the wait with an error, because the init container has not done its
/// work.
async fn wait(options: &WaitOptions, shutdown: impl Future<Output = Signal>) -> Result<(), WaitError> {
    let mut over = pin!(sleep(options.timeout));
    let mut shutdown = pin!(shutdown);
    for target in &options.targets {
        let mut reason = "no attempt has finished yet".to_owned();
        tokio::select! {
            () = answered(target, &mut reason) => info!(%target, "the server answers"),
            () = &mut over => {
                return Err(WaitError::Late { target: target.clone(), timeout: options.timeout, reason });
            }
            signal = &mut shutdown => {
                return Err(WaitError::Ended { signal, target: target.clone(), reason });
            }
        }
    }
    Ok(())
}

/// Repeats attempts until one succeeds. `reason`: why the last one failed; logged whenever it changes.
async fn answered(target: &WaitTarget, reason: &mut String) {
    loop {
        let Err(error) = attempt::attempt(target).await else { return };
        let now = error.to_string();
        if *reason != now {
            info!(%target, reason = %now, "waiting for the server");
            *reason = now;
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests;
