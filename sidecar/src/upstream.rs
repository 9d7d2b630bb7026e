//! Connections to upstreams: the only place that opens, keeps and shares them. One set for each worker; nothing here
//! crosses a thread.
//!
//! The key of everything is the [`Endpoint`] with its transport and forward proxy: requests share a connection only if
//! all of that is equal. `connect` opens a connection, `pool` keeps the idle ones. A codec of HTTP/1 drives a connection
//! itself; requests of others are sent by `http1`, with hyper, or by `http2`, with h2, on connections that many requests
//! share. How many requests are at upstreams at a time is bounded, for each client and each endpoint, too (`shares`); what
//! is open to a backend with limits of its own is counted by all workers together (`place`).

mod body;
mod connect;
mod connect_error;
mod error;
mod http1;
mod http2;
mod interim;
mod peers;
mod place;
mod pool;
mod proxy;
mod replay;
mod request_limit;
mod shares;
mod stream;
mod watched;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, request};
use http_body::Body;
use tidegate_core::backend::Endpoint;
use tidegate_core::policy::MeshProtocol;

#[cfg(test)]
pub(crate) use self::body::DynBody;
use self::body::Outgoing;
pub(crate) use self::body::{BoxError, Uploading, UpstreamBody};
pub(crate) use self::connect::Deadline;
use self::connect::UpstreamConnector;
pub(crate) use self::connect_error::{ConnectError, ConnectFailure};
pub(crate) use self::error::{TimedOut, UpstreamError, Violation};
use self::http1::Http1;
use self::http2::Http2;
pub(crate) use self::interim::{InterimQueue, InterimSink};
use self::place::{ConnectionTurn, OpeningPlace};
use self::pool::Pool;
#[cfg(test)]
pub(crate) use self::pool::UNSURE_AFTER;
#[cfg(test)]
pub(crate) use self::proxy::ProxyError;
pub(crate) use self::proxy::ProxyFailure;
pub(crate) use self::replay::{MOST_REPLAYED, ReplayBody};
pub(crate) use self::request_limit::RequestLimit;
use self::shares::{RequestShares, RequestSource, Share};
pub(crate) use self::stream::{Http1Upstream, UpstreamTls};
use crate::connection_info::{ServedConnection, VerifiedCertificate};
use crate::lifeline::{Ended, Lifeline};
use crate::limits::Limits;
use crate::snapshot::Snapshots;
use crate::stream::MaybeTls;

/// All connections of a worker to upstreams. To be used on a local runtime ([`tokio::runtime::LocalRuntime`]): each
/// connection that requests are sent on is a task of its own.
pub struct Upstreams {
    connector: Rc<UpstreamConnector>,
    /// Idle connections of HTTP/1 codecs.
    idle: Pool<Http1Upstream>,
    http1: Rc<Http1>,
    http2: RefCell<HashMap<Arc<Endpoint>, Rc<Http2>>>,
    /// Requests that are at upstreams, or on their way there.
    requests: Rc<RequestShares>,
    /// Bytes of answers over HTTP/2 that clients have not taken.
    held: Rc<Cell<usize>>,
}

/// Counts of a worker's connections to upstreams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Idle ones of HTTP/1 codecs.
    pub idle: usize,
    /// Idle ones over which requests of other clients go as HTTP/1.1.
    pub http1: usize,
    /// Open HTTP/2 connections.
    pub http2: usize,
}

/// A request on its way, until the head of its answer has come. Dropped before, it is cancelled.
pub(crate) struct Sending(Pin<Box<dyn Future<Output = Result<Response<UpstreamBody>, SendFailure>>>>);

/// A request that got no answer.
pub(crate) struct SendFailure {
    /// Why.
    pub(crate) error: UpstreamError,
    /// The request, if it may go to another endpoint: connecting failed before any byte of it was sent, or the endpoint has
    /// vanished and the request may be sent twice.
    pub(crate) unsent: Option<Unsent>,
}

/// A request that may be sent to another endpoint.
pub(crate) struct Unsent {
    head: Box<request::Parts>,
    body: Outgoing,
}

impl Upstreams {
    /// No connections yet. TLS is spoken as the newest snapshot has it.
    pub fn new(limits: Rc<Limits>, snapshots: Snapshots) -> Self {
        let connector = Rc::new(UpstreamConnector::new(limits, snapshots));
        Self {
            idle: Pool::new(connector.limits()),
            http1: Rc::new(Http1::new(connector.clone())),
            http2: RefCell::default(),
            requests: Rc::default(),
            held: Rc::default(),
            connector,
        }
    }

    /// Opens a connection for one user; `protocol`: what is spoken inside TLS, for ALPN. The future is large.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
        deadline: Deadline<'_>,
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        self.connector.connect(endpoint, protocol, deadline).await
    }

    /// The idle connection to an endpoint that an HTTP/1 codec used last and that is still good, if there is one. It is an
    /// error if the backend has as many requests in flight as it may.
    pub(crate) fn checkout(&self, endpoint: &Arc<Endpoint>) -> Result<Option<Http1Upstream>, ConnectError> {
        Ok(self.idle.checkout(endpoint)?)
    }

    /// A new connection for an HTTP/1 codec; where connections are limited, it may be one that has become idle meanwhile
    /// (`true`). The future is large.
    pub(crate) async fn open(
        &self,
        endpoint: &Arc<Endpoint>,
        line: &Lifeline,
    ) -> Result<(Http1Upstream, bool), ConnectError> {
        let turn = line.guard(Box::pin(self.idle.turn(endpoint))).await;
        let place = match turn.map_err(|Ended(cause)| ConnectError::Ended(cause))?? {
            ConnectionTurn::Idle(connection) => return Ok((connection, true)),
            ConnectionTurn::Open(place) => place,
        };
        let io = self.connect(endpoint, MeshProtocol::Http1, Deadline::Lifeline(line)).await?;
        let connection = Http1Upstream::new(io, place.map(OpeningPlace::opened));
        Ok((self.idle.begin(endpoint, connection)?, false))
    }

    /// Keeps a connection for the next request of an HTTP/1 codec. It must have nothing in flight, in either direction.
    pub(crate) fn put(&self, endpoint: &Arc<Endpoint>, connection: Http1Upstream) {
        self.idle.put(endpoint, connection);
    }

    /// Sends the request of a client over HTTP/2, in plaintext with prior knowledge. Its URI has scheme, authority and
    /// path.
    ///
    /// A request that the upstream certainly has not looked at, because it was refused or could not be sent, is tried
    /// once more on a new connection; no other is. Interim responses go to `interims`; without it they are dropped.
    pub(crate) fn send<B>(
        &self,
        client: &ServedConnection,
        endpoint: &Arc<Endpoint>,
        request: Request<B>,
        interims: Option<Rc<dyn InterimSink>>,
    ) -> Result<Sending, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let source = RequestSource::of(client);
        let (request, share) = self.admit(&source, endpoint, request, interims)?;
        let (head, body) = request.into_parts();
        let (head, http2) = (Box::new(head), self.http2(endpoint));
        Ok(Sending::new(share, async move { http2.send(source, head, body).await }))
    }

    /// Sends a request over HTTP/1.1, by the same rule. Its URI is a path, its `host` is set.
    pub(crate) fn send_http1<B>(
        &self,
        client: &ServedConnection,
        endpoint: &Arc<Endpoint>,
        request: Request<B>,
        interims: Option<Rc<dyn InterimSink>>,
    ) -> Result<Sending, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let (request, share) = self.admit(&RequestSource::of(client), endpoint, request, interims)?;
        let (http1, endpoint) = (self.http1.clone(), endpoint.clone());
        Ok(Sending::new(share, async move { http1.send(endpoint, request).await }))
    }

    /// Sends the copy of a request, in the form of this version. All copies count as one client.
    pub(crate) fn send_copy<B>(
        &self,
        endpoint: &Arc<Endpoint>,
        is_http2: bool,
        copy: Request<B>,
    ) -> Result<Sending, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let (request, share) = self.admit(&RequestSource::Copies, endpoint, copy, None)?;
        let (head, body) = request.into_parts();
        let unsent = Unsent { head: Box::new(head), body };
        Ok(self.send_placed(RequestSource::Copies, endpoint, is_http2, unsent, share))
    }

    /// Sends a request to another endpoint. `is_http2`: over HTTP/2, as before.
    pub(crate) fn resend(
        &self,
        client: &ServedConnection,
        endpoint: &Arc<Endpoint>,
        is_http2: bool,
        unsent: Unsent,
    ) -> Result<Sending, UpstreamError> {
        let source = RequestSource::of(client);
        let share = self.place(&source, endpoint)?;
        unsent.body.set_share(share.clone());
        Ok(self.send_placed(source, endpoint, is_http2, unsent, share))
    }

    /// Sends a request that has its place.
    fn send_placed(
        &self,
        source: RequestSource,
        endpoint: &Arc<Endpoint>,
        is_http2: bool,
        Unsent { head, body }: Unsent,
        share: Rc<Share>,
    ) -> Sending {
        if is_http2 {
            let http2 = self.http2(endpoint);
            return Sending::new(share, async move { http2.send(source, head, body).await });
        }
        let (http1, endpoint) = (self.http1.clone(), endpoint.clone());
        let request = Request::from_parts(*head, body);
        Sending::new(share, async move { http1.send(endpoint, request).await })
    }

    /// Lets go of connections that have ended, or that have been idle for long. To be called on every tick.
    pub fn sweep(&self, now: Instant) {
        self.connector.peers().expire(now);
        self.requests.sweep();
        self.idle.sweep(now);
        self.http1.sweep(now);
        self.http2.borrow_mut().retain(|_, http2| {
            http2.sweep(now);
            !http2.is_empty() || Rc::strong_count(http2) > 1
        });
    }

    /// Ends connections to mesh peers that are no longer trusted: idle ones at once, others after what is in flight or
    /// after `grace`. The users of tunnels end those.
    pub(crate) fn review(&self, grace: Duration, is_trusted: impl Fn(&VerifiedCertificate) -> bool) {
        self.connector.peers().review(grace, is_trusted);
        self.sweep(Instant::now());
    }

    /// How many connections there are.
    pub fn connections(&self) -> ConnectionCounts {
        let http2 = self.http2.borrow().values().map(|http2| http2.len()).sum();
        ConnectionCounts { idle: self.idle.len(), http1: self.http1.len(), http2 }
    }

    /// Takes a place for one more request of this client to this endpoint; its body holds it until it is sent.
    fn admit<B>(
        &self,
        source: &RequestSource,
        endpoint: &Arc<Endpoint>,
        request: Request<B>,
        interims: Option<Rc<dyn InterimSink>>,
    ) -> Result<(Request<Outgoing>, Rc<Share>), UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let share = self.place(source, endpoint)?;
        Ok((request.map(|body| Outgoing::new(body, share.clone(), interims)), share))
    }

    /// A place for one more request of this client to this endpoint.
    fn place(&self, source: &RequestSource, endpoint: &Arc<Endpoint>) -> Result<Rc<Share>, UpstreamError> {
        let share = self.requests.take(source, endpoint, self.connector.limits().upstream_requests);
        share.map(Rc::new).map_err(UpstreamError::Overflow)
    }

    /// The connections to this endpoint; there is an entry as long as there is one, or a request for one.
    fn http2(&self, endpoint: &Arc<Endpoint>) -> Rc<Http2> {
        let mut all = self.http2.borrow_mut();
        let new = || Http2::new(endpoint.clone(), self.connector.clone(), self.held.clone());
        all.entry(endpoint.clone()).or_insert_with(new).clone()
    }
}

impl From<UpstreamError> for SendFailure {
    fn from(error: UpstreamError) -> Self {
        Self { error, unsent: None }
    }
}

impl SendFailure {
    /// If there is no connection, the request is given back.
    fn unsent(error: UpstreamError, head: Box<request::Parts>, body: Outgoing) -> Self {
        let unsent = matches!(error, UpstreamError::Connect(_)).then_some(Unsent { head, body });
        Self { error, unsent }
    }

    /// The request is given back, for another endpoint.
    fn elsewhere(error: UpstreamError, head: Box<request::Parts>, body: Outgoing) -> Self {
        Self { error, unsent: Some(Unsent { head, body }) }
    }
}

impl Sending {
    /// The answer holds the request's place, too.
    fn new(
        share: Rc<Share>,
        sent: impl Future<Output = Result<Response<UpstreamBody>, SendFailure>> + 'static,
    ) -> Self {
        Self(Box::pin(async move { Ok(sent.await?.map(|body| body.holding(share))) }))
    }
}

impl Future for Sending {
    type Output = Result<Response<UpstreamBody>, SendFailure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}
