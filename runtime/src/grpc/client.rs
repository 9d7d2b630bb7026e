//! The client's side: a channel with our own connector.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use crate::forward_proxy::{ControlPlaneProxyOptions, Proxied};

/// Timeout of name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings, also while no call runs, and timeout of their answers: a peer that vanished silently is
/// detected within two intervals.
const PING: Duration = Duration::from_secs(10);

/// The address of a gRPC server: `https://host:port`, with port 443 by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: ServerName<'static>,
    port: u16,
}

/// A text is not a gRPC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form https://host:port")]
pub struct AddressError(String);

/// A channel to `address` that connects on first use, and again after each lost connection.
///
/// `tls` is called for each connection, so that it can return the newest certificate and trust bundle; while it returns
/// none, calls fail with `Unavailable`. The server's certificate must be valid for `server_name`, also behind a proxy.
pub fn channel(
    address: &Address,
    proxy: &ControlPlaneProxyOptions,
    server_name: ServerName<'static>,
    tls: impl Fn() -> Option<Arc<ClientConfig>> + Send + Sync + 'static,
) -> Channel {
    let connector = GrpcConnector(Arc::new(ConnectorTarget {
        address: address.clone(),
        proxy: proxy.clone(),
        server_name,
        tls: Box::new(tls),
    }));
    // The connector does TLS itself, so tonic sees plaintext; calls still use the scheme `https`.
    Endpoint::from(address.uri("http"))
        .origin(address.uri("https"))
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}

#[derive(Clone)]
struct GrpcConnector(Arc<ConnectorTarget>);

struct ConnectorTarget {
    address: Address,
    proxy: ControlPlaneProxyOptions,
    server_name: ServerName<'static>,
    tls: Box<dyn Fn() -> Option<Arc<ClientConfig>> + Send + Sync>,
}

impl Address {
    /// An address from its parts.
    pub fn new(host: ServerName<'static>, port: u16) -> Self {
        Self { host, port }
    }

    /// The host, which is the default name to verify in the server's certificate.
    pub fn host(&self) -> &ServerName<'static> {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn authority(&self) -> String {
        match &self.host {
            ServerName::IpAddress(address) => match IpAddr::from(*address) {
                IpAddr::V4(address) => format!("{address}:{}", self.port),
                IpAddr::V6(address) => format!("[{address}]:{}", self.port),
            },
            host => format!("{}:{}", host.to_str(), self.port),
        }
    }

    fn uri(&self, scheme: &str) -> Uri {
        let parts = Uri::builder().scheme(scheme).authority(self.authority()).path_and_query("/");
        // Never the default, because an address and a DNS name are both valid authorities.
        parts.build().unwrap_or_default()
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| error())?;
        let authority = uri.authority().ok_or_else(error)?;
        let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !text.contains(['@', '#']);
        if uri.scheme_str() != Some("https") || !is_bare {
            return Err(error());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let host = ServerName::try_from(host.to_owned()).map_err(|_| error())?;
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => {
                port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?
            }
            _ => 443,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl Service<Uri> for GrpcConnector {
    type Response = TokioIo<TlsStream<Proxied>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move {
            let connect = tokio::time::timeout(CONNECT_TIMEOUT, target.connect());
            connect.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting timed out"))?
        })
    }
}

impl ConnectorTarget {
    async fn connect(&self) -> io::Result<TokioIo<TlsStream<Proxied>>> {
        let config = (self.tls)().ok_or_else(|| io::Error::other("no TLS credentials yet"))?;
        let io = self.proxy.connect(&self.address.authority()).await?;
        let stream = TlsConnector::from(config).connect(self.server_name.clone(), io).await?;
        Ok(TokioIo::new(stream))
    }
}
