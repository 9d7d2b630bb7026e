//! A connection to an address that no object has, where such connections are refused. The log says which host it was for,
//! as far as its first bytes tell.

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::OutboundConnection;
use super::opaque::Told;
use crate::destinations::{NoEndpoint, ResolvedDestination};
use crate::detect::MAX_FIRST_BYTES;
use crate::detect::server::{ObservedServer, observed_server};
use crate::first_bytes;
use crate::stream::Abort;
use crate::telemetry::{ConnectionSecurity, ResponseFlag};

impl OutboundConnection<'_> {
    /// Logs the refusal and resets the connection. `received`: what was already read from the app.
    pub(super) async fn refuse(
        &self,
        io: TcpStream,
        received: BytesMut,
        target: &ResolvedDestination,
        reason: &str,
    ) {
        let host = Box::pin(self.observed_server(&io, received)).await;
        self.context.refusals.unregistered(self.dialled.address, host.name.as_deref(), reason);
        let tcp =
            self.context.http.telemetry.tcp(true, self.remote(target), ConnectionSecurity::outbound(None));
        let told = Told { outbound: self, target, endpoint: None, local: None, tcp };
        told.record(&host, ResponseFlag::NoHealthyUpstream, NoEndpoint::Unregistered.details(), [0, 0]);
        io.abort();
    }

    /// The server that the first bytes name, which come in time or do not.
    async fn observed_server(&self, io: &TcpStream, mut received: BytesMut) -> ObservedServer {
        let deadline = Instant::now() + self.context.http.limits.outbound_detect;
        loop {
            match observed_server(&received) {
                Some(host) => return host,
                None if received.len() <= MAX_FIRST_BYTES => {}
                None => return ObservedServer::default(),
            }
            let more = first_bytes::read_more(io, self.line, &mut received);
            if !matches!(timeout_at(deadline, more).await, Ok(true)) || !self.line.hold(received.capacity()) {
                return ObservedServer::default();
            }
        }
    }
}
