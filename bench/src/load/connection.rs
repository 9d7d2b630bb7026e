//! One client connection, and how to open another.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::net::{TcpSocket, TcpStream};

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

    fn new(path: &str, body_bytes: u64, connection: &str) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: httpbin\r\nuser-agent: tidegate-bench\r\naccept: */*\r\n{connection}\r\n"
        );
        Self { request: request.into_bytes(), body_bytes }
    }

    /// Fails unless the response is 200 with a body of the expected length; returns that length.
    pub(crate) async fn on(&self, client: &mut HttpConnection<ClientStream>) -> Result<u64> {
        let answer = client.exchange(&self.request).await?;
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
