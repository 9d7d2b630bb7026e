//! A client with limits, and an app that responds when the test wants.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tidegate_core::backend::{BackendLimits, UsageCounts};
use tidegate_core::route::retry::{Backoff, RetryMethods, RetryOn};
use tidegate_core::route::{Action, RetryPolicy, RouteRule};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::super::app::{ask, serve};
use super::super::http::http2;
use super::super::routes::{backend, below, client, share};
use super::*;

/// An app of both versions that responds to each request in its turn, to one of `/now` at once.
pub(super) struct PacedApp {
    address: SocketAddr,
    turns: Arc<Semaphore>,
    /// Connections and requests so far.
    counts: Arc<[AtomicUsize; 2]>,
}

/// A client of a [`PacedApp`] that is the only endpoint of a backend with limits.
pub(super) struct LimitedClient {
    pub(super) client: Client,
    pub(super) app: PacedApp,
    pub(super) protocol: BackendProtocol,
}

impl PacedApp {
    /// Responds with this status.
    pub(super) async fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (turns, counts) = (Arc::new(Semaphore::new(0)), Arc::<[AtomicUsize; 2]>::default());
        let app = Self { address, turns: turns.clone(), counts: counts.clone() };
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                counts[0].fetch_add(1, Ordering::SeqCst);
                let (turns, counts) = (turns.clone(), counts.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        counts[1].fetch_add(1, Ordering::SeqCst);
                        let turns = (request.uri().path() != "/now").then(|| turns.clone());
                        respond(status, turns)
                    });
                    serve(io, service).await;
                });
            }
        });
        app
    }

    pub(super) fn connections(&self) -> usize {
        self.counts[0].load(Ordering::SeqCst)
    }

    pub(super) fn requests(&self) -> usize {
        self.counts[1].load(Ordering::SeqCst)
    }
}

async fn respond(status: u16, turns: Option<Arc<Semaphore>>) -> Result<Response<Full<Bytes>>, Infallible> {
    if let Some(turns) = turns {
        turns.acquire().await.unwrap().forget();
    }
    let mut response = Response::new(Full::new(Bytes::from("paced")));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

pub(super) fn rule() -> RouteRule {
    below("/", vec![], Action::Forward(vec![share(1)]))
}

pub(super) fn retried(attempts: u32) -> RouteRule {
    let on = RetryOn::codes(&[503]).unwrap();
    let retry = RetryPolicy::new(on, RetryMethods::All, attempts, Backoff::NONE, None).unwrap();
    RouteRule { retry: Some(retry), ..rule() }
}

impl LimitedClient {
    pub(super) async fn new(protocol: BackendProtocol, limits: BackendLimits) -> Self {
        Self::with(protocol, limits, rule(), PacedApp::start(200).await)
    }

    pub(super) fn with(
        protocol: BackendProtocol,
        limits: BackendLimits,
        rule: RouteRule,
        app: PacedApp,
    ) -> Self {
        let backend = Backend { limits, ..backend(protocol, 80, app.address) };
        Self { client: client(vec![rule], backend), app, protocol }
    }

    /// Replaces the limits.
    pub(super) fn limit(&self, limits: BackendLimits) {
        let backend = Backend { limits, ..backend(self.protocol, 80, self.app.address) };
        let name = ResourceName::Backend(backend.name.clone());
        self.client.destinations.set(&name, "2".into(), Resource::Backend(backend), 100).unwrap();
        self.client.destinations.settle(true);
    }

    /// What is counted.
    pub(super) fn counts(&self) -> UsageCounts {
        let references = self.client.destinations.view_references();
        let usage = references.iter().find_map(|reference| reference.usage.as_ref());
        usage.map(|usage| usage.counts()).unwrap_or_default()
    }

    /// Sends a request on a connection of its own, in this version.
    pub(super) async fn get(&self, version: BackendProtocol) -> JoinHandle<(u16, String)> {
        self.send(version, "/").await
    }

    pub(super) async fn send(&self, version: BackendProtocol, path: &str) -> JoinHandle<(u16, String)> {
        if version == BackendProtocol::Http1 {
            let mut io = self.client.dial().await;
            let request = format!("GET {path} HTTP/1.1\r\nhost: cart\r\n\r\n");
            return tokio::spawn(async move { ask(&mut io, &request).await });
        }
        let mut sender = http2(&self.client).await;
        let sent = sender
            .send_request(Request::get(format!("http://cart{path}")).body(Empty::<Bytes>::new()).unwrap());
        tokio::spawn(async move {
            let response = sent.await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            drop(sender);
            (status, String::from_utf8(body.to_vec()).unwrap())
        })
    }

    /// Sends a request, and waits until the app has it.
    pub(super) async fn hold(&self, version: BackendProtocol) -> JoinHandle<(u16, String)> {
        let before = self.app.requests();
        let held = self.get(version).await;
        until(|| self.app.requests() > before).await;
        held
    }

    /// What comes of a request that waits neither for the app nor for a connection.
    pub(super) async fn refused(&self, version: BackendProtocol) -> (u16, String) {
        tokio::time::timeout(PATIENCE, self.get(version).await).await.expect("no answer").unwrap()
    }

    /// Lets the app respond so many times.
    pub(super) fn respond(&self, times: usize) {
        self.app.turns.add_permits(times);
    }
}
