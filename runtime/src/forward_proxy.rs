//! HTTP forward proxies between a program and its servers: the URL of one, the environment's, and tunnels through them.

mod environment;
mod tunnel;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use http::Uri;
use percent_encoding::percent_decode_str;
use rustls_pki_types::ServerName;
use tidegate_core::contract::flags;
use tidegate_core::forward_proxy::ProxyCredentials;

pub use self::environment::{ProxyEnvironment, ProxyVariableError, ProxyVariableProblem, no_proxy};
pub use self::tunnel::{Proxied, ProxyTunnelError, roots_of_pem};

/// An HTTP forward proxy: `http://` or, for TLS with the proxy itself, `https://`, then `[user:password@]host[:port]`. As in
/// curl and Go, a text without a scheme has the first one.
/// The default port is that of the scheme. `Display` and `Debug` show no credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    /// The name that its certificate must have, for TLS with the proxy itself.
    certificate_name: Option<Box<ServerName<'static>>>,
    host: ServerName<'static>,
    port: u16,
    credentials: Option<ProxyCredentials>,
}

/// A text is not the URL of a forward proxy. It may hold a password, so it is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxyUrl {
    /// Another scheme.
    #[error("the URL of a proxy begins with http:// or https://")]
    Scheme,
    /// A path, a query or a fragment.
    #[error("the URL of a proxy ends with its host or port, without a path, query or fragment")]
    NotBare,
    /// The host or the port.
    #[error("the URL of a proxy has the form http://[user:password@]host:port")]
    Authority,
    /// User or password.
    #[error(
        "user and password of a proxy are at most 1024 bytes of text, percent-encoded, without control characters"
    )]
    Credentials,
}

/// How a program outside the control plane's network reaches it.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlPlaneProxyOptions {
    /// Forward proxy for the connections to the CA and the controller: http://[user:password@]host:port, or https for
    /// TLS with the proxy. Each connection is a CONNECT tunnel with mutual TLS inside.
    #[arg(
        long = flags::CONTROL_PLANE_PROXY,
        env = "TIDEGATE_CONTROL_PLANE_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub control_plane_proxy: Option<HttpProxy>,

    /// PEM file with the roots that verify a proxy with https; read for each connection.
    #[arg(
        long = flags::CONTROL_PLANE_PROXY_CA,
        env = "TIDEGATE_CONTROL_PLANE_PROXY_CA",
        value_name = "FILE",
        requires = "control_plane_proxy"
    )]
    pub control_plane_proxy_ca: Option<PathBuf>,
}

impl HttpProxy {
    /// A proxy at an address. `certificate_name`: the name that its certificate must have; `None` for plaintext.
    pub fn at(
        address: SocketAddr,
        certificate_name: Option<ServerName<'static>>,
        credentials: Option<ProxyCredentials>,
    ) -> Self {
        let certificate_name = certificate_name.map(Box::new);
        Self { certificate_name, host: address.ip().into(), port: address.port(), credentials }
    }

    /// Whether TLS is spoken with the proxy itself.
    pub fn is_tls(&self) -> bool {
        self.certificate_name.is_some()
    }

    /// Its credentials.
    pub fn credentials(&self) -> Option<&ProxyCredentials> {
        self.credentials.as_ref()
    }
}

impl FromStr for HttpProxy {
    type Err = InvalidProxyUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(InvalidProxyUrl::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user_info, authority) = match rest.rsplit_once('@') {
            Some((user_info, authority)) => (Some(user_info), authority),
            None => (None, rest),
        };
        if authority.contains(['/', '?', '#']) {
            return Err(InvalidProxyUrl::NotBare);
        }
        let (host, port) = host_and_port(authority).ok_or(InvalidProxyUrl::Authority)?;
        let port = port.unwrap_or(if is_tls { 443 } else { 80 });
        let credentials = user_info.map(credentials).transpose()?;
        Ok(Self { certificate_name: is_tls.then(|| Box::new(host.clone())), host, port, credentials })
    }
}

/// Of an authority without user; the port is not 0.
fn host_and_port(authority: &str) -> Option<(ServerName<'static>, Option<u16>)> {
    let uri: Uri = authority.parse().ok()?;
    let parsed = uri.authority()?;
    let host = parsed.host().trim_start_matches('[').trim_end_matches(']');
    let port = match parsed.as_str().rsplit_once(':') {
        Some((_, port)) if !port.contains(']') => Some(port.parse().ok().filter(|port| *port != 0)?),
        _ => None,
    };
    Some((ServerName::try_from(host.to_owned()).ok()?, port))
}

/// User and password of a URL (RFC 3986 §3.2.1): each percent-encoded.
fn credentials(user_info: &str) -> Result<ProxyCredentials, InvalidProxyUrl> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let decode = |text| percent_decode_str(text).decode_utf8().map_err(|_| InvalidProxyUrl::Credentials);
    ProxyCredentials::basic(&decode(user)?, &decode(password)?).map_err(|_| InvalidProxyUrl::Credentials)
}

impl fmt::Display for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls() { "https" } else { "http" };
        match &self.host {
            ServerName::IpAddress(rustls_pki_types::IpAddr::V6(address)) => {
                write!(f, "{scheme}://[{}]:{}", std::net::Ipv6Addr::from(*address), self.port)
            }
            host => write!(f, "{scheme}://{}:{}", host.to_str(), self.port),
        }
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
pub(crate) mod tests;
