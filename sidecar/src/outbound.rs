//! A connection that the app opens, top to bottom: what was dialled, who stands behind it, which endpoint it goes to,
//! and the bytes.
//!
//! An endpoint of the mesh is spoken to over mutual TLS, and must be the workload that the controller says it is;
//! everything else is dialled as it is. Nothing is read from the app before a connection to an endpoint is open, so that
//! another endpoint can be tried, and so that servers may speak first.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_core::backend::Transport;
use tidegate_core::policy::MeshProtocol;
use tokio::net::TcpStream;
use tracing::{debug, warn};

use crate::connection::OpenConnection;
use crate::context::WorkerContext;
use crate::destinations::{LoadSlot, Lookup, ResolvedDestination};
use crate::lifeline::Lifeline;
use crate::stream::{Abort, MaybeTls};
use crate::telemetry::{OutboundRecord, Record, ResponseFlag};
use crate::tunnel::{Tunnel, TunnelError, TunnelPatience};
use crate::upstream::{ConnectError, ConnectFailure, Deadline, UpstreamTls};

/// How long the controller has to say what stands behind an address that is dialled for the first time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The most endpoints that are tried for one connection.
const MOST_TRIES: usize = 5;

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

/// The result of trying endpoints.
struct ConnectAttempt {
    target: Arc<ResolvedDestination>,
    /// The endpoint that was tried last, and whether over mutual TLS.
    endpoint: Option<(SocketAddr, bool)>,
    /// `None`: there was no endpoint to try.
    result: Result<(Upstream, LoadSlot), Option<ConnectFailure>>,
}

/// A connection to an endpoint.
type Upstream = MaybeTls<UpstreamTls>;

/// Serves a connection until it ends.
pub(crate) async fn serve(
    context: &Rc<WorkerContext>,
    io: TcpStream,
    dialled: Dialled,
    connection: &OpenConnection,
    line: &Lifeline,
) {
    let story = OutboundConnection { context, dialled, connection, line, accepted: SystemTime::now() };
    let attempt = line.guard(Box::pin(story.connect())).await;
    let Ok(ConnectAttempt { target, endpoint, result }) = attempt else { return io.abort() };
    let told = Told { story: &story, target: &target, endpoint };
    match result {
        Ok((upstream, held)) => Box::pin(told.carry(io, upstream, &held)).await,
        Err(failure) => {
            let (flag, details) = match failure {
                None if target.block_reason().is_some() => {
                    (ResponseFlag::NoHealthyUpstream, "destination_blocked")
                }
                None => (ResponseFlag::NoHealthyUpstream, "no_healthy_upstream"),
                Some(failure) => (failure.flag(), failure.details()),
            };
            told.record(flag, details, 0, 0);
            io.abort();
        }
    }
}

impl OutboundConnection<'_> {
    /// Tries endpoints in the order of the balancer's choice until one accepts. One that does not is ejected for a
    /// while.
    async fn connect(&self) -> ConnectAttempt {
        let target = self.find().await;
        let mut attempt = ConnectAttempt { target: target.clone(), endpoint: None, result: Err(None) };
        if let Some(reason) = target.block_reason() {
            let dialled = self.dialled.address;
            self.context.refusals.unless_flooded(|| warn!(%dialled, %reason, "the destination is blocked"));
        }
        let mut tried = Vec::new();
        let upstreams = &self.context.http.upstreams;
        while tried.len() < MOST_TRIES
            && let Some(choice) = target.choose(&tried)
        {
            let endpoint = &choice.endpoint;
            tried.push(endpoint.address);
            attempt.endpoint = Some((endpoint.address, matches!(endpoint.transport, Transport::Mesh(_))));
            let held = choice.hold();
            let connecting = upstreams.connect(endpoint, MeshProtocol::Tcp, Deadline::Timer);
            match connecting.await.and_then(|upstream| self.remember(upstream)) {
                Ok(upstream) => {
                    held.succeeded();
                    attempt.result = Ok((upstream, held));
                    break;
                }
                Err(error) => {
                    self.failed(&target, endpoint.address, &error);
                    held.unreachable();
                    attempt.result = Err(Some(error.failure()));
                }
            }
        }
        attempt
    }

    /// From here on, changes of the trust bundle reach the connection.
    fn remember(&self, upstream: Upstream) -> Result<Upstream, ConnectError> {
        if let MaybeTls::Tls(tls) = &upstream
            && let Some(chain) = tls.sidecar_certificates()
        {
            let mut certificates = self.context.certificates.borrow_mut();
            let verified = certificates.intern(chain).map_err(ConnectError::other_tls)?;
            self.connection.reached(verified.certificate);
        }
        Ok(upstream)
    }

    /// The destination behind the address. If the controller cannot be asked, the address is dialled directly: a sidecar there
    /// does not accept plaintext.
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
                    warn!(%address, "the controller does not say who is there: dialled as it is");
                });
            }
            Lookup::OutOfReach => debug!(%address, "the controller is out of reach: dialled as it is"),
        }
        self.context.http.telemetry.totals().outbound_unknown.add(1);
        Arc::new(ResolvedDestination::outside(address))
    }

    /// Logs an endpoint that cannot be reached: a warning for a service of the mesh, whose operator can do something
    /// about it.
    fn failed(&self, target: &ResolvedDestination, endpoint: SocketAddr, error: &ConnectError) {
        let dialled = self.dialled.address;
        match target.name() {
            Some(name) => self.context.refusals.unless_flooded(|| {
                warn!(%dialled, service = %name, %endpoint, %error, "an endpoint cannot be reached");
            }),
            None => debug!(%dialled, %error, "no endpoint could be reached"),
        }
    }
}

/// A story that has found its destination.
struct Told<'s> {
    story: &'s OutboundConnection<'s>,
    target: &'s ResolvedDestination,
    endpoint: Option<(SocketAddr, bool)>,
}

impl Told<'_> {
    /// Passes bytes both ways until both sides are done; if one breaks, the other gets a RST.
    async fn carry(&self, mut client: TcpStream, mut upstream: Upstream, held: &LoadSlot) {
        let limits = &self.story.context.http.limits;
        let line = self.story.line;
        let mut tunnel = Tunnel::default();
        let patience = TunnelPatience { stalled: limits.body, idle: Some(limits.idle), half_closed: None };
        let (flag, details) = match line.guard(tunnel.run(&mut client, &mut upstream, line, patience)).await {
            Ok(Ok(())) => {
                return self.record(ResponseFlag::None, "via_upstream", tunnel.received(), tunnel.sent());
            }
            Ok(Err(error)) => {
                if error == TunnelError::Upstream && tunnel.sent() == 0 {
                    held.failed();
                }
                (error.flag(), error.details())
            }
            Err(ended) => (ResponseFlag::None, ended.0.details()),
        };
        self.record(flag, details, tunnel.received(), tunnel.sent());
        client.abort();
        upstream.abort();
    }

    /// Writes the access log record. `received`: bytes of the app; `sent`: bytes to it.
    fn record(&self, flag: ResponseFlag, details: &'static str, received: u64, sent: u64) {
        let OutboundConnection { context, dialled, accepted, .. } = self.story;
        context.http.telemetry.record(&Record {
            outbound: Some(OutboundRecord {
                peer: dialled.peer,
                dialled: dialled.address,
                service: self.target.name().map(|name| &**name),
                endpoint: self.endpoint.map(|(address, _)| address),
                is_mutual_tls: self.endpoint.is_some_and(|(_, is_mutual_tls)| is_mutual_tls),
            }),
            start: Some(*accepted),
            duration: SystemTime::now().duration_since(*accepted).unwrap_or_default(),
            flag,
            details,
            received,
            sent,
            ..Record::default()
        });
    }
}

#[cfg(test)]
mod tests;
