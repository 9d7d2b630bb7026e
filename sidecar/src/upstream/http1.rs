//! HTTP/1.1 for requests that come over HTTP/2, by hyper: one request at a time on a connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, request};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tidegate_core::backend::Endpoint;
use tidegate_core::policy::MeshProtocol;
use tokio::task::AbortHandle;

use super::SendFailure;
use super::body::{Outgoing, Retained, UpstreamBody};
use super::connect::{Deadline, UpstreamConnector};
use super::error::UpstreamError;
use super::interim::InterimRelay;
use super::place::{ConnectionTurn, Http1Place, OpeningPlace};
use super::pool::{Fitness, Pool, Reusable};
use super::stream::Secured;
use super::watched::{ConnectionWatch, Watched};

/// hyper's least.
const LEAST_BUFFER: usize = 8 * 1024;

/// Connections that hyper drives.
pub(super) struct Http1 {
    connector: Rc<UpstreamConnector>,
    idle: Pool<Box<Http1Connection>>,
}

/// One connection. Boxed, because the bodies of answers hold it.
struct Http1Connection {
    sender: SendRequest<Outgoing>,
    /// Drives it.
    task: AbortHandle,
    /// `None` in plaintext.
    secured: Option<Secured>,
    watch: Rc<ConnectionWatch>,
    interims: Arc<InterimRelay>,
    endpoint: Arc<Endpoint>,
    /// Its place, if its backend has limits.
    place: Option<Box<Http1Place>>,
}

/// A request that got no response on a connection.
struct Http1Failure {
    error: UpstreamError,
    /// The request, if hyper has not written any of it.
    unsent: Option<Box<Request<Outgoing>>>,
    /// The upstream sent nothing since.
    is_unanswered: bool,
}

/// What a request is made from again if its connection turns out to be stale.
struct Repeat {
    head: Box<request::Parts>,
    body: Retained,
}

/// A connection that is in use. Dropped before the answer is complete, the connection is cut off, so that the upstream
/// sees that its client has gone: an orderly end could be that of a client that waits for its answer.
pub(super) struct Checkout {
    /// `None`: given back.
    connection: Option<Box<Http1Connection>>,
    all: Rc<Http1>,
}

impl Http1 {
    pub(super) fn new(connector: Rc<UpstreamConnector>) -> Self {
        Self { idle: Pool::new(connector.limits()), connector }
    }

    /// Sends a request on an idle connection or a new one. If the idle one turns out to be closed before any byte of the
    /// response, the request is sent once more, on a new one, if nothing of it was written, or if it is
    /// [repeatable](Outgoing::is_repeatable); no other is.
    pub(super) async fn send(
        self: Rc<Self>,
        endpoint: Arc<Endpoint>,
        request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let mut request = request;
        let idle = self.idle.checkout(&endpoint).map_err(UpstreamError::from)?;
        if let Some(connection) = idle {
            let repeat = Repeat::of(&request);
            let failure = match self.try_send(connection, request).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            // The app closed it in the meantime.
            let repeat = repeat.filter(|_| failure.is_unanswered);
            match failure.unsent.map(|unsent| *unsent).or_else(|| repeat?.request()) {
                Some(again) if matches!(failure.error, UpstreamError::Vanished) => {
                    let (head, body) = again.into_parts();
                    return Err(SendFailure::elsewhere(failure.error, Box::new(head), body));
                }
                Some(again) => request = again,
                None => return Err(failure.error.into()),
            }
        }
        // Rare, and large.
        let connection = match Box::pin(self.open(&endpoint)).await {
            Ok(connection) => connection,
            Err(error) => {
                let (head, body) = request.into_parts();
                return Err(SendFailure::unsent(error, Box::new(head), body));
            }
        };
        self.try_send(connection, request).await.map_err(|failure| failure.error.into())
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.idle.sweep(now);
    }

    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }

    async fn try_send(
        self: &Rc<Self>,
        mut connection: Box<Http1Connection>,
        mut request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, Http1Failure> {
        let (sink, relay) = (request.body().interims(), connection.interims.clone());
        if sink.is_some() {
            relay.clear();
            on_interim(&mut request, relay.clone());
        }
        let body = request.body().retain();
        let upload = request.body().retain().sent_by(connection.task.clone());
        let watch = connection.watch.clone();
        let before = watch.total();
        let mut sending = pin!(connection.sender.try_send_request(request));
        let checkout = Checkout { connection: Some(connection), all: self.clone() };
        let response = poll_fn(|context| {
            if let Some(sink) = &sink {
                relay.pass_to(&**sink, context.waker());
            }
            sending.as_mut().poll(context)
        });
        match response.await {
            Ok(response) => Ok(response.map(|body| UpstreamBody::http1(body, checkout, upload))),
            Err(mut failure) => {
                let unsent = failure.take_message().map(Box::new);
                let error = body.cause(UpstreamError::from(failure.error()));
                let has_ended = matches!(error, UpstreamError::Closed | UpstreamError::Vanished);
                let is_unanswered = has_ended && watch.total() == before;
                Err(Http1Failure { error, unsent, is_unanswered })
            }
        }
    }

    /// A new connection, or where connections are limited, one that has become idle meanwhile.
    async fn open(&self, endpoint: &Arc<Endpoint>) -> Result<Box<Http1Connection>, UpstreamError> {
        let turn = self.idle.turn(endpoint).await?;
        let place = match turn {
            ConnectionTurn::Idle(connection) => return Ok(connection),
            ConnectionTurn::Open(place) => place,
        };
        let mut connection = self.dial(endpoint).await?;
        connection.place = place.map(OpeningPlace::opened);
        Ok(self.idle.begin(endpoint, connection)?)
    }

    /// A connection that hyper drives in a task of its own, with the same limits for a head as in `http/h1`.
    async fn dial(&self, endpoint: &Arc<Endpoint>) -> Result<Box<Http1Connection>, UpstreamError> {
        let stream = self.connector.connect(endpoint, MeshProtocol::Http1, Deadline::Timer).await?;
        let secured = stream.secured();
        let stream = Watched::new(stream);
        let watch = stream.watch();
        let limits = self.connector.limits();
        let (sender, connection) = Builder::new()
            .max_buf_size(limits.head_bytes.max(LEAST_BUFFER))
            .max_headers(limits.header_count)
            .allow_obsolete_multiline_headers_in_responses(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| UpstreamError::from(&error))?;
        let address = endpoint.address;
        let driven = tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "HTTP/1.1 connection to an upstream failed");
            }
        });
        let (task, endpoint) = (driven.abort_handle(), endpoint.clone());
        let interims = Arc::default();
        Ok(Box::new(Http1Connection { sender, task, secured, watch, interims, endpoint, place: None }))
    }
}

/// Has hyper hand over the interim responses to a request.
fn on_interim(request: &mut Request<Outgoing>, relay: Arc<InterimRelay>) {
    hyper::ext::on_informational(request, move |head| {
        let mut interim = Response::new(());
        *interim.status_mut() = head.status();
        *interim.headers_mut() = head.headers().clone();
        relay.push(interim);
    });
}

impl Repeat {
    /// `None` if the request must not be sent twice.
    fn of(request: &Request<Outgoing>) -> Option<Self> {
        let body = request.body();
        body.is_repeatable(request.method()).then(|| {
            let mut head = Request::new(());
            *head.method_mut() = request.method().clone();
            *head.uri_mut() = request.uri().clone();
            *head.headers_mut() = request.headers().clone();
            Self { head: Box::new(head.into_parts().0), body: body.retain() }
        })
    }

    /// The request, if nothing was taken from its body.
    fn request(self) -> Option<Request<Outgoing>> {
        Some(Request::from_parts(*self.head, self.body.reclaim()?))
    }
}

impl Reusable for Box<Http1Connection> {
    fn fitness(&mut self, _: Duration) -> Fitness {
        if self.sender.is_closed() || self.secured.as_ref().is_some_and(|secured| !secured.is_current()) {
            Fitness::Dead
        } else if self.sender.is_ready() {
            Fitness::Ready
        } else {
            Fitness::Busy
        }
    }

    fn place(&mut self) -> Option<&mut Http1Place> {
        self.place.as_deref_mut()
    }
}

impl Checkout {
    /// The answer is complete.
    pub(super) fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            let endpoint = connection.endpoint.clone();
            self.all.idle.put(&endpoint, connection);
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.task.abort();
        }
    }
}
