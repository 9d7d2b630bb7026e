//! The life of an inbound connection, top to bottom: admission, protocol detection, policy, TLS handshake, and then
//! HTTP or opaque bytes.
//!
//! Connections that no rule allows end here, with the reason in the log: by RST before TLS, by a TLS alert because of
//! the client certificate, by `403` within HTTP.

mod opaque;
mod refusal;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use rustls_pki_types::UnixTime;
use tidegate_core::policy::{
    AppProtocol, Decision, Denial, InboundPolicy, MeshProtocol, Opening, Reason, Terms,
};
use tokio::net::TcpStream;

use crate::authorizer::{Authorizer, Review};
use crate::certificates::{CertificateLife, Verified};
use crate::connection::OpenConnection;
use crate::connection_info::{ConnectionInfo, ServedConnection};
use crate::context::WorkerContext;
use crate::detect::client_hello::TLS12;
use crate::detect::{ClientHello, FirstBytes, Preface};
use crate::first_bytes::{self, Received};
use crate::http::rate_limit_service::{self, ServicesTime};
use crate::http::{self, handler::Handler};
use crate::lifeline::{Ended, Lifeline, Wait};
use crate::listener::InboundTarget;
use crate::remotes::{RemoteId, RemoteLabels, WorkloadLabels};
use crate::snapshot::Snapshot;
use crate::socket;
use crate::stream::{Abort, MaybeTls};
use crate::tls::ServerTls;
use crate::tls::stream::{HandshakeFailure, TlsStream};

use refusal::ConnectionRefusal;

/// The client's side of a connection: its address, and the address that it dialled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Downstream {
    /// Address of the TCP peer.
    pub(crate) peer: SocketAddr,
    /// The address that was dialled, and the app behind it.
    pub(crate) target: InboundTarget,
}

/// A connection while it is being opened.
struct InboundConnection<'w> {
    context: &'w Rc<WorkerContext>,
    downstream: Downstream,
    connection: &'w OpenConnection,
    line: &'w Lifeline,
    accepted: SystemTime,
}

/// An admitted connection, with the bytes that were already read.
struct Opened {
    stream: MaybeTls,
    received: BytesMut,
    authorizer: Rc<Authorizer>,
    protocol: InnerProtocol,
}

/// The protocol that a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InnerProtocol {
    Http1,
    Http2,
    Opaque,
}

/// Serves a connection until it ends.
///
/// Each step is a boxed future that is dropped when done, so an idle connection costs only the memory of the last one.
pub(crate) async fn serve(
    context: &Rc<WorkerContext>,
    io: TcpStream,
    downstream: Downstream,
    connection: &OpenConnection,
    line: &Lifeline,
) {
    let inbound = InboundConnection { context, downstream, connection, line, accepted: SystemTime::now() };
    let Some(Opened { stream, received, authorizer, protocol }) = Box::pin(inbound.open(io)).await else {
        return;
    };
    match protocol {
        InnerProtocol::Http1 => {
            let handler = Handler::inbound(authorizer);
            Box::pin(http::h1::serve(stream, received, &handler, line, &context.http)).await;
        }
        InnerProtocol::Http2 => {
            let handler = Handler::inbound(authorizer);
            Box::pin(http::h2::serve(stream, received, handler, line.clone(), context.http.clone())).await;
        }
        InnerProtocol::Opaque => {
            connection.set_opaque();
            Box::pin(opaque::serve(stream, received, &authorizer, line, &context.http)).await;
        }
    }
}

impl InboundConnection<'_> {
    /// Opens the connection on the terms of the policy; `None` if it has ended.
    async fn open(&self, io: TcpStream) -> Option<Opened> {
        let Self { context, line, .. } = self;
        let (port, source) = (self.downstream.target.port, self.downstream.peer.ip());
        let snapshot = context.snapshots.current();
        let Some(policy) = snapshot.policy.as_deref() else {
            return self.refuse(io, None, &Denial::new(Reason::NoPolicy).into());
        };
        if let Err(denial) = policy.admit(port, source) {
            return self.refuse(io, None, &denial.into());
        }
        if policy.serves_first(port, source) {
            return self.opaque(io, BytesMut::new(), None, &snapshot);
        }
        drop(snapshot);

        line.within(context.http.limits.detect, Wait::FirstBytes);
        let (first, received) = match first_bytes::receive(&io, line).await {
            Received::Bytes(first, received) => (first, received),
            // The client sent nothing, so it gets no response: close with FIN.
            Received::Nothing => return None,
            Received::NoRoom => {
                context.http.telemetry.totals().unfinished.add(1);
                return self.refuse(io, None, &HandshakeFailure::NoRoom.into());
            }
        };

        // Load the snapshot again: the client may have taken its time.
        let snapshot = context.snapshots.current();
        let Some(policy) = snapshot.policy.as_deref() else {
            return self.refuse(io, None, &Denial::new(Reason::NoPolicy).into());
        };
        let hello = first.client_hello();
        let terms = match terms(policy, port, source, &first) {
            Ok(terms) => terms?,
            Err(refusal) => return self.refuse(io, hello, &refusal),
        };
        let app = policy.ports.get(&port).map_or(AppProtocol::Http, |port| port.protocol);
        match (terms, hello) {
            (Terms::IngressPlaintext, _) => self.plaintext(io, received).await,
            (Terms::Opaque, hello) => self.opaque(io, received, hello, &snapshot),
            (Terms::IngressTls | Terms::IngressMutualTls | Terms::MeshTls(_), Some(hello)) => {
                let Some(tls) = &snapshot.tls else {
                    return self.refuse(io, Some(hello), &ConnectionRefusal::NotReady);
                };
                let handshake = self.handshake(io, received, &snapshot, tls, terms, hello, app);
                let (stream, info, life) = Box::pin(handshake).await?;
                let opened = self.secured(stream, info, life)?;
                if !has_global_limit(&opened.authorizer)
                    || Box::pin(self.is_within_limits(&opened.authorizer)).await
                {
                    return Some(opened);
                }
                opened.stream.abort();
                None
            }
            (Terms::BadRequest | Terms::IngressTls | Terms::IngressMutualTls | Terms::MeshTls(_), _) => {
                self.refused(hello, &Denial::new(Reason::PlaintextRequired).into());
                refusal::bad_request(io, line, &context.http.clock).await;
                None
            }
        }
    }

    /// Plaintext HTTP of either version.
    async fn plaintext(&self, io: TcpStream, received: BytesMut) -> Option<Opened> {
        let (preface, received) = first_bytes::preface(&io, self.line, received).await?;
        let protocol = match preface {
            Preface::Http2 => InnerProtocol::Http2,
            Preface::Incomplete | Preface::Other => InnerProtocol::Http1,
        };
        let snapshot = self.context.snapshots.current();
        let info = self.info(&io, Terms::IngressPlaintext, None, &snapshot);
        self.establish(MaybeTls::Plain(io), received, protocol, info, None)
    }

    /// Opaque bytes under an ingress rule, or for an app that speaks first.
    fn opaque(
        &self,
        io: TcpStream,
        received: BytesMut,
        hello: Option<&ClientHello>,
        snapshot: &Snapshot,
    ) -> Option<Opened> {
        let info = self.info(&io, Terms::Opaque, hello, snapshot);
        self.establish(MaybeTls::Plain(io), received, InnerProtocol::Opaque, info, None)
    }

    /// The protocol within TLS.
    fn secured(
        &self,
        stream: Box<TlsStream>,
        info: ConnectionInfo,
        life: Option<CertificateLife>,
    ) -> Option<Opened> {
        let protocol = match info.terms {
            Terms::MeshTls(MeshProtocol::Tcp) => InnerProtocol::Opaque,
            Terms::MeshTls(MeshProtocol::Http2) => InnerProtocol::Http2,
            _ if stream.alpn_protocol() == Some(b"h2") => InnerProtocol::Http2,
            _ => InnerProtocol::Http1,
        };
        self.establish(MaybeTls::Tls(stream), BytesMut::new(), protocol, info, life)
    }

    /// Registers the connection, so that changes of policy and certificates reach it from now on. Ends it if it is no
    /// longer allowed, or if it is denied and its protocol has no error response.
    fn establish(
        &self,
        stream: MaybeTls,
        received: BytesMut,
        protocol: InnerProtocol,
        mut info: ConnectionInfo,
        life: Option<CertificateLife>,
    ) -> Option<Opened> {
        let newest = self.context.snapshots.current();
        info.remote = self.remote(&info, &newest);
        let authorizer = Rc::new(Authorizer::new(Rc::new(info), self.context.snapshots.clone()));
        let denial = match (authorizer.review(&newest), &*authorizer.decide()) {
            (Review::Revoke(denial), _) => Some(denial),
            (Review::Keep, Decision::Deny(denial)) if protocol == InnerProtocol::Opaque => {
                Some(denial.clone())
            }
            _ => None,
        };
        if let Some(denial) = denial {
            self.refused_connection(authorizer.info(), &denial);
            stream.abort();
            return None;
        }
        if self.exceeds_limit(&authorizer) {
            stream.abort();
            return None;
        }
        self.line.at_ease();
        if let Some(client) = &authorizer.info().client {
            self.line.identify(&client.names);
        }
        // Opaque connections cannot be asked to reconnect with the next certificate: they stay open until policy or
        // trust bundle change.
        self.connection.admit(authorizer.clone(), life.filter(|_| protocol != InnerProtocol::Opaque));
        Some(Opened { stream, received, authorizer, protocol })
    }

    /// What metrics call the client, and the Service in front of the port, of several the first.
    fn remote(&self, info: &ConnectionInfo, snapshot: &Snapshot) -> RemoteId {
        let names = info.client.as_ref().map(|client| client.leaf.sans.as_slice()).unwrap_or_default();
        let port = snapshot.policy.as_ref().and_then(|policy| policy.ports.get(&info.port));
        let service = port.and_then(|port| port.services.first()).cloned();
        let workload = WorkloadLabels::of_certificate(names);
        self.context.remotes.id(RemoteLabels { workload, service, egress_proxy: None })
    }

    /// Whether a connection that the policy allows exceeds a rate limit. What exceeds one in audit mode is reported.
    fn exceeds_limit(&self, authorizer: &Authorizer) -> bool {
        // What the policy refuses takes no token.
        let limits = authorizer.limits().filter(|_| matches!(*authorizer.decide(), Decision::Allow(_)));
        let exceeded = limits.and_then(|limits| limits.take_connection());
        match &exceeded {
            Some(Decision::Deny(denial)) => self.refused_connection(authorizer.info(), denial),
            Some(report @ Decision::Allow(_)) => self.reported_connection(authorizer.info(), report),
            None => {}
        }
        matches!(exceeded, Some(Decision::Deny(_)))
    }

    /// Whether rate limit services allow a connection. What exceeds a limit in audit mode is reported.
    async fn is_within_limits(&self, authorizer: &Authorizer) -> bool {
        let Some(limits) = authorizer.limits() else { return true };
        let (env, client) = (&self.context.http, ServedConnection::Inbound(authorizer.info().clone()));
        let mut time = ServicesTime::of_connection(limits.all());
        for limits in limits.all() {
            let exceeds = rate_limit_service::exceeds(limits, env, &client, &mut time);
            match self.line.guard(exceeds).await {
                Ok(None) => {}
                Ok(Some(report @ Decision::Allow(_))) => self.reported_connection(authorizer.info(), &report),
                Ok(Some(Decision::Deny(denial))) => {
                    self.refused_connection(authorizer.info(), &denial);
                    return false;
                }
                Err(Ended(_)) => return false,
            }
        }
        true
    }

    /// Runs the TLS handshake; `None` if the connection has ended.
    #[expect(
        clippy::too_many_arguments,
        reason = "everything learnt so far; none of it is needed afterwards"
    )]
    async fn handshake(
        &self,
        io: TcpStream,
        received: BytesMut,
        snapshot: &Snapshot,
        tls: &Arc<ServerTls>,
        terms: Terms,
        hello: &ClientHello,
        app: AppProtocol,
    ) -> Option<(Box<TlsStream>, ConnectionInfo, Option<CertificateLife>)> {
        let totals = self.context.http.telemetry.totals();
        if hello.newest_version < TLS12 {
            totals.handshakes_failed.add(1);
            self.refused(Some(hello), &ConnectionRefusal::OldVersion(hello.newest_version));
            refusal::alert_protocol_version(io, self.line).await;
            return None;
        }
        let config = tls.config(terms, hello.alpn, app)?.clone();
        self.line.within(self.context.http.limits.handshake, Wait::Handshake);
        let accepting = TlsStream::accept(io, received, config, self.line.clone());
        let stream = match self.line.guard(accepting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                totals.handshakes_failed.add(1);
                if matches!(error.cause, HandshakeFailure::NoRoom) {
                    totals.unfinished.add(1);
                }
                self.refused(Some(hello), &ConnectionRefusal::handshake(error.cause));
                refusal::linger(error.io, self.line).await;
                return None;
            }
            Err(_) => {
                totals.handshakes_failed.add(1);
                return None;
            }
        };
        totals.handshakes.add(1);
        let verified = match self.verified_client(&stream, tls) {
            Ok(verified) => verified,
            Err(refusal) => {
                self.refused(Some(hello), &refusal);
                return None;
            }
        };
        let (client, life) = verified.map(|Verified { certificate, life }| (certificate, life)).unzip();
        let mut info = self.info(stream.socket(), terms, Some(hello), snapshot);
        info.tls = true;
        info.client = client;
        Some((stream, info, life))
    }

    /// The client's certificate, if it presented one.
    ///
    /// # Errors
    ///
    /// If it cannot be decoded, or if a trust bundle that arrived during the handshake does not accept it.
    fn verified_client(
        &self,
        stream: &TlsStream,
        tls: &ServerTls,
    ) -> Result<Option<Verified>, ConnectionRefusal> {
        let Some(chain) = stream.peer_certificates() else { return Ok(None) };
        let verified = self.context.certificates.borrow_mut().intern(chain)?;
        let newest = self.context.snapshots.current();
        if let Some(newest) = &newest.tls
            && newest.bundle != tls.bundle
        {
            newest.verify_again(&verified.certificate.chain, UnixTime::now())?;
        }
        Ok(Some(verified))
    }

    /// The facts about a plaintext connection.
    fn info(
        &self,
        io: &TcpStream,
        terms: Terms,
        hello: Option<&ClientHello>,
        snapshot: &Snapshot,
    ) -> ConnectionInfo {
        let target = self.downstream.target;
        let is_unspecified = target.address.ip().is_unspecified();
        ConnectionInfo {
            peer: self.downstream.peer,
            local: if is_unspecified { io.local_addr().unwrap_or(target.address) } else { target.address },
            port: target.port,
            app: target.app,
            terms,
            tls: false,
            server_name: hello.and_then(|hello| hello.server_name.as_ref()).map(|name| name.as_str().into()),
            client: None,
            identity: self.context.identity(snapshot),
            remote: RemoteId::UNKNOWN,
            accepted: self.accepted,
        }
    }

    /// Ends the connection by RST and logs the reason.
    fn refuse<T>(
        &self,
        io: TcpStream,
        hello: Option<&ClientHello>,
        refusal: &ConnectionRefusal,
    ) -> Option<T> {
        self.refused(hello, refusal);
        socket::reset(io);
        None
    }
}

/// Whether a rate limit service has to allow a connection that the policy allows.
fn has_global_limit(authorizer: &Authorizer) -> bool {
    authorizer.limits().is_some_and(|limits| limits.all().any(|limits| limits.global.connections.is_some()))
        && matches!(*authorizer.decide(), Decision::Allow(_))
}

/// The terms on which the policy opens a connection with these first bytes; `None` if they are incomplete.
///
/// # Errors
///
/// If the policy denies the connection, or if the bytes are malformed TLS.
fn terms(
    policy: &InboundPolicy,
    port: u16,
    source: IpAddr,
    first: &FirstBytes,
) -> Result<Option<Terms>, ConnectionRefusal> {
    if let Some(opening) = first.opening() {
        return Ok(Some(policy.open(port, source, opening)?));
    }
    // Where opaque bytes are allowed, the app handles malformed and incomplete ones.
    if policy.open(port, source, Opening::Plaintext) == Ok(Terms::Opaque) {
        return Ok(Some(Terms::Opaque));
    }
    match first {
        FirstBytes::Malformed(malformed) => Err((*malformed).into()),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
