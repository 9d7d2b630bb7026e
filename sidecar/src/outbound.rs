//! A connection that the app opens, top to bottom: what was dialled, what the connection carries, and HTTP or opaque bytes.
//!
//! An endpoint of the mesh is spoken to over mutual TLS, and must be the workload that the controller says it is;
//! everything else is dialled as it is. Of HTTP, each request goes to an endpoint of its own, with the codecs that serve
//! inbound connections, too. Of opaque bytes, nothing is read from the app before a connection to an endpoint is open, so
//! that another endpoint can be tried, and so that servers may speak first.

mod carried;
mod observed;
mod opaque;
mod refused;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_core::destination::{DestinationKey, RequestedHost};
use tokio::net::TcpStream;

use crate::connection::OpenConnection;
use crate::connection_info::{HostServices, OutboundInfo};
use crate::context::WorkerContext;
use crate::destinations::{LiveDestination, ResolvedDestination};
use crate::detect;
use crate::http::{self, handler::Handler};
use crate::lifeline::Lifeline;
use crate::remotes::{RemoteId, RemoteLabels};
use crate::stream::{Abort, MaybeTls};
use crate::tls::stream::TlsStream;

use carried::Carried;

/// A connection of the app's, and where it means to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialled {
    /// The app's end.
    pub(crate) peer: SocketAddr,
    /// What the app dialled.
    pub(crate) address: SocketAddr,
}

/// A connection that the app has opened.
struct OutboundConnection<'w> {
    context: &'w Rc<WorkerContext>,
    dialled: Dialled,
    connection: &'w OpenConnection,
    line: &'w Lifeline,
    accepted: SystemTime,
}

/// Serves a connection until it ends.
///
/// Each step is a boxed future that is dropped when done, so an idle connection costs only the memory of the last one.
pub(crate) async fn serve(
    context: &Rc<WorkerContext>,
    io: TcpStream,
    dialled: Dialled,
    connection: &OpenConnection,
    line: &Lifeline,
) {
    let outbound = OutboundConnection { context, dialled, connection, line, accepted: SystemTime::now() };
    let key = dialled.address.into();
    let Ok(destination) = line.guard(Box::pin(outbound.find(&key))).await else { return io.abort() };
    let carried = carried::carried(&io, line, &context.http.limits, &destination);
    let Some(carried) = Box::pin(carried).await else { return };
    let client = |io| MaybeTls::<TlsStream>::Plain(io);
    match carried {
        Carried::Opaque(received) => {
            let found = line.guard(Box::pin(outbound.of_server(destination, &received))).await;
            let Ok(destination) = found else { return io.abort() };
            Box::pin(outbound.opaque(io, received, destination)).await;
        }
        Carried::Http1(received) => {
            let handler = outbound.handler(destination);
            Box::pin(http::h1::serve(client(io), received, &handler, line, &context.http)).await;
        }
        Carried::Http2(received) => {
            let handler = outbound.handler(destination);
            Box::pin(http::h2::serve(client(io), received, handler, line.clone(), context.http.clone()))
                .await;
        }
    }
}

impl OutboundConnection<'_> {
    /// Decides about each request of the connection.
    fn handler(&self, destination: Arc<ResolvedDestination>) -> Handler {
        let Dialled { peer, address } = self.dialled;
        let info = OutboundInfo {
            peer,
            dialled: address,
            service: destination.service().cloned(),
            hosts: HostServices::default(),
            destination: self.remote(&destination),
            owner: destination.owner().clone(),
        };
        let live = LiveDestination::new(self.context.destinations.clone(), address.into(), destination);
        Handler::outbound(info, live, self.context.refusals.clone(), self.context.http.clone())
    }

    /// What metrics call a destination of which no endpoint is reached.
    fn remote(&self, destination: &ResolvedDestination) -> RemoteId {
        let Some(service) = destination.name() else { return RemoteId::OUTSIDE };
        self.context.remotes.id(RemoteLabels { service: Some(service.clone()), ..RemoteLabels::default() })
    }

    /// The destination behind what is looked up. If the controller cannot be asked, it is one that no object has: where such
    /// addresses may be reached it is dialled directly, and a sidecar there does not accept plaintext.
    async fn find(&self, key: &DestinationKey) -> Arc<ResolvedDestination> {
        let destinations = &self.context.destinations;
        let unanswered = match destinations.find(key).await {
            Ok(target) => return target,
            Err(unanswered) => unanswered,
        };
        self.context.refusals.unanswered(key, unanswered);
        self.context.http.telemetry.totals().outbound_unknown.add(1);
        Arc::new(destinations.unanswered(key.address))
    }

    /// Where a connection goes whose bytes are not parsed beyond its first ones: where hosts tell connections apart, where the
    /// server leads that its ClientHello names.
    async fn of_server(
        &self,
        destination: Arc<ResolvedDestination>,
        received: &[u8],
    ) -> Arc<ResolvedDestination> {
        let Some(otherwise) = destination.told_apart_by_host() else { return destination };
        let first = detect::first_bytes(received);
        let server = first.client_hello().and_then(|hello| hello.server_name.clone());
        let Some(server) = server else { return otherwise.clone() };
        let host = Some(RequestedHost::of_server_name(server));
        self.find(&DestinationKey { host, ..self.dialled.address.into() }).await
    }
}

#[cfg(test)]
mod tests;
