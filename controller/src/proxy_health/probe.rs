//! One attempt to use a proxy.

use std::io;
use std::time::Duration;

use rustls::RootCertStore;
use tidegate_core::forward_proxy::connect::{ConnectAnswer, MalformedAnswer, ProxyRefusal};
use tidegate_runtime::forward_proxy::{HttpProxy, ProxyTunnelError, roots_of_pem};
use tokio::time::timeout;

use super::{ProxyDefect, ProxyProbe};

/// A name that never exists (RFC 6761 §6.4): a proxy that works says so, or that its rules do not allow it.
const TARGET: &str = "tidegate-probe.invalid:443";
/// The pause before the second attempt.
const PAUSE: Duration = Duration::from_secs(1);
/// The most time for a connection and for an answer, whatever the object allows: both attempts and the pauses take less
/// than a minute.
const LONGEST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15));

impl ProxyProbe {
    /// Uses the proxy, and if that fails once more a second later: one lost packet is not an outage.
    pub(super) async fn run(&self) -> Result<(), ProxyDefect> {
        if self.attempt().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
        self.attempt().await
    }

    async fn attempt(&self) -> Result<(), ProxyDefect> {
        let Self { proxy, .. } = self;
        let roots = self.roots.as_ref().map(|pem| roots_of_pem(pem.as_bytes())).transpose();
        let roots = roots.unwrap_or_default().unwrap_or_else(RootCertStore::empty);
        let limit = self.connect_timeout.min(LONGEST.0);
        let connected = timeout(limit, proxy.connect(&roots)).await;
        let connected = connected.map_err(|_| late(proxy, "Unreachable", "no connection", limit))?;
        let mut io = connected.map_err(|error| defect(not_connected(proxy, &error), error))?;
        let limit = self.response_timeout.min(LONGEST.1);
        let answered = timeout(limit, proxy.request_tunnel(&mut io, TARGET)).await;
        let answered = answered.map_err(|_| late(proxy, "NoAnswer", "no answer to CONNECT", limit))?;
        match answered.map_err(|error| defect(not_answered(&error), error))? {
            ConnectAnswer::Refused(refusal) if refusal.status == 407 => {
                Err(refused(proxy, "AuthenticationFailed", refusal))
            }
            // Not allowed, not implemented: it is a server, or a proxy for requests alone.
            ConnectAnswer::Refused(refusal) if matches!(refusal.status, 405 | 501) && self.opens_tunnels => {
                Err(refused(proxy, "ConnectNotSupported", refusal))
            }
            ConnectAnswer::Refused(_) | ConnectAnswer::Tunnel => Ok(()),
        }
    }
}

/// A step that takes too long.
fn late(proxy: &HttpProxy, reason: &'static str, what: &str, limit: Duration) -> ProxyDefect {
    ProxyDefect { reason, message: format!("forward proxy {proxy}: {what} within {limit:?}") }
}

fn defect(reason: &'static str, error: ProxyTunnelError) -> ProxyDefect {
    ProxyDefect { reason, message: error.to_string() }
}

/// An answer that no tunnel is possible after.
fn refused(proxy: &HttpProxy, reason: &'static str, refusal: ProxyRefusal) -> ProxyDefect {
    ProxyDefect { reason, message: format!("forward proxy {proxy} answers CONNECT with {refusal}") }
}

/// The reason of a failed connection: errors of the kernel are TCP's, all others TLS's.
fn not_connected(proxy: &HttpProxy, error: &ProxyTunnelError) -> &'static str {
    let ProxyTunnelError::Connection { source, .. } = error else { return "TLSFailed" };
    let is_of_tcp = matches!(
        source.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
    );
    if proxy.is_tls() && !is_of_tcp { "TLSFailed" } else { "Unreachable" }
}

/// The reason if the proxy accepts the connection and does not answer `CONNECT`.
fn not_answered(error: &ProxyTunnelError) -> &'static str {
    match error {
        ProxyTunnelError::Malformed { source: MalformedAnswer::NotHttp, .. } => "MalformedAnswer",
        ProxyTunnelError::Malformed { source: MalformedAnswer::TooLarge, .. } => "HeadTooLarge",
        _ => "Closed",
    }
}
