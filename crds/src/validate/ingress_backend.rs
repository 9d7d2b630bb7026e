//! IngressBackend.

use std::fmt;

use tidegate_core::dns_name::DnsPattern;
use tidegate_core::{CidrSet, Principal};

use super::Finding;
use crate::ingress_backend::{Backend, IngressBackendSpec, Source};

/// What clients of a backend speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Plaintext HTTP.
    Http,
    /// TLS that the sidecar ends, HTTP inside.
    Https,
    /// Bytes that are passed on as they are.
    Tcp,
}

/// Everything that is wrong or likely not meant in an IngressBackend, in the order of its fields.
pub fn ingress_backend(spec: &IngressBackendSpec) -> Vec<Finding> {
    let mut findings = Vec::new();
    if spec.backends.is_empty() {
        findings.push(Finding::warning("spec.backends", "no backend is listed, so nothing is opened"));
    }
    for (i, backend) in spec.backends.iter().enumerate() {
        check_backend(spec, i, backend, &mut findings);
    }
    if spec.sources.is_empty() {
        findings.push(Finding::warning("spec.sources", "no source is listed, so every address is let in"));
    }
    for (i, source) in spec.sources.iter().enumerate() {
        check_source(source, &format!("spec.sources[{i}]"), &mut findings);
    }
    if spec.matches.as_ref().is_some_and(|matches| !matches.is_empty()) {
        findings.push(Finding::warning("spec.matches", "matches are accepted and ignored, as OSM did"));
    }
    findings
}

impl Protocol {
    /// Reads `port.protocol`; letter case does not count.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https, Self::Tcp]
            .into_iter()
            .find(|known| text.eq_ignore_ascii_case(known.as_str()))
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn check_backend(spec: &IngressBackendSpec, index: usize, backend: &Backend, findings: &mut Vec<Finding>) {
    let path = format!("spec.backends[{index}]");
    let is_same = |other: &&Backend| other.name == backend.name && other.port.number == backend.port.number;
    if spec.backends.iter().take(index).any(|other| is_same(&other)) {
        let message = format!(
            "Duplicate backends detected with service name: {} and port: {}",
            backend.name, backend.port.number
        );
        findings.push(Finding::error(&path, message));
    }
    match Protocol::parse(&backend.port.protocol) {
        Some(Protocol::Http) => check_http(spec, backend, &path, findings),
        Some(Protocol::Https) => check_https(spec, backend, &path, findings),
        Some(Protocol::Tcp) => check_tcp(spec, backend, &path, findings),
        None => {
            let message =
                format!("Expected 'port.protocol' to be 'http' or 'https', got: {}", backend.port.protocol);
            findings.push(Finding::error(format!("{path}.port.protocol"), message));
        }
    }
}

fn check_http(spec: &IngressBackendSpec, backend: &Backend, path: &str, findings: &mut Vec<Finding>) {
    for (i, _) in principals(spec) {
        let message = format!(
            "backend '{}' speaks plaintext http, where no certificate is seen: this principal is ignored there",
            backend.name
        );
        findings.push(Finding::warning(format!("spec.sources[{i}]"), message));
    }
    if backend.tls.is_some() {
        let message = "ignored: protocol http ends no TLS; clients that speak TLS need port.protocol https";
        findings.push(Finding::warning(format!("{path}.tls"), message));
    }
}

fn check_https(spec: &IngressBackendSpec, backend: &Backend, path: &str, findings: &mut Vec<Finding>) {
    let tls = backend.tls.clone().unwrap_or_default();
    let has_principal = principals(spec).next().is_some();
    if tls.skip_client_cert_validation {
        let message = if has_principal {
            "no client certificate is asked for, so AuthenticatedPrincipal sources do not count"
        } else {
            "no client certificate is asked for"
        };
        findings.push(Finding::warning(format!("{path}.tls.skipClientCertValidation"), message));
    } else if !has_principal {
        let message = format!(
            "no AuthenticatedPrincipal is listed: every certificate of the mesh's CA is let in to '{}'",
            backend.name
        );
        findings.push(Finding::warning("spec.sources", message));
    }
    for (i, host) in tls.sni_hosts.iter().flatten().enumerate() {
        if DnsPattern::parse(host).is_err() {
            let message =
                format!("'{host}' is no DNS name and no '*.' with a suffix: it matches no server name");
            findings.push(Finding::warning(format!("{path}.tls.sniHosts[{i}]"), message));
        }
    }
}

/// Bytes that nobody looks at hold no certificate that anybody could check, so a policy that asks for one would be
/// more open than it reads.
fn check_tcp(spec: &IngressBackendSpec, backend: &Backend, path: &str, findings: &mut Vec<Finding>) {
    if backend.tls.is_some() {
        findings.push(Finding::error(
            format!("{path}.tls"),
            "protocol tcp passes bytes on as they are: no TLS is ended there",
        ));
    }
    for (i, _) in principals(spec) {
        let message = format!(
            "backend '{}' speaks tcp, where no certificate can be checked: use Service or IPRange sources",
            backend.name
        );
        findings.push(Finding::error(format!("spec.sources[{i}]"), message));
    }
}

fn check_source(source: &Source, path: &str, findings: &mut Vec<Finding>) {
    let mut error = |field: &str, message: String| {
        findings.push(Finding::error(format!("{path}.{field}"), message));
    };
    let unnamed = format!("'source.name' not specified for source kind {}", source.kind);
    match source.kind.as_str() {
        "Service" => {
            if source.name.is_empty() {
                error("name", unnamed);
            }
            if source.namespace.as_deref().unwrap_or_default().is_empty() {
                error("namespace", "'source.namespace' not specified for source kind Service".to_owned());
            }
        }
        "AuthenticatedPrincipal" if source.name.is_empty() => error("name", unnamed),
        "AuthenticatedPrincipal" => {
            if let Principal::Unmatchable(text) = Principal::parse(&source.name) {
                let message = format!(
                    "'{text}' matches no certificate: a principal is a DNS name, a URI, or '*' alone"
                );
                findings.push(Finding::warning(format!("{path}.name"), message));
            }
        }
        "IPRange" => {
            if CidrSet::parse([source.name.as_str()]).is_err() {
                let message = format!(
                    "Invalid 'source.name' value specified for IPRange. Expected CIDR notation 'a.b.c.d/x', got '{}'",
                    source.name
                );
                error("name", message);
            }
        }
        _ => error(
            "kind",
            "Invalid 'source.kind' value specified. Must be one of: Service, AuthenticatedPrincipal, IPRange"
                .to_owned(),
        ),
    }
}

fn principals(spec: &IngressBackendSpec) -> impl Iterator<Item = (usize, &Source)> {
    spec.sources.iter().enumerate().filter(|(_, source)| source.kind == "AuthenticatedPrincipal")
}

#[cfg(test)]
mod tests;
