//! gRPC calls of the sidecar's workers to servers that policy names, such as one for external authorization.
//!
//! A call is a request over the worker's own HTTP/2 connections ([`crate::upstream`]): it takes a place among the requests at
//! upstreams, of which each client has a share, and it is cancelled when its future is dropped. The server is spoken to in
//! plaintext, as gRPC clients do without further settings.

mod call;
mod server;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prost::Message;
use tidegate_core::policy::ServerAddress;

use self::server::GrpcServer;
use crate::connection_info::ServedConnection;
use crate::upstream::{UpstreamError, Upstreams};

/// A server that was not called for this long is forgotten.
const UNUSED_AFTER: Duration = Duration::from_secs(600);

/// A worker's view of the servers that have one purpose.
pub struct GrpcServers {
    /// What the log calls it.
    purpose: &'static str,
    known: RefCell<HashMap<ServerAddress, Rc<GrpcServer>>>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrpcError {
    /// The time for it is over.
    #[error("no answer in time")]
    Timeout,
    /// The server's name has no address.
    #[error("the name cannot be resolved: {0}")]
    Name(String),
    /// The server cannot be reached, or did not answer.
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
    /// The server answers with this HTTP status.
    #[error("HTTP status {0}")]
    HttpStatus(u16),
    /// The server answers with this status of gRPC, which is not 0.
    #[error("gRPC status {0}")]
    GrpcStatus(String),
    /// The answer is not one message of gRPC.
    #[error("{0}")]
    Malformed(&'static str),
}

impl GrpcServers {
    /// No servers are known yet. `purpose`: for the log.
    pub(crate) fn new(purpose: &'static str) -> Self {
        Self { purpose, known: RefCell::default() }
    }

    /// Calls a method, `/<service>/<method>`, on behalf of this client.
    pub(crate) async fn call<A: Message + Default>(
        &self,
        upstreams: &Upstreams,
        client: &ServedConnection,
        (address, method): (&ServerAddress, &'static str),
        message: &impl Message,
        timeout: Duration,
    ) -> Result<A, GrpcError> {
        let server = self.server(address);
        let calling = async {
            server.resolve().await.map_err(GrpcError::Name)?;
            call::unary(upstreams, client, (&server, method), message, timeout).await
        };
        tokio::time::timeout(timeout, calling).await.unwrap_or(Err(GrpcError::Timeout))
    }

    /// Logs that calls of a server begin to fail, with the reason, or that they work again.
    pub(crate) fn note(&self, address: &ServerAddress, error: Option<&impl Display>) {
        let server = self.server(address);
        if server.is_failing.replace(error.is_some()) == error.is_some() {
            return;
        }
        let purpose = self.purpose;
        match error {
            Some(error) => tracing::warn!(server = %address, %error, "{purpose} fails"),
            None => tracing::info!(server = %address, "{purpose} works again"),
        }
    }

    /// Forgets servers that are not called any more. To be called on every tick.
    pub(crate) fn sweep(&self, now: Instant) {
        self.known
            .borrow_mut()
            .retain(|_, server| now.saturating_duration_since(server.used()) < UNUSED_AFTER);
    }

    fn server(&self, address: &ServerAddress) -> Rc<GrpcServer> {
        let mut known = self.known.borrow_mut();
        if let Some(server) = known.get(address) {
            return server.clone();
        }
        known.entry(address.clone()).or_insert_with(|| Rc::new(GrpcServer::new(address.clone()))).clone()
    }
}

/// Bytes as text; each byte that is not part of UTF-8 becomes `!`, as in Envoy: strings of protobuf are UTF-8.
pub(crate) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

#[cfg(test)]
mod tests;
