//! The environment's proxies, as other programs read them: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or the same in lower
//! case, which come second.

use std::io;
use std::sync::Arc;

use rustls::RootCertStore;
use tidegate_core::contract::environment::PROXY_CA_BUNDLE;
use tidegate_core::forward_proxy::NoProxy;
use tokio::net::TcpStream;
use tokio_util::either::Either;

use super::{HttpProxy, InvalidProxyUrl, Proxied, roots_of_pem};
use crate::tcp::keep_alive;

/// Which proxy leads to which server outside the cluster.
///
/// Servers of the cluster are reached directly, whatever the environment says: a host without a dot, and one that ends in
/// `.svc` or `.cluster.local` or has `.svc.` in it.
#[derive(Clone, Debug)]
pub struct ProxyEnvironment {
    http: Option<HttpProxy>,
    https: Option<HttpProxy>,
    direct: NoProxy,
    /// For proxies with https.
    roots: Arc<RootCertStore>,
}

/// A variable whose value cannot be used. The value may hold a password, so it is not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct ProxyVariableError {
    /// The variable.
    pub variable: String,
    /// What is wrong with it.
    pub problem: ProxyVariableProblem,
}

/// What is wrong with a variable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyVariableProblem {
    /// It is not the URL of a proxy.
    #[error(transparent)]
    Url(#[from] InvalidProxyUrl),
    /// It has no roots in PEM.
    #[error("{0}")]
    Roots(String),
}

impl ProxyEnvironment {
    /// This process'.
    ///
    /// # Errors
    ///
    /// If a variable is not the URL of a proxy. `TIDEGATE_PROXY_CA_BUNDLE` holds the roots of proxies with https, as PEM.
    pub fn of_process() -> Result<Self, ProxyVariableError> {
        Self::of(|name| std::env::var(name).ok())
    }

    /// Of these variables. Entries of `NO_PROXY` that mean nothing are ignored, as Go and curl do.
    ///
    /// # Errors
    ///
    /// As [`Self::of_process`].
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyVariableError> {
        let either = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()].into_iter().find_map(|name| {
                let value = variable(&name).filter(|value| !value.is_empty())?;
                Some((name, value))
            })
        };
        let proxy = |name: &str| {
            let Some((variable, value)) = either(name) else { return Ok(None) };
            let parsed: Result<HttpProxy, _> = value.parse();
            parsed.map(Some).map_err(|problem| ProxyVariableError { variable, problem: problem.into() })
        };
        let direct = either("NO_PROXY").map(|(_, list)| no_proxy(&list)).unwrap_or_default();
        let roots = match variable(PROXY_CA_BUNDLE).filter(|pem| !pem.is_empty()) {
            Some(pem) => roots_of_pem(pem.as_bytes()).map_err(|error| ProxyVariableError {
                variable: PROXY_CA_BUNDLE.to_owned(),
                problem: ProxyVariableProblem::Roots(error),
            })?,
            None => RootCertStore::empty(),
        };
        Ok(Self { http: proxy("HTTP_PROXY")?, https: proxy("HTTPS_PROXY")?, direct, roots: Arc::new(roots) })
    }

    /// A connection to a server: a tunnel, if there is a proxy on the way. `host`: a name or an address without brackets.
    /// The caller has the deadline.
    ///
    /// # Errors
    ///
    /// If it cannot connect.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<Proxied> {
        let Some(proxy) = self.for_tunnel(host, port) else { return direct(host, port).await };
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        proxy.tunnel(&target, &self.roots).await.map_err(io::Error::other)
    }

    /// A connection for requests in plaintext HTTP/1.1, and the proxy at its other end if there is one: then they have the
    /// absolute form (RFC 9112 §3.2.2).
    ///
    /// # Errors
    ///
    /// If it cannot connect.
    pub async fn connect_http(&self, host: &str, port: u16) -> io::Result<(Proxied, Option<&HttpProxy>)> {
        match self.for_http(host, port) {
            Some(proxy) => {
                let io = proxy.connect(&self.roots).await.map_err(io::Error::other)?;
                Ok((io, Some(proxy)))
            }
            None => Ok((direct(host, port).await?, None)),
        }
    }

    /// The proxy for requests in plaintext HTTP/1.1 to this server; `None` if there is none, or if it is reached directly.
    fn for_http(&self, host: &str, port: u16) -> Option<&HttpProxy> {
        self.http.as_ref().filter(|_| !self.is_direct(host, port))
    }

    /// The proxy for everything else to this server, by `CONNECT`.
    fn for_tunnel(&self, host: &str, port: u16) -> Option<&HttpProxy> {
        self.https.as_ref().filter(|_| !self.is_direct(host, port))
    }

    fn is_direct(&self, host: &str, port: u16) -> bool {
        is_in_cluster(host) || self.direct.has_host(host, port)
    }
}

async fn direct(host: &str, port: u16) -> io::Result<Proxied> {
    let tcp = TcpStream::connect((host, port)).await?;
    keep_alive(&tcp)?;
    Ok(Either::Left(tcp))
}

/// Whether a name is one of the cluster's DNS.
fn is_in_cluster(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let is_name = host.parse::<std::net::IpAddr>().is_err();
    let is_service = host.ends_with(".svc") || host.contains(".svc.") || host.ends_with(".cluster.local");
    is_name && (is_service || !host.contains('.'))
}

/// A list as in `NO_PROXY`, separated by commas or whitespace, without the entries that cannot be understood.
pub fn no_proxy(list: &str) -> NoProxy {
    let entries = list.split(|c: char| c == ',' || c.is_whitespace());
    let entries = entries.map(|entry| entry.trim_end_matches('.')).filter(|entry| !entry.is_empty());
    NoProxy::parse(entries.filter(|entry| NoProxy::parse([*entry]).is_ok())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<ProxyEnvironment, ProxyVariableError> {
        ProxyEnvironment::of(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_kind_of_connection_has_its_variable_and_capitals_come_first() {
        let all = [
            ("HTTP_PROXY", "http://one:3128"),
            ("http_proxy", "http://other:1"),
            ("https_proxy", "two.example:3129"),
            ("NO_PROXY", "direct.example, 10.0.0.0/8,:, *.below.example"),
        ];
        let proxies = environment(&all).unwrap();
        let shown = |proxy: Option<&HttpProxy>| proxy.map(ToString::to_string);
        assert_eq!(shown(proxies.for_http("otel.example", 4318)).as_deref(), Some("http://one:3128"));
        assert_eq!(
            shown(proxies.for_tunnel("otel.example", 4317)).as_deref(),
            Some("http://two.example:3129")
        );
        for direct in ["direct.example", "10.1.2.3", "a.below.example", "localhost", "127.0.0.1"] {
            assert_eq!(shown(proxies.for_http(direct, 80)), None, "{direct}");
            assert_eq!(shown(proxies.for_tunnel(direct, 80)), None, "{direct}");
        }
        assert!(environment(&[]).unwrap().for_tunnel("otel.example", 4317).is_none());
    }

    #[test]
    fn servers_of_the_cluster_are_reached_directly() {
        let proxies = environment(&[("HTTPS_PROXY", "http://proxy:3128")]).unwrap();
        for host in
            ["collector", "otel.tracing.svc", "otel.tracing.svc.cluster.local.", "otel.tracing.svc.corp"]
        {
            assert!(proxies.for_tunnel(host, 4317).is_none(), "{host}");
        }
        for host in ["otel.example", "svc.example", "192.0.2.1", "fd00::1"] {
            assert!(proxies.for_tunnel(host, 4317).is_some(), "{host}");
        }
    }

    #[test]
    fn hosts_are_excluded_by_name_suffix_address_range_and_port() {
        for (list, host, port, expected) in [
            ("*", "api.test", 443, true),
            ("api.test", "x.api.test", 443, true),
            ("api.test", "xapi.test", 443, false),
            (".api.test", "api.test", 443, false),
            ("*.test", "api.test", 443, true),
            ("API.test.", "api.TEST", 443, true),
            ("api.test:6443", "api.test", 443, false),
            ("a.test, 10.0.0.1", "10.0.0.1", 443, true),
            ("a.test\t10.0.0.1:6443", "10.0.0.1", 6443, true),
            ("10.96.0.0/12", "10.0.0.1", 443, false),
            ("http://what:ever/,fd00::/8", "fd00::1", 443, true),
            ("0.1", "10.0.0.1", 443, false),
            ("", "api.test", 443, false),
        ] {
            assert_eq!(no_proxy(list).has_host(host, port), expected, "{list:?} {host} {port}");
        }
    }

    #[test]
    fn an_invalid_variable_is_named_without_its_value() {
        let error = environment(&[("https_proxy", "socks5://user:secret@proxy:1080")]).unwrap_err();
        assert_eq!(error.to_string(), "https_proxy: the URL of a proxy begins with http:// or https://");
    }
}
