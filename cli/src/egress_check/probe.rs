//! One connection to a server: directly, or through a forward proxy by `CONNECT`.

use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tidegate_core::DnsName;
use tidegate_runtime::forward_proxy::{HttpProxy, ProxyTunnelError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::chain::{SeenChain, handshake};

/// A TLS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckedServer {
    /// Its name or address, as it is sent.
    pub(super) name: ServerName<'static>,
    pub(super) port: u16,
}

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub(super) enum ProbeRoute<'p> {
    Direct,
    /// The roots verify the proxy, if it speaks TLS.
    Through(&'p HttpProxy, &'p RootCertStore),
}

/// Why no certificate was seen.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeFailure {
    /// The name of the server or of the proxy has no address.
    #[error("{0} cannot be resolved on this machine: {1}")]
    Resolve(String, io::Error),
    /// A RST came back.
    #[error("{0} refuses the connection: no program listens there, or a firewall rejects it")]
    Refused(String),
    /// No answer came.
    #[error("{0} does not answer within {1:?}: a firewall drops the packets, or the server is down")]
    Timeout(String, Duration),
    /// The network has no way there.
    #[error("{0} cannot be reached: {1}")]
    Network(String, io::Error),
    /// The proxy did not open a tunnel.
    #[error("{0}")]
    ByProxy(ProxyTunnelError),
    /// The TLS handshake has failed before a certificate came.
    #[error("the TLS handshake fails: {0}")]
    Tls(String),
}

/// A connection of bytes.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}

/// Connects, and returns the certificates that the server shows.
pub(super) async fn probe(
    target: &CheckedServer,
    route: &ProbeRoute<'_>,
    roots: &RootCertStore,
    timeout: Duration,
) -> Result<SeenChain, ProbeFailure> {
    let what = match route {
        ProbeRoute::Direct => target.to_string(),
        ProbeRoute::Through(proxy, _) => format!("{target} through {proxy}"),
    };
    let seen = async {
        match route {
            ProbeRoute::Direct => handshake(connect(target).await?, target, roots).await,
            ProbeRoute::Through(proxy, proxy_roots) => {
                let tunnel = proxy.tunnel(&target.to_string(), proxy_roots).await;
                handshake(tunnel.map_err(ProbeFailure::by_proxy)?, target, roots).await
            }
        }
    };
    tokio::time::timeout(timeout, seen).await.unwrap_or(Err(ProbeFailure::Timeout(what, timeout)))
}

impl ProbeFailure {
    fn by_proxy(error: ProxyTunnelError) -> Self {
        match error {
            ProxyTunnelError::Connection { proxy, source }
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                Self::Refused(proxy.to_string())
            }
            error => Self::ByProxy(error),
        }
    }
}

/// Opens a TCP connection to one of the server's addresses.
async fn connect(server: &CheckedServer) -> Result<TcpStream, ProbeFailure> {
    let host = server.host();
    let addresses = tokio::net::lookup_host((host.as_str(), server.port)).await;
    let addresses = addresses.map_err(|error| ProbeFailure::Resolve(host.clone(), error))?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(io) => return Ok(io),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                last = Some(ProbeFailure::Refused(address.to_string()));
            }
            Err(error) => last = Some(ProbeFailure::Network(address.to_string(), error)),
        }
    }
    let nothing = || ProbeFailure::Resolve(host, io::Error::other("it has no address"));
    Err(last.unwrap_or_else(nothing))
}

impl CheckedServer {
    /// The name or address without brackets.
    pub(super) fn host(&self) -> String {
        self.name.to_str().into_owned()
    }

    /// A server with a port of its own, or this one.
    fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            _ if text.parse::<IpAddr>().is_ok() => (text, default_port),
            Some((host, port)) if !text.ends_with(']') => (host, port.parse().ok()?),
            _ => (text, default_port),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name = match bare.unwrap_or(host).parse::<IpAddr>() {
            Ok(address) => ServerName::IpAddress(address.into()),
            Err(_) if bare.is_some() => return None,
            Err(_) => ServerName::try_from(DnsName::parse(host).ok()?.as_str().to_owned()).ok()?,
        };
        (port != 0).then_some(Self { name, port })
    }
}

impl FromStr for CheckedServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, 443).ok_or_else(|| format!("{text:?} is not of the form HOST or HOST:PORT"))
    }
}

impl std::fmt::Display for CheckedServer {
    /// `host:port`; an IPv6 address in brackets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.host();
        if host.contains(':') {
            write!(f, "[{host}]:{}", self.port)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}
