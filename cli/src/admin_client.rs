//! Asks a running Tidegate process through its admin server: plain HTTP on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
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
    let exchange = async {
        let stream = TcpStream::connect(admin).await.with_context(|| {
            format!("no Tidegate process answers at {admin}; is `tidegate standalone` running, with this --admin-address?")
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request =
            Request::builder().uri(path).header("host", admin.to_string()).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        driver.abort();
        let body = body.map_err(|error| anyhow::anyhow!("http://{admin}{path}: {error}"))?.to_bytes();
        if status != StatusCode::OK {
            bail!("http://{admin}{path}: {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    };
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .with_context(|| format!("{admin} did not answer in {TIMEOUT:?}"))?
}
