//! Tunnels through a forward proxy (RFC 9110 §9.3.6).

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tidegate_core::forward_proxy::connect::{
    ConnectAnswer, ConnectDecoder, InvalidConnectTarget, MalformedAnswer, ProxyRefusal, connect_request,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::{ControlPlaneProxyOptions, HttpProxy};
use crate::tcp::keep_alive;
use crate::tls;

/// A connection to a proxy, or through it.
pub type Proxied = Either<TcpStream, TlsStream<TcpStream>>;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ProxyTunnelError {
    /// No connection to the proxy, or none that was answered.
    #[error("forward proxy {proxy}: {source}")]
    Connection {
        /// The proxy.
        proxy: HttpProxy,
        /// The cause.
        source: io::Error,
    },
    /// It opens no tunnel.
    #[error("forward proxy {proxy} answers CONNECT {target} with {refusal}")]
    Refused {
        /// The proxy.
        proxy: HttpProxy,
        /// `host:port`.
        target: String,
        /// In its own words.
        refusal: ProxyRefusal,
    },
    /// Its answer cannot be read.
    #[error("forward proxy {proxy}: {source}")]
    Malformed {
        /// The proxy.
        proxy: HttpProxy,
        /// What is wrong.
        source: MalformedAnswer,
    },
    /// The roots for TLS with the proxy.
    #[error("no roots to verify forward proxy {0}: {1}")]
    Roots(HttpProxy, String),
    /// The target has no CONNECT request.
    #[error(transparent)]
    Target(#[from] InvalidConnectTarget),
}

impl ControlPlaneProxyOptions {
    /// A TCP connection to `target`, `host:port`, through the proxy if there is one. The caller has the deadline.
    ///
    /// # Errors
    ///
    /// If it cannot connect; the text names the proxy and says what it answered.
    pub(crate) async fn connect(&self, target: &str) -> io::Result<Proxied> {
        let Some(proxy) = &self.control_plane_proxy else {
            let tcp = TcpStream::connect(target).await?;
            keep_alive(&tcp)?;
            return Ok(Either::Left(tcp));
        };
        let roots = match &self.control_plane_proxy_ca {
            Some(file) => {
                let read = std::fs::read(file).map_err(|error| error.to_string());
                let roots = read.and_then(|pem| roots_of_pem(&pem));
                let invalid =
                    |error| ProxyTunnelError::Roots(proxy.clone(), format!("{}: {error}", file.display()));
                roots.map_err(|error| io::Error::other(invalid(error)))?
            }
            None => RootCertStore::empty(),
        };
        proxy.tunnel(target, &roots).await.map_err(io::Error::other)
    }
}

impl HttpProxy {
    /// A tunnel to `target`, `host:port`. `roots` verify a proxy with https. The caller has the deadline.
    ///
    /// # Errors
    ///
    /// If the proxy cannot be reached or opens no tunnel.
    pub async fn tunnel(&self, target: &str, roots: &RootCertStore) -> Result<Proxied, ProxyTunnelError> {
        let request = connect_request(target, self.credentials.as_ref())?;
        let mut io = self.connect(roots).await?;
        let answer = self.open(&mut io, &request).await?;
        match answer {
            ConnectAnswer::Tunnel => Ok(io),
            ConnectAnswer::Refused(refusal) => {
                Err(ProxyTunnelError::Refused { proxy: self.clone(), target: target.to_owned(), refusal })
            }
        }
    }

    /// A connection to the proxy itself.
    ///
    /// # Errors
    ///
    /// If the proxy cannot be reached.
    pub async fn connect(&self, roots: &RootCertStore) -> Result<Proxied, ProxyTunnelError> {
        let failed = |source| ProxyTunnelError::Connection { proxy: self.clone(), source };
        let name = self.certificate_name.clone();
        let tls = name.map(|name| self.tls(roots).map(|config| (name, config))).transpose()?;
        let tcp = TcpStream::connect((&*self.host.to_str(), self.port)).await.map_err(failed)?;
        keep_alive(&tcp).map_err(failed)?;
        Ok(match tls {
            Some((name, config)) => {
                Either::Right(TlsConnector::from(config).connect(*name, tcp).await.map_err(failed)?)
            }
            None => Either::Left(tcp),
        })
    }

    /// The answer to `CONNECT target` over a connection to the proxy. The caller has the deadline.
    ///
    /// # Errors
    ///
    /// If the connection ends before the answer, or the answer is not HTTP/1.
    pub async fn request_tunnel(
        &self,
        io: &mut Proxied,
        target: &str,
    ) -> Result<ConnectAnswer, ProxyTunnelError> {
        self.open(io, &connect_request(target, self.credentials.as_ref())?).await
    }

    /// Sends the request and reads the head of the answer, byte by byte: what follows is the server's.
    async fn open<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: &mut S,
        request: &[u8],
    ) -> Result<ConnectAnswer, ProxyTunnelError> {
        let failed = |source| ProxyTunnelError::Connection { proxy: self.clone(), source };
        io.write_all(request).await.map_err(failed)?;
        io.flush().await.map_err(failed)?;
        let mut decoder = ConnectDecoder::default();
        loop {
            let byte = io.read_u8().await.map_err(failed)?;
            let fed = decoder.feed(&[byte]);
            let fed = fed.map_err(|source| ProxyTunnelError::Malformed { proxy: self.clone(), source })?;
            if let Some(answer) = fed.answer {
                return Ok(answer);
            }
        }
    }

    /// The client's TLS with the proxy.
    fn tls(&self, roots: &RootCertStore) -> Result<Arc<ClientConfig>, ProxyTunnelError> {
        let invalid = |problem: String| ProxyTunnelError::Roots(self.clone(), problem);
        if roots.is_empty() {
            return Err(invalid("a proxy with https needs a file of roots".to_owned()));
        }
        let builder =
            ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| invalid(error.to_string()))?;
        Ok(Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth()))
    }
}

/// The roots in a PEM text.
///
/// # Errors
///
/// If it cannot be read, or there are none.
pub fn roots_of_pem(pem: &[u8]) -> Result<RootCertStore, String> {
    let certificates = tls::load_pem_certificates(pem).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err("there is no certificate".to_owned()),
        _ => Ok(roots),
    }
}
