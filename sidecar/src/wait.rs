//! `tidegate-sidecar wait`: for an init container that waits for a server, such as a database.
//!
//! A meshed app's connection succeeds before its sidecar knows whether there is a server, so a wait that only connects ends
//! at once. This one waits for an answer (`question`).

mod question;
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

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// Wait until servers answer, also through a sidecar, where a connection alone says nothing. Ends with status 0 once each
/// of them has answered, and with another one when the time is over.
#[derive(Parser, Clone, Debug)]
#[command(name = "wait")]
pub struct WaitOptions {
    /// A server. tcp://HOST:PORT answers by its first bytes, or by closing a connection of which it has read the end;
    /// http://HOST[:PORT][/PATH] by a status from 200 to 399. May be repeated, or separated by commas.
    #[arg(
        long = "for",
        env = "TIDEGATE_WAIT_FOR",
        value_name = "URL",
        required = true,
        value_delimiter = ','
    )]
    pub targets: Vec<WaitTarget>,

    /// For all of them.
    #[arg(long, env = "TIDEGATE_WAIT_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogOptions,
}

/// Why the wait is over although a server has not answered.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It would be waited for past the sidecar.
    #[error(
        "the wait must not run as user {SIDECAR_USER}: it is the sidecar's, whose connections are not redirected; set \
         securityContext.runAsUser of the container to another one, such as 65532"
    )]
    AsSidecar,
    /// The time is over.
    #[error("{target} has not answered within {}: {reason}", humantime::format_duration(*timeout))]
    Late {
        /// Which.
        target: WaitTarget,
        /// For all of them.
        timeout: Duration,
        /// What came instead of its last answer.
        reason: String,
    },
    /// It was told to end.
    #[error("ended by {signal} while {target} has not answered: {reason}")]
    Ended {
        /// What told it.
        signal: Signal,
        /// Which.
        target: WaitTarget,
        /// What came instead of its last answer.
        reason: String,
    },
    /// Signals or the runtime cannot be used.
    #[error("cannot wait: {0}")]
    Start(#[from] io::Error),
}

/// Returns once every server has answered.
pub fn run(options: &WaitOptions) -> Result<(), WaitError> {
    if rustix::process::geteuid().as_raw() == SIDECAR_USER {
        return Err(WaitError::AsSidecar);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let shutdown = signals::shutdown()?;
        wait(options, shutdown).await
    })
}

async fn wait(options: &WaitOptions, shutdown: impl Future<Output = Signal>) -> Result<(), WaitError> {
    let mut over = pin!(sleep(options.timeout));
    let mut shutdown = pin!(shutdown);
    for target in &options.targets {
        let mut reason = "it has not been asked yet".to_owned();
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

/// Asks again and again. `reason` is what came instead of the last answer; logged whenever it is another one.
async fn answered(target: &WaitTarget, reason: &mut String) {
    loop {
        let Err(error) = question::ask(target).await else { return };
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
