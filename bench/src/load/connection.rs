//! One client connection, and how to open another.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::net::{TcpSocket, TcpStream};

use crate::app::{LARGE_BYTES, LARGE_PATH, SMALL_BYTES};
use crate::http::{HttpConnection, ReceivedAnswer};
use crate::tls::{ClientIdentity, ClientStream, Dialer};

/// Number of source addresses that short-lived connections use in turn, so that ports do not run out.
const SOURCES: usize = 32;

/// Where the load goes, and how.
#[derive(Clone)]
pub(crate) struct LoadEndpoint {
    /// The target.
    address: SocketAddr,
    /// For TLS; `None` for plaintext.
    dialer: Option<Dialer>,
}

/// A request, and its expected response.
#[derive(Debug, Clone)]
pub(crate) struct LoadExchange {
    /// Head of the request.
    request: Vec<u8>,
    /// Length of its body.
    upload_bytes: u64,
    /// Expected length of the response's body.
    body_bytes: u64,
}

impl LoadEndpoint {
    /// Plaintext to this address.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, dialer: None }
    }

    /// Without `identity`, no certificate is presented; `protocols` are offered by ALPN, if any.
    pub(crate) fn tls(
        address: SocketAddr,
        ca: &Path,
        server_name: &str,
        identity: Option<&ClientIdentity>,
        protocols: &[&[u8]],
    ) -> Result<Self> {
        Ok(Self { address, dialer: Some(Dialer::new(ca, server_name, identity, protocols)?) })
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<HttpConnection<ClientStream>> {
        Ok(HttpConnection::new(self.connect_stream().await?))
    }

    /// A connection on which nothing has been sent yet.
    pub(super) async fn connect_stream(&self) -> Result<ClientStream> {
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("cannot connect to {}", self.address))?;
        self.secure(stream).await
    }

    /// Connects from the `number`th of several loopback addresses.
    pub(crate) async fn connect_from(&self, number: usize) -> Result<HttpConnection<ClientStream>> {
        let socket = TcpSocket::new_v4()?;
        let source = Ipv4Addr::new(127, 0, 9, (number % SOURCES) as u8 + 1);
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
        let stream = socket
            .connect(self.address)
            .await
            .with_context(|| format!("cannot connect to {} from {source}", self.address))?;
        Ok(HttpConnection::new(self.secure(stream).await?))
    }

    /// Runs the TLS handshake, if there is one.
    async fn secure(&self, stream: TcpStream) -> Result<ClientStream> {
        stream.set_nodelay(true)?;
        match &self.dialer {
            None => Ok(ClientStream::Plain(stream)),
            Some(dialer) => dialer.handshake(stream).await,
        }
    }
}

impl LoadExchange {
    /// A GET after which the connection stays open.
    pub(crate) fn keep_alive(path: &str, body_bytes: u64) -> Self {
        Self::new(path, body_bytes, "")
    }

    /// A GET after which the server closes the connection.
    pub(crate) fn last(path: &str, body_bytes: u64) -> Self {
        Self::new(path, body_bytes, "connection: close\r\n")
    }

    /// A GET of the large response.
    pub(crate) fn download() -> Self {
        Self::keep_alive(LARGE_PATH, LARGE_BYTES)
    }

    /// A POST of the large body, answered with the small response.
    pub(crate) fn upload() -> Self {
        let length = format!("content-length: {LARGE_BYTES}\r\n");
        Self {
            request: head("POST", LARGE_PATH, &length),
            upload_bytes: LARGE_BYTES,
            body_bytes: SMALL_BYTES,
        }
    }

    fn new(path: &str, body_bytes: u64, connection: &str) -> Self {
        Self { request: head("GET", path, connection), upload_bytes: 0, body_bytes }
    }

    /// Fails unless the response is 200 with a body of the expected length; returns that length.
    pub(crate) async fn on(&self, client: &mut HttpConnection<ClientStream>) -> Result<u64> {
        let answer = client.exchange_with_body(&self.request, self.upload_bytes).await?;
        ensure!(answer.status == 200, "answer has status {}", answer.status);
        ensure!(answer.body_bytes == self.body_bytes, "body of {} bytes", answer.body_bytes);
        Ok(answer.body_bytes)
    }

    /// Sends the request and returns the response, whatever it is.
    pub(crate) async fn any_answer_on(
        &self,
        client: &mut HttpConnection<ClientStream>,
    ) -> Result<ReceivedAnswer> {
        client.exchange(&self.request).await
    }
}

/// A request's head with an additional field.
fn head(method: &str, path: &str, field: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: httpbin\r\nuser-agent: tidegate-bench\r\naccept: */*\r\n{field}\r\n"
    )
    .into_bytes()
}
