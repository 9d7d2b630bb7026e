//! A connection to an address that no object has, where such connections are refused, or policies decide about them. The log says
//! which host it was for, as far as its first bytes tell.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::OutboundConnection;
use super::opaque::Told;
use crate::destinations::{NoEndpoint, PolicedAddress, ResolvedDestination};
use crate::detect::MAX_FIRST_BYTES;
use crate::detect::server::{ObservedServer, SpokenProtocol, observed_server};
use crate::first_bytes;
use crate::stream::Abort;
use crate::telemetry::{ConnectionSecurity, ResponseFlag};

impl OutboundConnection<'_> {
    /// Logs the refusal and resets the connection. `received`: what was already read from the app.
    pub(super) async fn refuse(
        &self,
        io: TcpStream,
        mut received: BytesMut,
        target: &ResolvedDestination,
        reason: &str,
    ) {
        let server = Box::pin(self.observed_server(&io, &mut received)).await;
        self.refused(target, &server, reason);
        io.abort();
    }

    /// Where a connection goes that policies allow for the server that it names, and what was read of it; `None` if it is refused,
    /// or only logged in audit mode.
    pub(super) async fn by_policies(
        &self,
        io: &TcpStream,
        mut received: BytesMut,
        target: &ResolvedDestination,
        address: &PolicedAddress,
    ) -> Option<(Arc<ResolvedDestination>, BytesMut)> {
        let (policies, dialled) = (&address.policies, self.dialled.address);
        let server = Box::pin(self.observed_server(io, &mut received)).await;
        let rule = match server.protocol {
            SpokenProtocol::Tls => policies.for_tls(dialled, server.name.as_deref()),
            SpokenProtocol::Http | SpokenProtocol::HttpProxy | SpokenProtocol::Tcp => None,
        };
        if rule.is_none() && !policies.is_audit {
            self.refused(target, &server, &policies.reason);
            return None;
        }
        if rule.is_none() {
            self.context.refusals.would_refuse(dialled, server.name.as_deref(), &policies.reason);
            self.context.http.telemetry.would_refuse(NoEndpoint::Unregistered.details());
        }
        Some((address.allowed(rule).clone(), received))
    }

    /// Logs and counts a refusal.
    fn refused(&self, target: &ResolvedDestination, server: &ObservedServer, reason: &str) {
        self.context.refusals.unregistered(self.dialled.address, server.name.as_deref(), reason);
        let tcp =
            self.context.http.telemetry.tcp(true, self.remote(target), ConnectionSecurity::outbound(None));
        let told = Told::new(self, target, tcp);
        told.record(server, ResponseFlag::NoHealthyUpstream, NoEndpoint::Unregistered.details(), [0, 0]);
    }

    /// The server that the first bytes name, which come in time or do not.
    async fn observed_server(&self, io: &TcpStream, received: &mut BytesMut) -> ObservedServer {
        let deadline = Instant::now() + self.context.http.limits.outbound_detect;
        loop {
            match observed_server(received) {
                Some(server) => return server,
                None if received.len() <= MAX_FIRST_BYTES => {}
                None => return ObservedServer::default(),
            }
            let more = first_bytes::read_more(io, self.line, received);
            if !matches!(timeout_at(deadline, more).await, Ok(true)) || !self.line.hold(received.capacity()) {
                return ObservedServer::default();
            }
        }
    }
}
