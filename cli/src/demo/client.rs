//! The demo's ingress controller: connects from its pod's address and presents the certificate from its Secret.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The files of a `kubernetes.io/tls` Secret, as an ingress controller mounts them.
#[derive(Clone, Debug)]
pub(crate) struct MountedSecret(pub(crate) PathBuf);

/// The result of a request.
#[derive(Debug)]
pub(crate) enum DemoAnswer {
    /// An HTTP answer.
    Http {
        /// Its status.
        status: StatusCode,
        /// Its body.
        body: Bytes,
    },
    /// The connection was reset, as the sidecar does if no policy admits it.
    Reset,
    /// The request failed in another way.
    None(String),
}

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestScheme {
    /// In plaintext.
    Http,
    /// Over TLS, with the client certificate from the Secret.
    Https,
}

/// An ingress controller that sends one request per connection.
pub(crate) struct IngressClient {
    /// Source address of its connections.
    pub(crate) source: SocketAddr,
    /// Its Secret.
    pub(crate) secret: MountedSecret,
    /// The name to verify in the backend's certificate, as `proxy_ssl_name` does.
    pub(crate) server_name: ServerName<'static>,
}

impl IngressClient {
    /// Sends `GET path` to the backend. `Err` is a failure of the client itself, such as a missing Secret.
    pub(crate) async fn get(
        &self,
        scheme: RequestScheme,
        backend: SocketAddr,
        path: &str,
    ) -> anyhow::Result<DemoAnswer> {
        let config = match scheme {
            RequestScheme::Http => None,
            RequestScheme::Https => Some(self.secret.client_config()?),
        };
        let exchange = self.exchange(config, backend, path);
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_reset(&error) => Ok(DemoAnswer::Reset),
            Ok(Err(error)) => Ok(DemoAnswer::None(format!("{error:#}"))),
            Err(_) => Err(anyhow!("no answer from {backend} within {TIMEOUT:?}")),
        }
    }

    /// One request on a new connection, through TLS if there is a configuration.
    async fn exchange(
        &self,
        config: Option<Arc<ClientConfig>>,
        backend: SocketAddr,
        path: &str,
    ) -> anyhow::Result<DemoAnswer> {
        let tcp = self.dial(backend).await?;
        match config {
            None => request(TokioIo::new(tcp), path).await,
            Some(config) => {
                let tls = TlsConnector::from(config).connect(self.server_name.clone(), tcp).await?;
                request(TokioIo::new(tls), path).await
            }
        }
    }

    /// Connects from the ingress controller's address, by which the sidecar decides about it.
    async fn dial(&self, backend: SocketAddr) -> anyhow::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(self.source).with_context(|| format!("binding to {}", self.source))?;
        Ok(socket.connect(backend).await?)
    }
}

impl MountedSecret {
    /// One of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Waits until the CA has written it.
    pub(crate) async fn wait(&self) -> anyhow::Result<()> {
        let written = async {
            while self.client_config().is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let patience = tokio::time::timeout(TIMEOUT, written).await;
        patience.with_context(|| format!("no client certificate in {} after {TIMEOUT:?}", self.0.display()))
    }

    /// The client's configuration, read from the files each time, as a controller does after a rotation.
    fn client_config(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.file("ca.crt"))? {
            roots.add(root)?;
        }
        let chain = certificates(&self.file("tls.crt"))?;
        let key_file = self.file("tls.key");
        let key = PrivateKeyDer::from_pem_file(&key_file).with_context(|| key_file.display().to_string())?;
        let config =
            ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

impl fmt::Display for DemoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { status, .. } => write!(f, "{status}"),
            Self::Reset => f.write_str("connection reset"),
            Self::None(why) => write!(f, "no answer: {why}"),
        }
    }
}

/// Sends the request over HTTP/1.1 and reads the whole answer.
async fn request<S>(stream: S, path: &str) -> anyhow::Result<DemoAnswer>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header("host", "httpbin.example").body(Empty::<Bytes>::new())?;
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        // The connection's error is more specific than the request's.
        Err(error) => match driver.await {
            Ok(Err(cause)) => return Err(cause.into()),
            _ => return Err(error.into()),
        },
    };
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    drop(sender);
    driver.abort();
    Ok(DemoAnswer::Http { status, body })
}

/// Whether RST ended the connection, before or while the request was written.
fn is_reset(error: &anyhow::Error) -> bool {
    let mut kinds = error.chain().filter_map(|cause| cause.downcast_ref().map(io::Error::kind));
    kinds.any(|kind| matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
}

/// The certificates in a PEM file; an error names the file.
fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let file = || path.display().to_string();
    let certificates = CertificateDer::pem_file_iter(path).with_context(file)?;
    certificates.collect::<Result<_, _>>().with_context(file)
}
