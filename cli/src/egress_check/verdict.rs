//! What both connections together mean.

use serde::Serialize;
use tidegate_runtime::forward_proxy::HttpProxy;

use super::chain::{ClientCertificateWish, SeenChain};
use super::probe::{CheckedServer, ProbeFailure};
use crate::output::printable;

/// The answer of `tidegate check egress`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EgressCheckReport {
    server: String,
    verdict: EgressVerdict,
    /// What the verdict means here.
    reason: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    direct: ProbedRoute,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<ProbedRoute>,
}

/// What was seen on one way to the server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProbedRoute {
    /// The proxy's URL, without credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<SeenChain>,
    /// Why the chain could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The result, whose spelling never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum EgressVerdict {
    /// Apps can speak to the server.
    Reachable,
    /// Apps can speak to the server, but only through the proxy.
    ReachableByProxyOnly,
    /// The proxy shows a certificate of its own.
    Intercepted,
    /// Another certificate came through the proxy, of the same issuer.
    OtherCertificate,
    /// The certificate is not trusted on this machine.
    Untrusted,
    /// The server refuses clients without a certificate.
    ClientCertificateRequired,
    /// Reachable directly, not through the proxy.
    RefusedByProxy,
    /// Not reachable.
    Unreachable,
}

impl EgressVerdict {
    /// As JSON spells it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Reachable => "reachable",
            Self::ReachableByProxyOnly => "reachable-by-proxy-only",
            Self::Intercepted => "intercepted",
            Self::OtherCertificate => "other-certificate",
            Self::Untrusted => "untrusted",
            Self::ClientCertificateRequired => "client-certificate-required",
            Self::RefusedByProxy => "refused-by-proxy",
            Self::Unreachable => "unreachable",
        }
    }

    fn hint(self) -> Option<&'static str> {
        match self {
            Self::Reachable | Self::ReachableByProxyOnly | Self::OtherCertificate => None,
            Self::Intercepted => Some(
                "apps must trust the proxy's root, and those that pin the server's certificate fail; or have the proxy \
                 tunnel this host (ssl-bump: splice)",
            ),
            Self::Untrusted => {
                Some("give the app the root that the server's certificate has, and this command by --ca-file")
            }
            Self::ClientCertificateRequired => {
                Some("give the app a client certificate that the server accepts")
            }
            Self::RefusedByProxy => {
                Some("have the proxy allow CONNECT to this host and port, or give its credentials")
            }
            Self::Unreachable => {
                Some("check the name, the firewall, and whether this network wants a proxy (--proxy)")
            }
        }
    }
}

impl EgressCheckReport {
    /// Compares what was seen directly and through the proxy.
    pub(super) fn new(
        server: &CheckedServer,
        direct: Result<SeenChain, ProbeFailure>,
        proxy: Option<(&HttpProxy, Result<SeenChain, ProbeFailure>)>,
    ) -> Self {
        let (verdict, reason) = judge(&direct, proxy.as_ref().map(|(_, seen)| seen));
        Self {
            server: server.to_string(),
            verdict,
            reason,
            hint: verdict.hint(),
            direct: ProbedRoute::new(None, direct),
            proxy: proxy.map(|(url, seen)| ProbedRoute::new(Some(url.to_string()), seen)),
        }
    }

    /// Whether an app that trusts this machine's roots can speak to the server itself.
    pub(super) fn is_good(&self) -> bool {
        matches!(
            self.verdict,
            EgressVerdict::Reachable | EgressVerdict::ReachableByProxyOnly | EgressVerdict::OtherCertificate
        )
    }

    /// The lines for people.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{:<10} {}\n{:<10} {}\n", "server", self.server, "direct", self.direct.text());
        if let Some(proxy) = &self.proxy {
            let url = proxy.url.as_deref().unwrap_or_default();
            text += &format!("{:<10} {url}: {}\n", "proxy", proxy.text());
        }
        text += &format!("{:<10} {}: {}\n", "verdict", self.verdict.as_str(), self.reason);
        text += &self.hint.map(|hint| format!("{:<10} {hint}\n", "hint")).unwrap_or_default();
        text
    }
}

impl ProbedRoute {
    fn new(url: Option<String>, seen: Result<SeenChain, ProbeFailure>) -> Self {
        match seen {
            Ok(chain) => Self { url, chain: Some(chain), error: None },
            Err(error) => Self { url, chain: None, error: Some(error.to_string()) },
        }
    }

    fn text(&self) -> String {
        let Some(chain) = &self.chain else {
            return self.error.as_deref().map(printable).unwrap_or_default();
        };
        let trust = chain
            .untrusted
            .as_ref()
            .map_or_else(|| "trusted".to_owned(), |reason| format!("not trusted: {}", printable(reason)));
        let fingerprint: String =
            chain.fingerprints.first().into_iter().flat_map(|text| text.chars()).take(16).collect();
        let wish = match chain.client_certificate {
            ClientCertificateWish::No => "",
            ClientCertificateWish::Optional => "; wants a client certificate, goes on without",
            ClientCertificateWish::Required => "; requires a client certificate",
        };
        format!(
            "certificate {fingerprint} for {} by {}, until {}; {trust}{wish}",
            chain.names.join(", "),
            chain.issuer,
            chain.not_after
        )
    }
}

/// The verdict, and why.
fn judge(
    direct: &Result<SeenChain, ProbeFailure>,
    proxy: Option<&Result<SeenChain, ProbeFailure>>,
) -> (EgressVerdict, String) {
    match (direct, proxy) {
        (Err(error), None) => (EgressVerdict::Unreachable, error.to_string()),
        (Ok(chain), None) => alone(chain, EgressVerdict::Reachable, "directly"),
        (Ok(_), Some(Err(error))) => (EgressVerdict::RefusedByProxy, error.to_string()),
        (Err(_), Some(Err(error))) => {
            (EgressVerdict::Unreachable, format!("neither directly nor by the proxy: {error}"))
        }
        (Err(_), Some(Ok(chain))) => {
            alone(chain, EgressVerdict::ReachableByProxyOnly, "through the proxy only")
        }
        (Ok(direct), Some(Ok(through))) => compared(direct, through),
    }
}

/// What one chain means.
fn alone(chain: &SeenChain, good: EgressVerdict, how: &str) -> (EgressVerdict, String) {
    match (&chain.untrusted, chain.client_certificate) {
        (Some(reason), _) => {
            let from_proxy = if good == EgressVerdict::ReachableByProxyOnly {
                "; without a direct connection to compare with, it may be the proxy's own"
            } else {
                ""
            };
            (EgressVerdict::Untrusted, format!("{reason}; issued by {}{from_proxy}", chain.issuer))
        }
        (None, ClientCertificateWish::Required) => (
            EgressVerdict::ClientCertificateRequired,
            "the server refuses clients without a certificate".to_owned(),
        ),
        (None, _) => (good, format!("{how}, with a certificate that this machine trusts")),
    }
}

/// What both chains mean.
fn compared(direct: &SeenChain, through: &SeenChain) -> (EgressVerdict, String) {
    if direct.fingerprints.first() == through.fingerprints.first() {
        let (verdict, reason) =
            alone(through, EgressVerdict::Reachable, "directly and through the proxy, the same certificate");
        return (verdict, reason);
    }
    if direct.issuer == through.issuer && direct.untrusted.is_some() == through.untrusted.is_some() {
        let (verdict, reason) =
            alone(through, EgressVerdict::OtherCertificate, "another certificate of the same issuer");
        return (verdict, reason);
    }
    let trust = if through.untrusted.is_some() { "does not trust" } else { "trusts" };
    let reason = format!(
        "the proxy shows a certificate of its own, by {}, which this machine {trust}; the server's is by {}",
        through.issuer, direct.issuer
    );
    (EgressVerdict::Intercepted, reason)
}
