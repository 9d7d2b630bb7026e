//! HTTP/1.1 connections to one app: one request at a time each, last used first.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use http::{Request, Response};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::body::{Outgoing, UpstreamBody};
use super::error::UpstreamError;
use super::socket::Socket;
use crate::limits::Limits;

/// hyper's least.
const LEAST_BUFFER: usize = 8 * 1024;

/// Connections that wait for a request, or are about to.
pub(super) struct Pool {
    app: SocketAddr,
    limits: Rc<Limits>,
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    carrier: Carrier,
    since: Instant,
}

/// One connection.
struct Carrier {
    sender: SendRequest<Outgoing>,
    /// Drives it.
    task: AbortHandle,
}

/// A connection that is in use.
pub(super) struct Checkout {
    carrier: Carrier,
    pool: Rc<Pool>,
}

impl Pool {
    pub(super) fn new(app: SocketAddr, limits: Rc<Limits>) -> Self {
        Self { app, limits, idle: RefCell::default() }
    }

    pub(super) async fn send(
        self: &Rc<Self>,
        request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut request = request;
        if let Some(carrier) = self.take(Instant::now()) {
            match self.try_send(carrier, request).await {
                Ok(response) => return Ok(response),
                // The app closed it in the meantime, and nothing was written to it.
                Err((_, Some(unsent))) => request = *unsent,
                Err((error, None)) => return Err(error),
            }
        }
        // Rare, and large.
        let carrier = Box::pin(self.dial()).await?;
        self.try_send(carrier, request).await.map_err(|(error, _)| error)
    }

    pub(super) fn sweep(&self, now: Instant) {
        let limit = self.limits.upstream_idle;
        let is_fresh = |idle: &Idle| now.saturating_duration_since(idle.since) < limit;
        self.idle.borrow_mut().retain(|idle| !idle.carrier.sender.is_closed() && is_fresh(idle));
    }

    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The connection that was used last, if it is alive and young enough that the app will not just close it.
    fn take(&self, now: Instant) -> Option<Carrier> {
        self.sweep(now);
        let mut idle = self.idle.borrow_mut();
        // One that is still busy with the rest of a request that was answered early stays.
        let index = idle.iter().rposition(|idle| idle.carrier.sender.is_ready())?;
        Some(idle.remove(index).carrier)
    }

    async fn try_send(
        self: &Rc<Self>,
        mut carrier: Carrier,
        request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, (UpstreamError, Option<Box<Request<Outgoing>>>)> {
        let upload = request.body().retain().sent_by(carrier.task.clone());
        match carrier.sender.try_send_request(request).await {
            Ok(response) => {
                let checkout = Checkout { carrier, pool: self.clone() };
                Ok(response.map(|body| UpstreamBody::http1(body, checkout, upload)))
            }
            Err(mut failure) => {
                let unsent = failure.take_message().map(Box::new);
                Err((UpstreamError::from(failure.error()), unsent))
            }
        }
    }

    async fn dial(&self) -> Result<Carrier, UpstreamError> {
        let socket = Socket::connect(self.app, &self.limits).await?;
        let (sender, connection) = Builder::new()
            .max_buf_size(self.limits.head_bytes.max(LEAST_BUFFER))
            .max_headers(self.limits.header_count)
            .allow_obsolete_multiline_headers_in_responses(true)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| UpstreamError::from(&error))?;
        let app = self.app;
        let driven = tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%app, %error, "HTTP/1.1 connection to the app failed");
            }
        });
        Ok(Carrier { sender, task: driven.abort_handle() })
    }
}

impl Checkout {
    /// The answer is complete.
    pub(super) fn give_back(self) {
        let mut idle = self.pool.idle.borrow_mut();
        if idle.len() < self.pool.limits.upstream_idle_connections && !self.carrier.sender.is_closed() {
            idle.push(Idle { carrier: self.carrier, since: Instant::now() });
        }
    }
}
