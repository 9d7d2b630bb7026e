//! Signals and resource limits of a process.

use std::fmt;
use std::io::{self, IsTerminal};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{self, SignalKind, signal};
use tracing::{info, warn};

/// The signal that requested the shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, which Kubernetes sends.
    Terminate,
    /// SIGINT, which Ctrl-C sends.
    Interrupt,
    /// SIGHUP, when the terminal is closed.
    HangUp,
}

/// Requests to reopen log files: SIGUSR1, as in nginx and Envoy.
#[derive(Debug)]
pub struct LogRotation(unix::Signal);

/// A future that resolves at the first SIGTERM or SIGINT after this call, or SIGHUP if standard error is a terminal.
/// Otherwise SIGHUP has no effect, nor has SIGUSR1 if no log file is open ([`log_rotation`]). Needs a tokio runtime;
/// fails only if signal handlers cannot be installed.
pub fn shutdown() -> io::Result<impl Future<Output = Signal> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    // Without a handler, the signal would kill the process.
    let rotation = log_rotation()?;
    let has_terminal = io::stderr().is_terminal();
    Ok(async move {
        let _rotation = rotation;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Signal::Terminate,
                _ = interrupt.recv() => return Signal::Interrupt,
                _ = hang_up.recv() => {
                    if has_terminal {
                        return Signal::HangUp;
                    }
                    info!("SIGHUP: nothing to do, files are read again whenever they change");
                }
            }
        }
    })
}

/// Requests from now on to reopen log files. Needs a tokio runtime; fails only if signal handlers cannot be installed.
pub fn log_rotation() -> io::Result<LogRotation> {
    signal(SignalKind::user_defined1()).map(LogRotation)
}

impl LogRotation {
    /// Resolves at the next request.
    pub async fn requested(&mut self) {
        if self.0.recv().await.is_none() {
            // No further request can arrive.
            std::future::pending::<()>().await;
        }
    }
}

/// Raises the soft limit of open files to the hard limit, logs it, and returns the new limit (`None`: unlimited). A
/// proxy needs two descriptors per connection, and the usual soft limit of 1,024 exists for programs that use `select`.
pub fn raise_file_limit() -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    if before.current == before.maximum {
        return before.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }) {
        Ok(()) => {
            info!(from = ?before.current, to = ?before.maximum, "raised the limit of open files");
            before.maximum
        }
        Err(error) => {
            warn!(%error, limit = ?before.current, "could not raise the limit of open files");
            before.current
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::HangUp => "SIGHUP",
        })
    }
}
