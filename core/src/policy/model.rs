//! The policy as a value. Its JSON form is for people who look into a running process; the wire has its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::cidr::CidrSet;
use crate::dns_name::DnsPattern;
use crate::identity::Identity;
use crate::principal::Principal;

/// Everything that decides about one workload's inbound traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundPolicy {
    /// The pod, as `<namespace>/<name>`.
    pub workload: Arc<str>,
    /// Who the workload is.
    pub identity: Identity,
    /// By the pod's port, a Service's `targetPort`. A port that is not here is refused.
    pub ports: BTreeMap<u16, PortPolicy>,
}

/// The policy of one port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortPolicy {
    /// What the app speaks.
    pub protocol: AppProtocol,
    /// The Services behind which this port stands, each `<namespace>/<name>`.
    pub services: Vec<Arc<str>>,
    /// What mesh peers may do.
    pub mesh: MeshRule,
    /// Who else may come in; what one rule grants is granted.
    pub ingress: Vec<IngressRule>,
}

/// What the app behind a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppProtocol {
    /// HTTP/1.1; but a client that itself speaks plaintext HTTP/2, or gRPC, is passed on as HTTP/2.
    Http,
    /// Nothing says so: the same, but a client that has the choice is given HTTP/2, without which gRPC would be lost.
    Undeclared,
    /// HTTP/2 with prior knowledge, for every client.
    H2c,
    /// Bytes that are not looked at.
    Tcp,
    /// Bytes that are not looked at, the first of which come from the app.
    TcpServerFirst,
}

/// What mesh peers may do at a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum MeshRule {
    /// Nothing, for this reason.
    Deny(Arc<str>),
    /// Every workload of the mesh is let in: permissive mode.
    AnyPeer,
    /// Workloads that carry one of these names.
    Principals(Vec<Principal>),
}

/// What one IngressBackend grants at one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IngressRule {
    /// The IngressBackend, as `<namespace>/<name>`.
    pub policy: Arc<str>,
    /// The backend Service, as `<namespace>/<name>`.
    pub backend: Arc<str>,
    /// What it grants, or why it grants nothing.
    pub state: RuleState,
}

/// Whether a rule is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum RuleState {
    /// It could not be compiled and so admits nobody; why.
    Invalid(Arc<str>),
    /// It is.
    Active(ActiveIngressRule),
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveIngressRule {
    /// From where.
    pub sources: Sources,
    /// How, and as whom.
    pub transport: IngressTransport,
}

/// The addresses that a rule admits: those of the TCP peer, whatever headers say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Sources {
    /// Every address.
    Any,
    /// These only.
    Ranges(CidrSet),
}

/// How a connection must speak for a rule to admit it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum IngressTransport {
    /// Plaintext HTTP.
    Http,
    /// TLS that the sidecar terminates, HTTP inside.
    Https {
        /// Server names that are admitted; empty: every name, and none.
        sni_hosts: Vec<DnsPattern>,
        /// What is asked of the client.
        client: ClientCheck,
    },
    /// Any bytes, passed on as they are; the app's own TLS among them.
    Tcp,
}

/// What a rule over TLS asks of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ClientCheck {
    /// No certificate is asked for: `skipClientCertValidation: true`.
    Skip,
    /// A certificate of the mesh's CA that holds one of these names.
    Principals(Arc<[Principal]>),
}

impl Sources {
    /// Whether the rule admits this address.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Ranges(ranges) => ranges.contains(address),
        }
    }
}

impl AppProtocol {
    /// Whether the bytes are passed on unseen.
    pub fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::TcpServerFirst)
    }
}

impl fmt::Display for AppProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Undeclared => "undeclared",
            Self::H2c => "h2c",
            Self::Tcp => "tcp",
            Self::TcpServerFirst => "tcp-server-first",
        })
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any address"),
            Self::Ranges(ranges) if ranges.is_empty() => f.write_str("no address"),
            Self::Ranges(ranges) => ranges.fmt(f),
        }
    }
}
