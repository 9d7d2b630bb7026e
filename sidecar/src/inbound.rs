//! A connection's story, top to bottom: who may connect, what the first bytes are, what the policy makes of them, the
//! handshake, and on to HTTP or to opaque bytes.
//!
//! Whatever is not let in by a rule ends here, with its reason in the log: by RST before TLS, by an alert of TLS for
//! the client certificate's sake, by `403` inside HTTP.

mod first_bytes;
mod opaque;
mod refusal;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use rustls_pki_types::UnixTime;
use tidegate_core::policy::{AppProtocol, Decision, Denial, MeshProtocol, Opening, Reason, Terms};
use tokio::net::TcpStream;

use crate::authorizer::{Authorizer, Review};
use crate::certificates::{CertificateLife, Verified};
use crate::connection::OpenConnection;
use crate::connection_info::ConnectionInfo;
use crate::context::WorkerContext;
use crate::detect::client_hello::TLS12;
use crate::detect::{ClientHello, FirstBytes, Preface};
use crate::http::{self, handler::Handler};
use crate::lifeline::{Lifeline, Wait};
use crate::listener::InboundTarget;
use crate::snapshot::Snapshot;
use crate::socket;
use crate::stream::{Abort, MaybeTls};
use crate::tls::ServerTls;
use crate::tls::stream::{HandshakeFailure, TlsStream};

use first_bytes::Received;
use refusal::Refusal;

/// The client's side of a connection: where it comes from, and what it dialled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Downstream {
    /// Address of the TCP peer.
    pub(crate) peer: SocketAddr,
    /// What it dialled, and the app behind it.
    pub(crate) target: InboundTarget,
}

/// A connection while it is opened.
struct InboundConnection<'w> {
    context: &'w Rc<WorkerContext>,
    downstream: Downstream,
    connection: &'w OpenConnection,
    line: &'w Lifeline,
    accepted: SystemTime,
}

/// A connection that goes on, with what was read of it already.
struct Opened {
    stream: MaybeTls,
    received: BytesMut,
    authorizer: Rc<Authorizer>,
    inside: Inside,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Http1,
    Http2,
    Opaque,
}

/// Serves a connection until it ends.
///
/// The steps are futures of their own, each gone when it is done: what a connection costs while it is idle is the
/// last one.
pub(crate) async fn serve(
    context: &Rc<WorkerContext>,
    io: TcpStream,
    downstream: Downstream,
    connection: &OpenConnection,
    line: &Lifeline,
) {
    let story = InboundConnection { context, downstream, connection, line, accepted: SystemTime::now() };
    let Some(Opened { stream, received, authorizer, inside }) = Box::pin(story.open(io)).await else {
        return;
    };
    match inside {
        Inside::Http1 => {
            let handler = Handler::new(authorizer);
            Box::pin(http::h1::serve(stream, received, &handler, line, &context.http)).await;
        }
        Inside::Http2 => {
            let handler = Handler::new(authorizer);
            Box::pin(http::h2::serve(stream, received, handler, line.clone(), context.http.clone())).await;
        }
        Inside::Opaque => {
            connection.set_opaque();
            Box::pin(opaque::serve(stream, received, &authorizer, line, &context.http)).await;
        }
    }
}

impl InboundConnection<'_> {
    /// Lets the connection in on the terms of the policy; `None` if it has ended.
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
            // Nothing was asked, so nothing is answered: the end is an orderly one.
            Received::Nothing => return None,
            Received::NoRoom => {
                context.http.telemetry.totals().unfinished.add(1);
                return self.refuse(io, None, &HandshakeFailure::NoRoom.into());
            }
        };

        // Asked anew: the client may have taken its time.
        let snapshot = context.snapshots.current();
        let Some(policy) = snapshot.policy.as_deref() else {
            return self.refuse(io, None, &Denial::new(Reason::NoPolicy).into());
        };
        let hello = match &first {
            FirstBytes::Tls(hello) => Some(hello),
            // Where any bytes are let in, these are too: they are the app's to judge.
            FirstBytes::Malformed(_) | FirstBytes::Incomplete
                if policy.open(port, source, Opening::Plaintext) == Ok(Terms::Opaque) =>
            {
                return self.opaque(io, received, None, &snapshot);
            }
            FirstBytes::Malformed(malformed) => return self.refuse(io, None, &(*malformed).into()),
            FirstBytes::Plaintext | FirstBytes::Incomplete => None,
        };
        let terms = match policy.open(port, source, first.opening()?) {
            Ok(terms) => terms,
            Err(denial) => return self.refuse(io, hello, &denial.into()),
        };
        let app = policy.ports.get(&port).map_or(AppProtocol::Http, |port| port.protocol);
        match (terms, hello) {
            (Terms::IngressPlaintext, _) => self.plaintext(io, received).await,
            (Terms::Opaque, hello) => self.opaque(io, received, hello, &snapshot),
            (Terms::IngressTls | Terms::IngressMutualTls | Terms::MeshTls(_), Some(hello)) => {
                let Some(tls) = &snapshot.tls else {
                    return self.refuse(io, Some(hello), &Refusal::NotReady);
                };
                let handshake = self.handshake(io, received, &snapshot, tls, terms, hello, app);
                let (stream, info, life) = Box::pin(handshake).await?;
                self.secured(stream, info, life)
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
        let inside = match preface {
            Preface::Http2 => Inside::Http2,
            Preface::Incomplete | Preface::Other => Inside::Http1,
        };
        let snapshot = self.context.snapshots.current();
        let info = self.info(&io, Terms::IngressPlaintext, None, &snapshot);
        self.go_on(MaybeTls::Plain(io), received, inside, info, None)
    }

    /// Opaque bytes under an ingress rule, or of an app that speaks first.
    fn opaque(
        &self,
        io: TcpStream,
        received: BytesMut,
        hello: Option<&ClientHello>,
        snapshot: &Snapshot,
    ) -> Option<Opened> {
        let info = self.info(&io, Terms::Opaque, hello, snapshot);
        self.go_on(MaybeTls::Plain(io), received, Inside::Opaque, info, None)
    }

    /// What is inside TLS.
    fn secured(
        &self,
        stream: Box<TlsStream>,
        info: ConnectionInfo,
        life: Option<CertificateLife>,
    ) -> Option<Opened> {
        let inside = match info.terms {
            Terms::MeshTls(MeshProtocol::Tcp) => Inside::Opaque,
            Terms::MeshTls(MeshProtocol::Http2) => Inside::Http2,
            _ if stream.alpn_protocol() == Some(b"h2") => Inside::Http2,
            _ => Inside::Http1,
        };
        self.go_on(MaybeTls::Tls(stream), BytesMut::new(), inside, info, life)
    }

    /// From here on, changes of policy and certificates reach the connection. It ends here if one was faster, or if
    /// what it carries leaves no other way to say no.
    fn go_on(
        &self,
        stream: MaybeTls,
        received: BytesMut,
        inside: Inside,
        info: ConnectionInfo,
        life: Option<CertificateLife>,
    ) -> Option<Opened> {
        let authorizer = Rc::new(Authorizer::new(Rc::new(info), self.context.snapshots.clone()));
        let denial = match (authorizer.review(&self.context.snapshots.current()), &*authorizer.decide()) {
            (Review::Revoke(denial), _) => Some(denial),
            (Review::Keep, Decision::Deny(denial)) if inside == Inside::Opaque => Some(denial.clone()),
            _ => None,
        };
        if let Some(denial) = denial {
            self.refused_connection(authorizer.info(), &denial);
            stream.abort();
            return None;
        }
        self.line.at_ease();
        if let Some(client) = &authorizer.info().client {
            self.line.identify(&client.names);
        }
        // There is no asking opaque bytes to come back with the next certificate: they have been let in for good, until
        // policy or trust bundle say otherwise.
        self.connection.let_in(authorizer.clone(), life.filter(|_| inside != Inside::Opaque));
        Some(Opened { stream, received, authorizer, inside })
    }

    /// The TLS handshake, and what it has shown; `None` if the connection has ended.
    #[expect(clippy::too_many_arguments, reason = "all that was learnt so far, none of it needed afterwards")]
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
            self.refused(Some(hello), &Refusal::OldVersion(hello.newest_version));
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
                self.refused(Some(hello), &Refusal::handshake(error.cause));
                refusal::linger(error.io, self.line).await;
                return None;
            }
            Err(_) => {
                totals.handshakes_failed.add(1);
                return None;
            }
        };
        totals.handshakes.add(1);
        let verified = match stream.peer_certificates() {
            Some(chain) => match self.context.certificates.borrow_mut().intern(chain) {
                Ok(verified) => Some(verified),
                Err(error) => {
                    self.refused(Some(hello), &error.into());
                    return None;
                }
            },
            None => None,
        };
        // While hands were shaken, the trust bundle may have changed.
        let newest = self.context.snapshots.current();
        if let (Some(newest), Some(verified)) = (&newest.tls, &verified)
            && newest.bundle != tls.bundle
            && let Err(error) = newest.verify_again(&verified.certificate.chain, UnixTime::now())
        {
            self.refused(Some(hello), &error.into());
            return None;
        }
        let (client, life) = verified.map(|Verified { certificate, life }| (certificate, life)).unzip();
        let mut info = self.info(stream.socket(), terms, Some(hello), snapshot);
        info.tls = true;
        info.client = client;
        Some((stream, info, life))
    }

    fn info(
        &self,
        io: &TcpStream,
        terms: Terms,
        hello: Option<&ClientHello>,
        snapshot: &Snapshot,
    ) -> ConnectionInfo {
        let target = self.downstream.target;
        ConnectionInfo {
            peer: self.downstream.peer,
            local: match target.address.ip().is_unspecified() {
                true => io.local_addr().unwrap_or(target.address),
                false => target.address,
            },
            port: target.port,
            app: target.app,
            terms,
            tls: false,
            server_name: hello.and_then(|hello| hello.server_name.as_ref()).map(|name| name.as_str().into()),
            client: None,
            identity: self.context.identity(snapshot),
            accepted: self.accepted,
        }
    }

    /// Ends the connection by RST, with the reason in the log.
    fn refuse<T>(&self, io: TcpStream, hello: Option<&ClientHello>, refusal: &Refusal) -> Option<T> {
        self.refused(hello, refusal);
        socket::reset(io);
        None
    }
}

#[cfg(test)]
mod tests;
