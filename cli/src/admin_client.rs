//! Client for the admin server of a running Tidegate process: plain HTTP on loopback.
//!
//! It is used for `--admin-address` and by the demo; commands for a cluster reach the same pages through a
//! port-forward (`cluster/admin.rs`), which shares [`exchange`].

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Largest body to accept, bytes. Tidegate's own answers are smaller.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends `GET path` and parses the body as JSON.
pub(crate) async fn fetch<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> anyhow::Result<T> {
    let body = get(admin, path).await?;
    serde_json::from_slice(&body).with_context(|| format!("http://{admin}{path}: unexpected JSON"))
}

/// Sends `GET path` and returns the body. An error status becomes an error with the body's text.
async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let answer = async {
        let stream = TcpStream::connect(admin).await.with_context(|| {
            format!("no Tidegate process answers at {admin}; check that `tidegate standalone` is running with this --admin-address")
        })?;
        let answer = exchange(stream, Method::GET, &admin.to_string(), path).await;
        answer.with_context(|| format!("http://{admin}{path}"))
    };
    let answer = tokio::time::timeout(TIMEOUT, answer).await;
    let (status, body) = answer.with_context(|| format!("{admin} did not answer in {TIMEOUT:?}"))??;
    if status != StatusCode::OK {
        bail!("http://{admin}{path}: {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

/// Sends one request over `stream`, whatever the transport, and returns status and body.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    host: &str,
    path: &str,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header("host", host).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    driver.abort();
    Ok((status, body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes()))
}
