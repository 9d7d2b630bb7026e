//! Why interception fails.

use std::io;

use tidegate_runtime::signals::Signal;

/// Why connections are not, or might not be, captured.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The image lacks a program.
    #[error("{program} is neither in PATH nor in {folders}: install iptables in the image")]
    NoProgram {
        /// Its name.
        program: String,
        /// Folders that were searched besides PATH.
        folders: String,
    },
    /// Neither backend can be used.
    #[error("neither backend of iptables can be used; nft: {nft}; legacy: {legacy}")]
    NoBackend {
        /// Why nft cannot be used.
        nft: String,
        /// Why legacy cannot be used.
        legacy: String,
    },
    /// An iptables program failed.
    #[error("{program}: {message}{hint}")]
    Program {
        /// Its path.
        program: String,
        /// Its error output.
        message: String,
        /// What to do about it; empty or beginning with a colon.
        hint: &'static str,
    },
    /// The program could not be restarted with a writable lock file.
    #[error("cannot restart with another lock file: {0}")]
    Restart(#[source] io::Error),
    /// PodIP mode needs the pod's addresses.
    #[error("--local-proxy-mode pod-ip needs the pod's addresses: --pod-ips (or POD_IPS) is empty")]
    NoPodIps,
    /// The rules are not in place.
    #[error(
        "the rules for {family} are not what they should be: {what}; run tidegate-sidecar intercept again"
    )]
    NotInPlace {
        /// IPv4 or IPv6.
        family: &'static str,
        /// The first difference.
        what: String,
    },
    /// The check's port is in use.
    #[error("the check cannot listen on port {port}, which is the sidecar's to use: {source}")]
    CheckPort {
        /// The check's port.
        port: u16,
        /// The kernel's error.
        source: io::Error,
    },
    /// A connection was not captured.
    #[error(
        "a connection to {target} by user {user} was not captured: {problem}; other rules of the pod or of its network may come first"
    )]
    NotCaptured {
        /// Destination of the connection.
        target: std::net::SocketAddr,
        /// User that opened it.
        user: u32,
        /// What went wrong.
        problem: String,
    },
    /// A signal arrived before the sidecar was ready.
    #[error("ended by {signal} while the sidecar was not ready: {reason}")]
    Ended {
        /// The signal.
        signal: Signal,
        /// The sidecar's last answer, or why it could not be reached.
        reason: String,
    },
    /// Signals or sockets cannot be used.
    #[error("cannot wait for the sidecar: {0}")]
    Wait(#[source] io::Error),
    /// The check would run as the user whose connections are never captured.
    #[error("the check must not run as user {0}: it is the sidecar's, whose connections are not redirected")]
    CheckAsSidecar(u32),
}
