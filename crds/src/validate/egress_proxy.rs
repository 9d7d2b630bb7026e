//! Checks of an EgressProxy.

use std::time::Duration;

use tidegate_core::DnsName;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::forward_proxy::NoProxy;
use tidegate_core::go_duration;

use super::Finding;
use super::findings::Findings;
use crate::egress_proxy::{EgressProxySpec, ProxyAddressSpec, ProxyTimeoutsSpec, ProxyTlsSpec};

/// The bounds of timeouts: an app waits as long.
const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// All errors and probable mistakes, in the order of the fields.
pub fn egress_proxy(spec: &EgressProxySpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    check_targets(spec, &mut findings);
    if spec.proxies.is_empty() {
        findings.add("proxies", || Finding::error("spec.proxies", "at least one proxy is required"));
    }
    check_proxies("spec.proxies", &spec.proxies, &mut findings);
    check_proxies("spec.httpProxies", &spec.http_proxies, &mut findings);
    for (i, entry) in spec.no_proxy.iter().enumerate() {
        if let Err(error) = NoProxy::parse([entry.as_str()]) {
            let path = format!("spec.noProxy[{i}]");
            findings.add("exception", || Finding::error(path, error.to_string()));
        }
    }
    if let Some(credentials) = &spec.credentials
        && let Err(error) = DnsName::parse(&credentials.secret_name)
    {
        findings.add("secret", || Finding::error("spec.credentials.secretName", error.to_string()));
    }
    if spec.credentials.is_some() && spec.tls.is_none() {
        findings.add("clear text", || {
            let message = "without spec.tls, the credentials are sent to the proxy in clear text";
            Finding::warning("spec.credentials", message)
        });
    }
    if let Some(tls) = &spec.tls {
        check_tls(tls, &mut findings);
    }
    if let Some(timeouts) = &spec.timeouts {
        check_timeouts(timeouts, &mut findings);
    }
    findings.finish()
}

fn check_targets(spec: &EgressProxySpec, findings: &mut Findings) {
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        if host != "*"
            && let Err(error) = DnsPattern::parse(host)
        {
            findings.add("host", || Finding::error(path, error.to_string()));
        }
    }
    if spec.hosts.len() > 1 && spec.hosts.iter().any(|host| host == "*") {
        findings
            .add("every host", || Finding::warning("spec.hosts", "'*' includes all other hosts of the list"));
    }
    if spec.ports.contains(&0) {
        findings.add("port", || Finding::error("spec.ports", "expected 1 to 65535, got 0"));
    }
}

fn check_proxies(list: &str, proxies: &[ProxyAddressSpec], findings: &mut Findings) {
    for (i, proxy) in proxies.iter().enumerate() {
        if proxy.socket().is_none() {
            findings.add("address", || {
                let message =
                    format!("expected an IP address, got '{}': names are not resolved", proxy.address);
                Finding::error(format!("{list}[{i}].address"), message)
            });
        }
        if proxy.port == 0 {
            findings
                .add("port", || Finding::error(format!("{list}[{i}].port"), "expected 1 to 65535, got 0"));
        }
        if proxies.iter().take(i).any(|other| other.socket() == proxy.socket()) {
            findings.add("twice", || {
                Finding::error(
                    format!("{list}[{i}]"),
                    "another proxy of the list has the same address and port",
                )
            });
        }
    }
}

fn check_tls(tls: &ProxyTlsSpec, findings: &mut Findings) {
    if let Err(error) = DnsName::parse(&tls.server_name) {
        findings.add("server", || Finding::error("spec.tls.serverName", error.to_string()));
    }
    if !tls.ca_bundle.contains("-----BEGIN CERTIFICATE-----") {
        findings.add("bundle", || {
            Finding::error("spec.tls.caBundle", "expected certificates in PEM (BEGIN CERTIFICATE)")
        });
    }
}

fn check_timeouts(timeouts: &ProxyTimeoutsSpec, findings: &mut Findings) {
    for (field, text) in [("connect", &timeouts.connect), ("response", &timeouts.response)] {
        let Some(text) = text else { continue };
        let path = format!("spec.timeouts.{field}");
        match go_duration::parse(text) {
            Err(error) => findings.add("timeout", || Finding::error(path, error.to_string())),
            Ok(time) if !TIMEOUTS.contains(&time) => {
                findings
                    .add("timeout", || Finding::error(path, format!("expected 100ms to 60s, got {text}")));
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(spec: &str) -> Vec<String> {
        let spec: EgressProxySpec = serde_saphyr::from_str(spec).unwrap();
        egress_proxy(&spec).iter().map(Finding::with_severity).collect()
    }

    #[test]
    fn an_object_with_everything_in_order_has_no_findings() {
        let spec = r#"
hosts: ["*.example", api.test]
ports: [80, 443, 8443]
proxies: [{address: 10.9.9.9, port: 3128}, {address: "fd00::9", port: 3128}]
httpProxies: [{address: 10.9.9.9, port: 8080}]
noProxy: [10.0.0.0/8, .corp.example, "intranet:8080"]
credentials: {secretName: squid}
tls: {serverName: proxy.corp.example, caBundle: "-----BEGIN CERTIFICATE-----"}
forwardedHeaders: Delete
timeouts: {connect: 2s, response: 1m}
"#;
        assert_eq!(findings(spec), [""; 0]);
    }

    #[test]
    fn each_mistake_is_reported_with_its_field_and_value() {
        let spec = r#"
hosts: ["a b", "*"]
ports: [0]
proxies: [{address: proxy.corp.example, port: 0}, {address: 10.0.0.1, port: 1}, {address: 10.0.0.1, port: 1}]
noProxy: ["10.0.0.0/99"]
credentials: {secretName: "a/b"}
tls: {serverName: "", caBundle: none}
timeouts: {connect: 2, response: 2h}
"#;
        let expected = [
            "error: spec.hosts[0]: \"a b\" contains a character that is not allowed in a DNS name",
            "warning: spec.hosts: '*' includes all other hosts of the list",
            "error: spec.ports: expected 1 to 65535, got 0",
            "error: spec.proxies[0].address: expected an IP address, got 'proxy.corp.example': names are not resolved",
            "error: spec.proxies[0].port: expected 1 to 65535, got 0",
            "error: spec.proxies[2]: another proxy of the list has the same address and port",
            "error: spec.noProxy[0]: \"10.0.0.0/99\" is neither '*' nor a name, an address or a CIDR range; a name and an \
             address may have a port",
            "error: spec.credentials.secretName: \"a/b\" contains a character that is not allowed in a DNS name",
            "error: spec.tls.serverName: a DNS name must not be empty",
            "error: spec.tls.caBundle: expected certificates in PEM (BEGIN CERTIFICATE)",
            "error: spec.timeouts.connect: \"2\" is not a duration: write numbers and units (ns, us, ms, s, m, h), such as 24h \
             or 1h30m",
            "error: spec.timeouts.response: expected 100ms to 60s, got 2h",
        ];
        assert_eq!(findings(spec), expected);
    }

    #[test]
    fn credentials_in_clear_text_are_a_warning_and_no_proxy_is_an_error() {
        let spec = "proxies: []\ncredentials: {secretName: squid}";
        let expected = [
            "error: spec.proxies: at least one proxy is required",
            "warning: spec.credentials: without spec.tls, the credentials are sent to the proxy in clear text",
        ];
        assert_eq!(findings(spec), expected);
    }
}
