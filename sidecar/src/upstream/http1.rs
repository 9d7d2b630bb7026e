//! HTTP/1.1 for requests that come over HTTP/2, by hyper: one request at a time on a connection.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tidegate_core::backend::Endpoint;
use tidegate_core::policy::MeshProtocol;
use tokio::task::AbortHandle;

use super::body::{Outgoing, UpstreamBody};
use super::connect::{Connector, Deadline};
use super::error::UpstreamError;
use super::pool::{Fitness, Pool, Reusable};
use super::stream::Secured;

/// hyper's least.
const LEAST_BUFFER: usize = 8 * 1024;

/// Connections that hyper drives.
pub(super) struct Http1 {
    connector: Rc<Connector>,
    idle: Pool<Box<Carrier>>,
}

/// One connection. Boxed, because the bodies of answers hold it.
struct Carrier {
    sender: SendRequest<Outgoing>,
    /// Drives it.
    task: AbortHandle,
    /// `None` in plaintext.
    secured: Option<Secured>,
    endpoint: Arc<Endpoint>,
}

/// A connection that is in use.
pub(super) struct Checkout {
    carrier: Box<Carrier>,
    all: Rc<Http1>,
}

impl Http1 {
    pub(super) fn new(connector: Rc<Connector>) -> Self {
        Self { idle: Pool::new(connector.limits()), connector }
    }

    pub(super) async fn send(
        self: Rc<Self>,
        endpoint: Arc<Endpoint>,
        request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut request = request;
        if let Some(carrier) = self.idle.checkout(&endpoint) {
            match self.try_send(carrier, request).await {
                Ok(response) => return Ok(response),
                // The app closed it in the meantime, and nothing was written to it.
                Err((_, Some(unsent))) => request = *unsent,
                Err((error, None)) => return Err(error),
            }
        }
        // Rare, and large.
        let carrier = Box::pin(self.dial(&endpoint)).await?;
        self.try_send(carrier, request).await.map_err(|(error, _)| error)
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.idle.sweep(now);
    }

    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }

    async fn try_send(
        self: &Rc<Self>,
        mut carrier: Box<Carrier>,
        request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, (UpstreamError, Option<Box<Request<Outgoing>>>)> {
        let upload = request.body().retain().sent_by(carrier.task.clone());
        match carrier.sender.try_send_request(request).await {
            Ok(response) => {
                let checkout = Checkout { carrier, all: self.clone() };
                Ok(response.map(|body| UpstreamBody::http1(body, checkout, upload)))
            }
            Err(mut failure) => {
                let unsent = failure.take_message().map(Box::new);
                Err((UpstreamError::from(failure.error()), unsent))
            }
        }
    }

    async fn dial(&self, endpoint: &Arc<Endpoint>) -> Result<Box<Carrier>, UpstreamError> {
        let stream = self.connector.connect(endpoint, MeshProtocol::Http1, Deadline::Timer).await?;
        let secured = stream.secured();
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
        Ok(Box::new(Carrier { sender, task, secured, endpoint }))
    }
}

impl Reusable for Box<Carrier> {
    fn fitness(&mut self, _: Duration) -> Fitness {
        if self.sender.is_closed() || self.secured.as_ref().is_some_and(|secured| !secured.is_current()) {
            Fitness::Dead
        } else if self.sender.is_ready() {
            Fitness::Ready
        } else {
            Fitness::Busy
        }
    }
}

impl Checkout {
    /// The answer is complete.
    pub(super) fn give_back(self) {
        let endpoint = self.carrier.endpoint.clone();
        self.all.idle.put(&endpoint, self.carrier);
    }
}
