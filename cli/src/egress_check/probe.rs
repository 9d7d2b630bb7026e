//! One connection to a server: directly, or through a forward proxy by `CONNECT`.

use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tidegate_core::DnsName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::chain::{SeenChain, handshake};
use crate::output::printable;

/// Maximum bytes of the head of a proxy's answer.
const MOST_HEAD: u64 = 64 * 1024;

/// A TLS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckedServer {
    /// Its name or address, as it is sent.
    pub(super) name: ServerName<'static>,
    pub(super) port: u16,
}

/// A forward proxy: `http://` or `https://`, with credentials or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForwardProxyUrl {
    is_tls: bool,
    server: CheckedServer,
    /// The value of `Proxy-Authorization`.
    credentials: Option<String>,
}

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub(super) enum ProbeRoute<'p> {
    Direct,
    Through(&'p ForwardProxyUrl),
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
    /// The proxy has answered something else than 2xx.
    #[error("the proxy answers {status}{detail}")]
    ByProxy { status: u16, detail: String },
    /// What the proxy has answered is not HTTP.
    #[error("the proxy does not answer in HTTP: {0}")]
    NotHttp(String),
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
        ProbeRoute::Through(proxy) => format!("{target} through {proxy}"),
    };
    let seen = async {
        match route {
            ProbeRoute::Direct => handshake(connect(target).await?, target, roots).await,
            ProbeRoute::Through(proxy) if proxy.is_tls => {
                let io = proxy.handshake(connect(&proxy.server).await?, roots).await?;
                handshake(proxy.tunnel(io, target).await?, target, roots).await
            }
            ProbeRoute::Through(proxy) => {
                let io = connect(&proxy.server).await?;
                handshake(proxy.tunnel(io, target).await?, target, roots).await
            }
        }
    };
    tokio::time::timeout(timeout, seen).await.unwrap_or(Err(ProbeFailure::Timeout(what, timeout)))
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

impl ForwardProxyUrl {
    /// TLS with the proxy itself, which must have a certificate of a trusted root.
    async fn handshake(
        &self,
        io: TcpStream,
        roots: &RootCertStore,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ProbeFailure> {
        let tls = |error: String| ProbeFailure::Tls(format!("with the proxy: {error}"));
        let config = ClientConfig::builder_with_provider(tidegate_runtime::tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(error.to_string()))?
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let connected = TlsConnector::from(Arc::new(config)).connect(self.server.name.clone(), io).await;
        connected.map_err(|error| tls(error.to_string()))
    }

    /// A tunnel to the target (RFC 9110 §9.3.6).
    async fn tunnel<T: ByteStream>(
        &self,
        io: T,
        target: &CheckedServer,
    ) -> Result<BufReader<T>, ProbeFailure> {
        let mut io = BufReader::new(io);
        let credentials = self.credentials.iter().map(|value| format!("proxy-authorization: {value}\r\n"));
        let credentials: String = credentials.collect();
        let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{credentials}\r\n");
        let lost = |error: io::Error| ProbeFailure::Network(self.to_string(), error);
        io.write_all(request.as_bytes()).await.map_err(lost)?;
        io.flush().await.map_err(lost)?;
        loop {
            let head = read_head(&mut io).await.map_err(lost)?;
            match status(&head) {
                Some(100..=199) => {}
                Some(200..=299) => return Ok(io),
                Some(status) => return Err(ProbeFailure::ByProxy { status, detail: detail(&head) }),
                None => {
                    let first = head.lines().next().unwrap_or_default();
                    return Err(ProbeFailure::NotHttp(printable(first)));
                }
            }
        }
    }
}

/// The head of an answer, line by line, so that nothing behind it is lost.
async fn read_head<T: ByteStream>(io: &mut BufReader<T>) -> io::Result<String> {
    let mut head = Vec::new();
    let mut limited = io.take(MOST_HEAD);
    loop {
        let before = head.len();
        if limited.read_until(b'\n', &mut head).await? == 0 {
            return if head.is_empty() {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(String::from_utf8_lossy(&head).into_owned())
            };
        }
        let line = head.get(before..).unwrap_or_default();
        if matches!(line, b"\r\n" | b"\n") || !head.starts_with(b"HTTP/") {
            return Ok(String::from_utf8_lossy(&head).into_owned());
        }
    }
}

/// The status in a head of HTTP/1.
fn status(head: &str) -> Option<u16> {
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok().filter(|status| (100..=599).contains(status))
}

/// The proxy's own words: Squid's error, or how to authenticate.
fn detail(head: &str) -> String {
    let field = |wanted: &str| {
        let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| printable(value.trim()))
    };
    match (field("x-squid-error"), field("proxy-authenticate")) {
        (Some(error), _) => format!(" ({error})"),
        (None, Some(scheme)) => format!(" (it wants credentials: {scheme})"),
        (None, None) => String::new(),
    }
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

impl FromStr for ForwardProxyUrl {
    type Err = String;

    /// Errors do not repeat the text, which may have a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected http://[USER:PASSWORD@]HOST:PORT or https://…".to_owned();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(expected()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, server) = match rest.rsplit_once('@') {
            Some((user, server)) => (Some(user), server),
            None => (None, rest),
        };
        let server = CheckedServer::parse(server, if is_tls { 443 } else { 80 }).ok_or_else(expected)?;
        let credentials = user.map(|user| format!("Basic {}", STANDARD.encode(percent_decoded(user))));
        Ok(Self { is_tls, server, credentials })
    }
}

impl std::fmt::Display for ForwardProxyUrl {
    /// Without the credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.is_tls { "https" } else { "http" }, self.server)
    }
}

/// Bytes of a text with `%XX`; what is not of that form stays.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = more.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    bytes
}
