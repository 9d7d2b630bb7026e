//! What the operating system tells and gives a process.

use std::fmt;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// The signal that asked the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, which Kubernetes sends.
    Terminate,
    /// SIGINT, which Ctrl-C sends.
    Interrupt,
}

/// A future that is done at the first SIGTERM or SIGINT after this call. Needs a tokio runtime; fails only where
/// signal handlers cannot be installed.
pub fn shutdown() -> io::Result<impl Future<Output = Signal> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => Signal::Terminate,
            _ = interrupt.recv() => Signal::Interrupt,
        }
    })
}

/// Raises the soft limit of open files to the hard one, logs it, and returns what holds now (`None`: no limit).
/// A proxy needs two descriptors a connection, and the usual soft limit of 1,024 is there for programs that use
/// `select`.
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
        })
    }
}
