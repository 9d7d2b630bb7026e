//! Connections to apps that hyper drives: HTTP/2 ones that requests share, and HTTP/1.1 ones for clients that speak
//! HTTP/2. One set for each worker; nothing here crosses a thread.

mod body;
mod error;
mod http1;
mod http2;
mod socket;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use self::body::Outgoing;
pub use self::body::UpstreamBody;
pub use self::error::UpstreamError;
pub(super) use self::error::Violation;
use super::BoxError;
use crate::limits::Limits;

/// All connections of a worker to the apps behind its ports. To be used within a [`tokio::task::LocalSet`]: each
/// connection is a task of its own.
pub struct Upstreams {
    limits: Rc<Limits>,
    apps: RefCell<HashMap<SocketAddr, Rc<App>>>,
}

struct App {
    http1: Rc<http1::Pool>,
    http2: http2::Connections,
}

impl Upstreams {
    /// No connections yet.
    pub fn new(limits: Rc<Limits>) -> Self {
        Self { limits, apps: RefCell::default() }
    }

    /// Sends a request over HTTP/2 with prior knowledge. Its URI has scheme, authority and path.
    ///
    /// A request that the app certainly has not looked at, because it was refused or could not be sent, is tried
    /// once more on a new connection; no other is.
    pub async fn send<B>(
        &self,
        app: SocketAddr,
        request: Request<B>,
        connect_timeout: Duration,
    ) -> Result<Response<UpstreamBody>, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        self.app(app).http2.send(request.map(Outgoing::new), connect_timeout).await
    }

    /// Sends a request over HTTP/1.1, by the same rule. Its URI is a path, its `host` is set.
    pub async fn send_http1<B>(
        &self,
        app: SocketAddr,
        request: Request<B>,
        connect_timeout: Duration,
    ) -> Result<Response<UpstreamBody>, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        self.app(app).http1.send(request.map(Outgoing::new), connect_timeout).await
    }

    /// Lets go of connections that ended, or that nobody has needed for long. To be called on every tick.
    pub fn sweep(&self, now: Instant) {
        self.apps.borrow_mut().retain(|_, app| {
            app.http1.sweep(now);
            app.http2.sweep(now);
            !(app.http1.is_empty() && app.http2.is_empty() && Rc::strong_count(app) == 1)
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
            Rc::new(App { http1, http2: http2::Connections::new(address, &self.limits) })
        };
        apps.entry(address).or_insert_with(new).clone()
    }
}
