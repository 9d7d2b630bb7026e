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
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tracing::{debug, warn};

use crate::connection::OpenConnection;
use crate::connection_info::OutboundInfo;
use crate::context::WorkerContext;
use crate::destinations::{LiveDestination, Lookup, ResolvedDestination};
use crate::http::{self, handler::Handler};
use crate::lifeline::Lifeline;
use crate::remotes::{RemoteId, RemoteLabels};
use crate::stream::{Abort, MaybeTls};
use crate::tls::stream::TlsStream;

use carried::Carried;

/// How long the controller has to say what stands behind an address that is dialled for the first time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

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
    let Ok(destination) = line.guard(Box::pin(outbound.find())).await else { return io.abort() };
    let carried = carried::carried(&io, line, &context.http.limits, &destination);
    let Some(carried) = Box::pin(carried).await else { return };
    let client = |io| MaybeTls::<TlsStream>::Plain(io);
    match carried {
        Carried::Opaque(received) => Box::pin(outbound.opaque(io, received, destination)).await,
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
        let service = destination.name().cloned();
        let (remote, owner) = (self.remote(&destination), destination.owner().clone());
        let info = OutboundInfo { peer, dialled: address, service, destination: remote, owner };
        let live = LiveDestination::new(self.context.destinations.clone(), address, destination);
        Handler::outbound(info, live, self.context.refusals.clone())
    }

    /// What metrics call a destination of which no endpoint is reached.
    fn remote(&self, destination: &ResolvedDestination) -> RemoteId {
        let Some(service) = destination.name() else { return RemoteId::OUTSIDE };
        self.context.remotes.id(RemoteLabels { service: Some(service.clone()), ..RemoteLabels::default() })
    }

    /// The destination behind the address. If the controller cannot be asked, the address is one that no object has: where
    /// such addresses may be reached it is dialled directly, and a sidecar there does not accept plaintext.
    async fn find(&self) -> Arc<ResolvedDestination> {
        let address = self.dialled.address;
        let destinations = &self.context.destinations;
        match destinations.look_up(address) {
            Lookup::Known(target) => return target,
            Lookup::Asked(mut answer) => {
                let answered = answer.wait_for(Option::is_some);
                if let Ok(Ok(target)) = tokio::time::timeout(ANSWER_TIMEOUT, answered).await
                    && let Some(target) = target.clone()
                {
                    return target;
                }
                destinations.give_up(address);
                self.context.refusals.unless_flooded(|| {
                    warn!(%address, "the controller does not say who is there: it counts as an address that no object has");
                });
            }
            Lookup::OutOfReach => {
                debug!(%address, "the controller is out of reach: it counts as an address that no object has");
            }
        }
        self.context.http.telemetry.totals().outbound_unknown.add(1);
        Arc::new(destinations.unanswered(address))
    }
}

#[cfg(test)]
mod tests;
