//! Apps on loopback that record what they receive.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::kit::full;
use crate::http::h2::LocalExecutor;
use crate::upstream::DynBody;

/// An app, and what it has received.
pub(super) struct App {
    pub(super) address: SocketAddr,
    pub(super) seen: Rc<Seen>,
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) connections: Cell<usize>,
    /// Requests without a response, if the app counts them.
    pub(super) held: Cell<usize>,
    pub(super) requests: RefCell<Vec<Received>>,
}

/// A request as the app received it.
pub(super) struct Received {
    pub(super) line: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

/// The HTTP version that an app speaks.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Speaks {
    Http1,
    Http2,
}

impl App {
    /// An app that records each request and returns its body.
    pub(super) async fn echo(speaks: Speaks) -> Self {
        Self::with(speaks, async |seen: Rc<Seen>, request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            let line = format!("{} {} {:?}", head.method, head.uri, head.version);
            let Ok(body) = body.collect().await else { return Response::new(full("")) };
            let trailers = body.trailers().cloned();
            let body = body.to_bytes();
            let received = Received { line, headers: head.headers, body: body.clone(), trailers };
            seen.requests.borrow_mut().push(received);
            Response::new(full(body))
        })
        .await
    }

    /// An app that responds with this function.
    pub(super) async fn with<F>(speaks: Speaks, answer: F) -> Self
    where
        F: AsyncFn(Rc<Seen>, Request<Incoming>) -> Response<DynBody> + 'static,
    {
        let answer = Rc::new(answer);
        Self::raw(async move |seen, socket| {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let (answer, seen) = (answer.clone(), seen.clone());
                async move { Ok::<_, Infallible>(answer(seen, request).await) }
            });
            let io = TokioIo::new(socket);
            // The client notices a connection that ends with an error.
            let _ = match speaks {
                Speaks::Http1 => {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                }
                Speaks::Http2 => {
                    let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
                    // Raises the app's own limit for small frames, which is not under test.
                    builder
                        .initial_stream_window_size(32 * 1024)
                        .initial_connection_window_size(64 * 1024 * 1024);
                    builder.serve_connection(io, service).await
                }
            };
        })
        .await
    }

    /// An app that serves each socket with this function.
    pub(super) async fn raw<F>(serve: F) -> Self
    where
        F: AsyncFn(Rc<Seen>, TcpStream) + 'static,
    {
        let serve = Rc::new(serve);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Rc::<Seen>::default();
        let shared = seen.clone();
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                shared.connections.set(shared.connections.get() + 1);
                let (serve, seen) = (serve.clone(), shared.clone());
                tokio::task::spawn_local(async move { serve(seen, socket).await });
            }
        });
        Self { address, seen }
    }

    /// An address on which no app listens.
    pub(super) async fn no_app() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }
}

impl Seen {
    pub(super) fn count(&self) -> usize {
        self.requests.borrow().len()
    }

    /// All values of a field of the last request.
    pub(super) fn last(&self, name: &str) -> Vec<String> {
        let requests = self.requests.borrow();
        let values = requests.last().unwrap().headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}
