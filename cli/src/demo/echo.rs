//! The demo's app: answers `GET /get` with the request's data, as httpbin does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running app; stops when dropped.
pub(crate) struct EchoApp {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl EchoApp {
    /// Listens and serves.
    pub(crate) async fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(serve(listener)) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for EchoApp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts connections until the task is aborted, each served in a task of its own.
async fn serve(listener: TcpListener) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let service =
                service_fn(move |request| async move { Ok::<_, Infallible>(answer(&request, peer)) });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A disconnected client does not matter to the app.
            let _ = connection.await;
        });
    }
}

/// The JSON of httpbin's `/get`: headers, method, origin and URL, for any path.
fn answer(request: &Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: BTreeMap<&str, String> =
        request.headers().iter().map(|(name, value)| (name.as_str(), text(value))).collect();
    let host = request.headers().get(HOST).map(text).unwrap_or_default();
    let scheme = headers.get("x-forwarded-proto").map_or("http", String::as_str);
    let body = json!({
        "headers": headers,
        "method": request.method().as_str(),
        "origin": peer.ip(),
        "url": format!("{scheme}://{host}{}", request.uri()),
    });
    let mut response = Response::new(Full::from(format!("{body:#}\n")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert("access-control-allow-origin", HeaderValue::from_static("*"));
    response
}
