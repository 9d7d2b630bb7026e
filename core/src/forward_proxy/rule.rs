//! What an EgressProxy means to one workload.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{NoProxy, ProxyCredentials};
use crate::dns_name::DnsPattern;
use crate::object_ref::ObjectRef;
use crate::tls_origination::TlsOrigination;

/// Which connections that leave the mesh go through forward proxies, and which proxies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressProxyRule {
    /// Names of targets. Empty: every target, also one without a name.
    pub hosts: Vec<DnsPattern>,
    /// Ports of targets.
    pub ports: Vec<u16>,
    /// Targets that are reached directly.
    pub no_proxy: NoProxy,
    /// Addresses of proxies. The first is used while it can be reached, then the others. Empty: connections are refused.
    pub proxies: Vec<SocketAddr>,
    /// Other proxies for requests of plaintext HTTP/1; empty: the same.
    pub http_proxies: Vec<SocketAddr>,
    /// How to use the proxies.
    pub settings: Arc<ProxySettings>,
}

/// How to use the proxies of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxySettings {
    /// The object.
    pub origin: ObjectRef,
    /// What `Proxy-Authorization` says; `None`: nothing.
    pub credentials: Option<ProxyCredentials>,
    /// Identifies the state of the Secret that they come from.
    pub credentials_version: Arc<str>,
    /// TLS to the proxy itself, before its requests; `None`: plaintext.
    pub tls: Option<TlsOrigination>,
    /// The most time for a connection to the proxy, and for its TLS handshake.
    pub connect_timeout: Duration,
    /// The most time for the answer to `CONNECT`.
    pub response_timeout: Duration,
    /// What happens to the fields of requests that name clients and proxies before.
    pub forwarded_headers: ForwardedHeaders,
}

/// What happens to `X-Forwarded-*`, `X-Real-IP`, `Forwarded` and `Via` of plaintext HTTP/1 requests. Kong's `x_headers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ForwardedHeaders {
    /// The address of the app's end of the connection is appended to `X-Forwarded-For`.
    Append,
    /// They are passed on unchanged.
    #[default]
    Transparent,
    /// They are removed.
    Delete,
}

/// Where a connection leads, as far as is known.
#[derive(Clone, Copy, Debug)]
pub struct ProxyTarget<'t> {
    /// A name or an address without brackets; `None`: the app has not named it.
    pub host: Option<&'t str>,
    /// The address that the app dialled.
    pub dialled: SocketAddr,
}

impl EgressProxyRule {
    /// Whether connections to an address may be for the rule, before their host is known.
    /// An app that knows a proxy reaches it directly.
    pub fn may_apply(&self, dialled: SocketAddr) -> bool {
        self.ports.contains(&dialled.port())
            && !self.no_proxy.has_address(dialled.ip(), dialled.port())
            && !is_link_local(dialled.ip())
            && !self.proxies.contains(&dialled)
            && !self.http_proxies.contains(&dialled)
    }

    /// Whether a connection goes through the proxies.
    pub fn applies(&self, target: ProxyTarget<'_>) -> bool {
        let ProxyTarget { host, dialled } = target;
        let is_of_host = match host {
            None => self.hosts.is_empty(),
            Some(host) => {
                let is_listed =
                    self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.matches(host));
                is_listed && !self.no_proxy.has_host(host, dialled.port()) && !is_of_cluster(host)
            }
        };
        is_of_host && self.may_apply(dialled)
    }
}

/// Such an address belongs to the node's own link, as that of a cloud's metadata server (169.254.169.254).
fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Names that only the cluster's DNS has.
fn is_of_cluster(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let ends_with = |suffix: &str| {
        let tail = host.len().checked_sub(suffix.len()).and_then(|start| host.get(start..));
        tail.is_some_and(|tail| tail.eq_ignore_ascii_case(suffix))
    };
    ends_with(".svc") || ends_with(".cluster.local")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(hosts: &[&str], no_proxy: &[&str]) -> EgressProxyRule {
        EgressProxyRule {
            hosts: hosts.iter().map(|host| DnsPattern::parse(host).unwrap()).collect(),
            ports: vec![80, 443],
            no_proxy: NoProxy::parse(no_proxy.iter().copied()).unwrap(),
            proxies: vec!["10.9.9.9:3128".parse().unwrap()],
            http_proxies: Vec::new(),
            settings: Arc::new(ProxySettings {
                origin: ObjectRef::new("EgressProxy", "shop", "squid"),
                credentials: ProxyCredentials::basic("mesh", "s3cret").ok(),
                credentials_version: "7".into(),
                tls: None,
                connect_timeout: Duration::from_secs(5),
                response_timeout: Duration::from_secs(15),
                forwarded_headers: ForwardedHeaders::Transparent,
            }),
        }
    }

    fn applies(rule: &EgressProxyRule, host: Option<&str>, dialled: &str) -> bool {
        rule.applies(ProxyTarget { host, dialled: dialled.parse().unwrap() })
    }

    #[test]
    fn hosts_and_ports_select_and_no_proxy_excepts() {
        let rule = rule(&["*.example", "api.test"], &["10.0.0.0/8", "intern.example"]);
        for (host, dialled, expected) in [
            (Some("a.example"), "192.0.2.1:443", true),
            (Some("API.test"), "192.0.2.1:80", true),
            (Some("a.example"), "192.0.2.1:8443", false),
            (Some("other.test"), "192.0.2.1:443", false),
            (None, "192.0.2.1:443", false),
            (Some("a.example"), "10.1.2.3:443", false),
            (Some("x.intern.example"), "192.0.2.1:443", false),
        ] {
            assert_eq!(applies(&rule, host, dialled), expected, "{host:?} {dialled}");
        }
    }

    #[test]
    fn without_hosts_every_target_goes_through_the_proxy_but_not_names_of_the_cluster() {
        let rule = rule(&[], &[]);
        assert!(applies(&rule, None, "192.0.2.1:443"));
        assert!(applies(&rule, Some("192.0.2.1"), "192.0.2.1:80"));
        for host in ["cart.shop.svc", "Cart.shop.SVC.cluster.local.", "localhost", "127.0.0.1"] {
            assert!(!applies(&rule, Some(host), "192.0.2.1:80"), "{host}");
        }
        for dialled in ["127.0.0.1:80", "169.254.169.254:80", "[fe80::1]:80"] {
            assert!(!applies(&rule, None, dialled), "{dialled}");
        }
    }

    #[test]
    fn an_app_that_knows_a_proxy_reaches_it_directly() {
        let rule = EgressProxyRule { ports: vec![3128], ..rule(&[], &[]) };
        assert!(applies(&rule, None, "10.9.9.8:3128") && !applies(&rule, None, "10.9.9.9:3128"));
    }

    #[test]
    fn a_rule_as_json_shows_no_credentials() {
        let json = serde_json::to_string(&rule(&["*.example"], &["a.test"])).unwrap();
        assert!(json.contains("\"credentials\":\"<redacted>\"") && json.contains("\"noProxy\":[\"a.test\"]"));
        assert!(!json.contains("Basic"), "{json}");
    }
}
