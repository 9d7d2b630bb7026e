//! Connections to apps: HTTP/2 ones that requests share, driven by h2, and HTTP/1.1 ones for clients that speak HTTP/2,
//! driven by hyper. How many requests are there at a time is bounded, for each client and each app, too (`shares`). One
//! set for each worker; nothing here crosses a thread.

mod body;
mod error;
mod http1;
mod http2;
mod shares;
mod socket;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use self::body::Outgoing;
pub use self::body::{Uploading, UpstreamBody};
pub use self::error::UpstreamError;
pub(super) use self::error::Violation;
use self::shares::{Share, Shares, Source};
use super::BoxError;
use crate::connection_info::ConnectionInfo;
use crate::limits::Limits;

/// A request on its way, until the head of its answer has come. Dropped before, it is cancelled.
pub struct Sending(Pin<Box<dyn Future<Output = Result<Response<UpstreamBody>, UpstreamError>>>>);

/// All connections of a worker to the apps behind its ports. To be used on a local runtime
/// ([`tokio::runtime::LocalRuntime`]): each connection is a task of its own.
pub struct Upstreams {
    limits: Rc<Limits>,
    apps: RefCell<HashMap<SocketAddr, Rc<App>>>,
    /// Requests that are at apps, or on their way there.
    requests: Rc<Shares>,
    /// Bytes of answers over HTTP/2 that clients have not taken.
    held: Rc<Cell<usize>>,
}

struct App {
    http1: Rc<http1::Pool>,
    http2: Rc<http2::Connections>,
}

impl Upstreams {
    /// No connections yet.
    pub fn new(limits: Rc<Limits>) -> Self {
        Self { limits, apps: RefCell::default(), requests: Rc::default(), held: Rc::default() }
    }

    /// Sends the request of a client over HTTP/2 with prior knowledge. Its URI has scheme, authority and path.
    ///
    /// A request that the app certainly has not looked at, because it was refused or could not be sent, is tried
    /// once more on a new connection; no other is.
    pub fn send<B>(
        &self,
        client: &ConnectionInfo,
        app: SocketAddr,
        request: Request<B>,
    ) -> Result<Sending, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let source = Source::of(client);
        let share = self.share(&source, app)?;
        let (head, body) = request.into_parts();
        let (head, body) = (Box::new(head), Outgoing::new(body, share.clone()));
        let http2 = self.app(app).http2.clone();
        Ok(Sending(Box::pin(async move {
            let response = http2.send(source, head, body).await?;
            Ok(response.map(|body| body.holding(share)))
        })))
    }

    /// Sends a request over HTTP/1.1, by the same rule. Its URI is a path, its `host` is set.
    pub fn send_http1<B>(
        &self,
        client: &ConnectionInfo,
        app: SocketAddr,
        request: Request<B>,
    ) -> Result<Sending, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let share = self.share(&Source::of(client), app)?;
        let request = request.map(|body| Outgoing::new(body, share.clone()));
        let http1 = self.app(app).http1.clone();
        Ok(Sending(Box::pin(async move {
            let response = http1.send(request).await?;
            Ok(response.map(|body| body.holding(share)))
        })))
    }

    /// A place for one more request of this client to this app.
    fn share(&self, source: &Source, app: SocketAddr) -> Result<Rc<Share>, UpstreamError> {
        let share = self.requests.take(source, app, self.limits.upstream_requests);
        share.map(Rc::new).map_err(UpstreamError::Overflow)
    }

    /// Lets go of connections that ended, or that nobody has needed for long. To be called on every tick.
    pub fn sweep(&self, now: Instant) {
        self.apps.borrow_mut().retain(|_, app| {
            app.http1.sweep(now);
            app.http2.sweep(now);
            !(app.http1.is_empty()
                && app.http2.is_empty()
                && Rc::strong_count(&app.http2) == 1
                && Rc::strong_count(app) == 1)
        });
    }

    /// Connections: HTTP/1.1 ones that wait for a request, HTTP/2 ones that are open.
    pub fn connections(&self) -> (usize, usize) {
        let apps = self.apps.borrow();
        (apps.values().map(|app| app.http1.len()).sum(), apps.values().map(|app| app.http2.len()).sum())
    }

    fn app(&self, address: SocketAddr) -> Rc<App> {
        let mut apps = self.apps.borrow_mut();
        let new = || {
            let http1 = Rc::new(http1::Pool::new(address, self.limits.clone()));
            let http2 = http2::Connections::new(address, self.limits.clone(), self.held.clone());
            Rc::new(App { http1, http2 })
        };
        apps.entry(address).or_insert_with(new).clone()
    }
}

impl Future for Sending {
    type Output = Result<Response<UpstreamBody>, UpstreamError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}
