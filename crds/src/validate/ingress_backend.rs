//! Checks of an IngressBackend.

use std::collections::BTreeSet;
use std::fmt;

use tidegate_core::dns_name::DnsPattern;
use tidegate_core::{CidrSet, Principal};

use super::Finding;
use super::findings::{Findings, listed};
use crate::ingress_backend::{BackendSpec, IngressBackendSpec, IngressSourceSpec};

/// The protocol of a backend's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressProtocol {
    /// Plaintext HTTP.
    Http,
    /// TLS terminated by the sidecar, with HTTP inside.
    Https,
    /// Opaque bytes.
    Tcp,
}

/// All errors and probable mistakes in an IngressBackend, in the order of its fields. A problem of every pair of a
/// backend and a source is one finding.
pub fn ingress_backend(spec: &IngressBackendSpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    if spec.backends.is_empty() {
        findings.add("backends", || {
            Finding::warning("spec.backends", "no backend is listed, so this policy has no effect")
        });
    }
    let first_principal = spec.sources.iter().position(|source| source.kind == "AuthenticatedPrincipal");
    let mut seen = BTreeSet::new();
    let (mut http, mut tcp) = (Vec::new(), Vec::new());
    for (i, backend) in spec.backends.iter().enumerate() {
        let path = format!("spec.backends[{i}]");
        if !seen.insert((backend.name.as_str(), backend.port.number)) {
            findings.add("duplicate", || {
                let BackendSpec { name, port, .. } = backend;
                let message = format!(
                    "Duplicate backends detected with service name: {name} and port: {}",
                    port.number
                );
                Finding::error(&path, message)
            });
        }
        match IngressProtocol::parse(&backend.port.protocol) {
            Some(IngressProtocol::Http) => {
                http.push(backend.name.as_str());
                check_http(backend, &path, &mut findings);
            }
            Some(IngressProtocol::Https) => {
                check_https(first_principal.is_some(), backend, &path, &mut findings);
            }
            Some(IngressProtocol::Tcp) => {
                tcp.push(backend.name.as_str());
                check_tcp(backend, &path, &mut findings);
            }
            None => findings.add("protocol", || {
                let protocol = &backend.port.protocol;
                let message = format!("Expected 'port.protocol' to be 'http' or 'https', got: {protocol}");
                Finding::error(format!("{path}.port.protocol"), message)
            }),
        }
    }
    if let Some(i) = first_principal {
        let path = format!("spec.sources[{i}]");
        check_principals(&path, &http, &tcp, &mut findings);
    }
    if spec.sources.is_empty() {
        findings.add("sources", || {
            Finding::warning("spec.sources", "no source is listed, so every address is admitted")
        });
    }
    for (i, source) in spec.sources.iter().enumerate() {
        check_source(source, &format!("spec.sources[{i}]"), &mut findings);
    }
    if spec.matches.as_ref().is_some_and(|matches| !matches.is_empty()) {
        findings.add("matches", || {
            Finding::warning("spec.matches", "matches are accepted and ignored, as OSM did")
        });
    }
    findings.finish()
}

impl IngressProtocol {
    /// Parses `port.protocol`, ignoring case.
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

impl fmt::Display for IngressProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn check_http(backend: &BackendSpec, path: &str, findings: &mut Findings) {
    if backend.tls.is_some() {
        findings.add("http tls", || {
            let message =
                "ignored: protocol http does not terminate TLS; clients that use TLS need port.protocol https";
            Finding::warning(format!("{path}.tls"), message)
        });
    }
}

fn check_https(has_principal: bool, backend: &BackendSpec, path: &str, findings: &mut Findings) {
    if backend.tls.as_ref().is_some_and(|tls| tls.skip_client_cert_validation) {
        findings.add("skip", || {
            let message = if has_principal {
                "no client certificate is requested, so AuthenticatedPrincipal sources are ignored"
            } else {
                "no client certificate is requested"
            };
            Finding::warning(format!("{path}.tls.skipClientCertValidation"), message)
        });
    } else if !has_principal {
        findings.add("no principal", || {
            let message = format!(
                "no AuthenticatedPrincipal is listed: every certificate of the mesh's CA is admitted to '{}'",
                backend.name
            );
            Finding::warning("spec.sources", message)
        });
    }
    let hosts = backend.tls.iter().flat_map(|tls| tls.sni_hosts.iter().flatten());
    for (i, host) in hosts.enumerate().filter(|(_, host)| DnsPattern::parse(host).is_err()) {
        findings.add("host", || {
            let message = format!(
                "'{host}' is neither a DNS name nor '*.' with a suffix, so it matches no server name"
            );
            Finding::warning(format!("{path}.tls.sniHosts[{i}]"), message)
        });
    }
}

/// The sidecar cannot see certificates in opaque bytes, so a policy that demands one would admit more than it says.
fn check_tcp(backend: &BackendSpec, path: &str, findings: &mut Findings) {
    if backend.tls.is_some() {
        findings.add("tcp tls", || {
            let message = "protocol tcp passes bytes through unchanged and does not terminate TLS";
            Finding::error(format!("{path}.tls"), message)
        });
    }
}

/// Reports principals next to backends where no certificate is visible.
fn check_principals(path: &str, http: &[&str], tcp: &[&str], findings: &mut Findings) {
    if !http.is_empty() {
        findings.add("http principals", || {
            let message = format!(
                "{} plaintext http, which has no client certificate: this principal is ignored there",
                speaking(http)
            );
            Finding::warning(path, message)
        });
    }
    if !tcp.is_empty() {
        findings.add("tcp principals", || {
            let message = format!(
                "{} tcp, whose client certificates cannot be checked: use Service or IPRange sources",
                speaking(tcp)
            );
            Finding::error(path, message)
        });
    }
}

/// `backend 'a' speaks`, or `backends 'a', 'b' speak`.
fn speaking(names: &[&str]) -> String {
    let quoted = listed(names.iter().map(|name| format!("'{name}'")));
    if names.len() == 1 { format!("backend {quoted} speaks") } else { format!("backends {quoted} speak") }
}

fn check_source(source: &IngressSourceSpec, path: &str, findings: &mut Findings) {
    let error = |field: &str, message: String| Finding::error(format!("{path}.{field}"), message);
    let unnamed = || format!("'source.name' not specified for source kind {}", source.kind);
    match source.kind.as_str() {
        "Service" => {
            if source.name.is_empty() {
                findings.add("unnamed", || error("name", unnamed()));
            }
            if source.namespace.as_deref().unwrap_or_default().is_empty() {
                let message = "'source.namespace' not specified for source kind Service";
                findings.add("no namespace", || error("namespace", message.to_owned()));
            }
        }
        "AuthenticatedPrincipal" if source.name.is_empty() => {
            findings.add("unnamed", || error("name", unnamed()));
        }
        "AuthenticatedPrincipal" => {
            if let Principal::Unmatchable(text) = Principal::parse(&source.name) {
                findings.add("principal", || {
                    let message = format!(
                        "'{text}' matches no certificate: a principal is a DNS name, a URI, or '*' alone"
                    );
                    Finding::warning(format!("{path}.name"), message)
                });
            }
        }
        "IPRange" => {
            if CidrSet::parse([source.name.as_str()]).is_err() {
                findings.add("range", || {
                    let message = format!(
                        "Invalid 'source.name' value specified for IPRange. Expected CIDR notation 'a.b.c.d/x', got '{}'",
                        source.name
                    );
                    error("name", message)
                });
            }
        }
        _ => findings.add("source kind", || {
            let message = "Invalid 'source.kind' value specified. Must be one of: Service, AuthenticatedPrincipal, IPRange";
            error("kind", message.to_owned())
        }),
    }
}

#[cfg(test)]
mod tests;
