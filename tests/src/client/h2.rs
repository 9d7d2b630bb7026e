//! An HTTP/2 client, over TLS or with prior knowledge.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Client;
use crate::http2::{self, H2Body};

/// An open HTTP/2 connection; runs in the background of the current runtime.
#[derive(Debug)]
pub struct H2Connection {
    /// Opens new requests.
    pub requests: SendRequest<Bytes>,
    /// The server's choice by ALPN; empty without one, and without TLS.
    pub protocol: Vec<u8>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    /// Its head.
    pub head: Response<()>,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl H2Connection {
    /// Connects as `client` is configured; with TLS it must offer `h2`.
    pub async fn open(client: &Client) -> Result<Self, String> {
        let stream = super::connect(client.source, client.target).map_err(|error| error.to_string())?;
        stream.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        match &client.tls {
            None => Self::over(stream, Vec::new()).await,
            Some(tls) => {
                let connector = TlsConnector::from(Arc::new(tls.config()));
                let stream =
                    connector.connect(tls.name(), stream).await.map_err(|error| error.to_string())?;
                let protocol = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
                Self::over(stream, protocol).await
            }
        }
    }

    async fn over<S>(stream: S, protocol: Vec<u8>) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = h2::client::Builder::new()
            // As other clients do until the server has announced its limit.
            .initial_max_send_streams(100)
            .handshake(stream)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self { requests, protocol, driver: tokio::spawn(connection) })
    }

    /// Sends a request with a body, unless that is empty, and reads the complete answer.
    pub async fn exchange(&self, request: Request<()>, body: &[u8]) -> Result<Answer, h2::Error> {
        let body = (!body.is_empty()).then(|| H2Body::from(body));
        self.exchange_body(request, body).await
    }

    /// Sends a request, with a body if it is to have one, and reads the complete answer.
    pub async fn exchange_body(
        &self,
        request: Request<()>,
        body: Option<H2Body>,
    ) -> Result<Answer, h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut send) = requests.send_request(request, body.is_none())?;
        if let Some(body) = body {
            // The answer may come first. It, or its absence, shows whether the app has got the body.
            tokio::spawn(async move { body.send(&mut send).await });
        }
        let (head, stream) = response.await?.into_parts();
        let (body, trailers) = http2::read(stream).await?;
        Ok(Answer { head: Response::from_parts(head, ()), body, trailers })
    }

    /// GET of a path.
    pub async fn get(&self, path: &str) -> Result<Answer, h2::Error> {
        self.exchange(Request::get(format!("https://httpbin.test{path}")).body(()).unwrap(), &[]).await
    }

    /// Waits for the end of the connection.
    pub async fn closed(self) -> Result<(), h2::Error> {
        drop(self.requests);
        self.driver.await.unwrap()
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }
}
