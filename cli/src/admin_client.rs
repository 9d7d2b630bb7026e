//! Asks a running Tidegate process through its admin server: plain HTTP on loopback.

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

/// An answer that is larger than this is not one of ours.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Asking takes no longer than this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `GET path`, and the answer's JSON.
pub(crate) async fn fetch<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> anyhow::Result<T> {
    let body = get(admin, path).await?;
    serde_json::from_slice(&body)
        .with_context(|| format!("http://{admin}{path}: not the JSON that was expected"))
}

/// The body of an answer; an error says what the process answered.
async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let answer = async {
        let stream = TcpStream::connect(admin).await.with_context(|| {
            format!("no Tidegate process answers at {admin}; is `tidegate standalone` running, with this --admin-address?")
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

/// One request and its answer over `stream`, whatever that goes through.
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
