//! Bytes that are passed on unseen, both ways, on a connection to one endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use tidegate_core::DnsName;
use tidegate_core::backend::{LimitedResource, UsagePermit};
use tidegate_core::policy::MeshProtocol;
use tokio::net::TcpStream;

use super::observed::ObservedClient;
use super::{Dialled, OutboundConnection};
use crate::connection_info::AddressOwner;
use crate::destinations::{EndpointChoice, NoEndpoint, ResolvedDestination, ResolvedTarget};
use crate::detect;
use crate::detect::server::{ObservedServer, observed_server};
use crate::remotes::RemoteId;
use crate::stream::{Abort, MaybeTls};
use crate::telemetry::{
    ConnectionSecurity, CountedTcp, DialledEndpoint, OutboundRecord, Record, ResponseFlag,
};
use crate::tunnel::{Tunnel, TunnelError, TunnelPatience};
use crate::upstream::{ConnectError, Deadline, RequestLimit, UpstreamTls};

/// A connection to an endpoint.
type Upstream = MaybeTls<UpstreamTls>;

/// The result of trying endpoints.
struct ConnectAttempt {
    /// The endpoint that was tried last.
    endpoint: Option<DialledEndpoint>,
    /// What it belongs to.
    service: Option<Arc<str>>,
    /// The connection, and its place among those to the backend, if they are limited.
    result: Result<(Upstream, EndpointChoice, Option<UsagePermit>), NotConnected>,
}

/// Why a connection has no endpoint.
enum NotConnected {
    NoEndpoint(NoEndpoint),
    Failed(ConnectError),
}

impl OutboundConnection<'_> {
    /// Connects to an endpoint of the destination, and forwards bytes until both are done. `received`: what was already
    /// read from the app.
    pub(super) async fn opaque(&self, io: TcpStream, received: BytesMut, target: Arc<ResolvedDestination>) {
        let (target, received) = match target.target() {
            ResolvedTarget::Unregistered(reason) => {
                return Box::pin(self.refuse(io, received, &target, reason)).await;
            }
            ResolvedTarget::Policies(address) => {
                let allowed = Box::pin(self.by_policies(&io, received, &target, address)).await;
                let Some((allowed, received)) = allowed else { return io.abort() };
                (allowed, received)
            }
            _ => (target, received),
        };
        let named = server_name(&target, &received);
        let server = named.as_ref().map(DnsName::as_str);
        let attempt = self.line.guard(Box::pin(self.connect(&target, server))).await;
        let Ok(ConnectAttempt { endpoint, service, result }) = attempt else { return io.abort() };
        let remote = endpoint.map_or_else(|| self.remote(&target), |endpoint| endpoint.remote);
        let security = ConnectionSecurity::outbound(endpoint.as_ref());
        let tcp = self.context.http.telemetry.tcp(true, remote, security);
        let local = result.as_ref().ok().and_then(|(upstream, ..)| local_address(upstream));
        let mut told = Told { service, endpoint, local, ..Told::new(self, &target, tcp) };
        match result {
            Ok((upstream, choice, _place)) => Box::pin(told.carry(io, received, upstream, &choice)).await,
            Err(failure) => {
                let (flag, details) = match failure {
                    NotConnected::NoEndpoint(reason) => (reason.flag(), reason.details()),
                    NotConnected::Failed(error) => {
                        told.failure = Some(error.to_string());
                        (error.failure().flag(), error.failure().details())
                    }
                };
                let requested = observed_server(&received).unwrap_or_default();
                told.record(&requested, flag, details, [0, 0]);
                io.abort();
            }
        }
    }

    /// Tries endpoints in the order of the balancer's choice until one accepts. One that does not is ejected for a
    /// while.
    async fn connect(&self, target: &Arc<ResolvedDestination>, server: Option<&str>) -> ConnectAttempt {
        if let Some(reason) = target.block_reason() {
            self.context.refusals.blocked(self.dialled.address, reason);
        }
        let mut choice = match target.choose_for_connection(server) {
            Ok(choice) => choice,
            Err(reason) => {
                let service = target.forward_proxy(server).cloned();
                let result = Err(NotConnected::NoEndpoint(reason));
                return ConnectAttempt { endpoint: None, service, result };
            }
        };
        let service = choice.service().cloned();
        let place = match connection_place(&choice) {
            Ok(place) => place,
            Err(limit) => {
                self.context.http.telemetry.limited(limit.limit());
                let failure = NotConnected::Failed(ConnectError::Overflow(limit));
                return ConnectAttempt { endpoint: None, service, result: Err(failure) };
            }
        };
        let upstreams = &self.context.http.upstreams;
        loop {
            let endpoint = choice.endpoint.clone();
            let tried = Some(choice.dialled());
            let connecting = upstreams.connect(&endpoint, MeshProtocol::Tcp, Deadline::Timer);
            let error = match connecting.await.and_then(|upstream| self.remember(upstream)) {
                Ok(upstream) => {
                    choice.connected();
                    return ConnectAttempt {
                        endpoint: tried,
                        service,
                        result: Ok((upstream, choice, place)),
                    };
                }
                Err(error) => error,
            };
            self.context.refusals.unreachable(self.dialled.address, &choice, &error);
            let failure = error.failure();
            if let Some(reason) = failure.of_forward_proxy() {
                self.context.http.telemetry.forward_proxy_failed(reason);
            }
            if !choice.turn_after(failure) {
                let result = Err(NotConnected::Failed(error));
                return ConnectAttempt { endpoint: tried, service, result };
            }
        }
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
}

/// A place among the connections to the backend; `None`: they are not limited.
fn connection_place(choice: &EndpointChoice) -> Result<Option<UsagePermit>, RequestLimit> {
    let Some(usage) = &choice.endpoint.usage else { return Ok(None) };
    usage.take(LimitedResource::Connection).map(Some).ok_or(RequestLimit::Connections)
}

/// The server that the client asks for, if it decides where the connection goes.
fn server_name(target: &ResolvedDestination, received: &[u8]) -> Option<DnsName> {
    let is_needed = target.needs_server_name() || matches!(target.target(), ResolvedTarget::Proxied(_));
    let first = is_needed.then(|| detect::first_bytes(received))?;
    first.client_hello().and_then(|hello| hello.server_name.clone())
}

fn local_address(upstream: &Upstream) -> Option<SocketAddr> {
    let socket = match upstream {
        MaybeTls::Plain(socket) => socket,
        MaybeTls::Tls(tls) => tls.socket(),
    };
    socket.local_addr().ok().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// A connection that has found its endpoint, or none.
pub(super) struct Told<'s> {
    pub(super) outbound: &'s OutboundConnection<'s>,
    pub(super) target: &'s ResolvedDestination,
    /// What the endpoint belongs to.
    pub(super) service: Option<Arc<str>>,
    pub(super) endpoint: Option<DialledEndpoint>,
    /// The sidecar's end of the connection to it.
    pub(super) local: Option<SocketAddr>,
    /// Why the endpoint could not be reached.
    pub(super) failure: Option<String>,
    pub(super) tcp: CountedTcp,
}

impl<'s> Told<'s> {
    /// One that has found no endpoint.
    pub(super) fn new(
        outbound: &'s OutboundConnection<'s>,
        target: &'s ResolvedDestination,
        tcp: CountedTcp,
    ) -> Self {
        Self { outbound, target, service: None, endpoint: None, local: None, failure: None, tcp }
    }

    /// Passes bytes both ways until both sides are done; if one breaks, the other gets a RST.
    async fn carry(
        &self,
        client: TcpStream,
        received: BytesMut,
        mut upstream: Upstream,
        choice: &EndpointChoice,
    ) {
        let limits = &self.outbound.context.http.limits;
        let line = self.outbound.line;
        let mut tunnel = Tunnel::new(&received, &[]);
        let mut client = match self.target.owner() {
            AddressOwner::Cluster => ObservedClient::unobserved(client),
            AddressOwner::Object(_) | AddressOwner::Unregistered => {
                ObservedClient::observed(client, &received)
            }
        };
        drop(received);
        let patience = TunnelPatience { stalled: limits.body, idle: Some(limits.idle), half_closed: None };
        let result = line.guard(tunnel.run(&mut client, &mut upstream, line, patience)).await;
        let moved = [tunnel.received(), tunnel.sent()];
        let (flag, details) = match result {
            Ok(Ok(())) => {
                return self.record(&client.requested(), ResponseFlag::None, "via_upstream", moved);
            }
            Ok(Err(error)) => {
                if error == TunnelError::Upstream && tunnel.sent() == 0 {
                    choice.failed();
                }
                (error.flag(), error.details())
            }
            Err(ended) => (ResponseFlag::None, ended.0.details()),
        };
        self.record(&client.requested(), flag, details, moved);
        client.abort();
        upstream.abort();
    }

    /// Writes the access log record. `requested`: as far as its first bytes were looked at. The bytes are those of the app,
    /// and those to it.
    pub(super) fn record(
        &self,
        requested: &ObservedServer,
        flag: ResponseFlag,
        details: &'static str,
        [received, sent]: [u64; 2],
    ) {
        let OutboundConnection { context, dialled: Dialled { peer, address }, accepted, .. } = self.outbound;
        self.tcp.moved(received, sent);
        context.http.telemetry.record(&Record {
            outbound: Some(OutboundRecord {
                peer: *peer,
                dialled: *address,
                service: self.target.service().or(self.service.as_ref()).map(|service| &**service),
                hosts: None,
                destination: RemoteId::UNKNOWN,
                endpoint: self.endpoint,
                local: self.local,
                owner: self.target.owner(),
                spoken: requested.protocol,
                server_name: requested.name.as_deref(),
            }),
            start: Some(*accepted),
            duration: SystemTime::now().duration_since(*accepted).unwrap_or_default(),
            flag,
            details,
            transport_failure: self.failure.as_deref().unwrap_or_default(),
            received,
            sent,
            ..Record::default()
        });
    }
}
