//! The policy as data. The JSON form is for the admin interface; the discovery protocol has its own form.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::rate_limits::RateLimits;
use crate::backend::Locality;
use crate::cidr::CidrSet;
use crate::dns_name::DnsPattern;
use crate::egress::EgressMode;
use crate::forward_proxy::EgressProxyRule;
use crate::identity::Identity;
use crate::object_ref::ObjectRef;
use crate::policy::external_authorization::ExternalAuthorization;
use crate::principal::Principal;
use crate::route::RouteMatch;
use crate::service_retry::ServiceRetry;
use crate::telemetry::TelemetrySettings;

/// Everything that decides about one workload's inbound traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundPolicy {
    /// The pod, as `<namespace>/<name>`.
    pub workload: Arc<str>,
    /// The workload's identity.
    pub identity: Identity,
    /// Where the workload runs, which decides about the endpoints of its outbound connections. `None`: the controller
    /// does not say so.
    pub locality: Option<Locality>,
    /// What the sidecar reports about the workload's traffic.
    pub telemetry: TelemetrySettings,
    /// Where the workload's connections to addresses that no object has go.
    pub egress: EgressMode,
    /// How the workload's requests to Services are retried, each Service once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retries: Vec<Arc<ServiceRetry>>,
    /// Forward proxies for the workload's connections that leave the mesh. The first that applies counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress_proxies: Vec<Arc<EgressProxyRule>>,
    /// Policies by the pod's port, which is a Service's `targetPort`. Connections to other ports are refused.
    pub ports: BTreeMap<u16, PortPolicy>,
    /// What also authorizes each HTTP request that the rules of a port grant. `None`: nothing.
    pub external_authorization: Option<Arc<ExternalAuthorization>>,
}

/// The policy of one port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortPolicy {
    /// Protocol of the app.
    pub protocol: AppProtocol,
    /// The Services that lead to this port, each as `<namespace>/<name>`.
    pub services: Vec<Arc<str>>,
    /// What mesh peers may do.
    pub mesh: MeshRule,
    /// Rules for other clients. One grant suffices.
    pub ingress: Vec<IngressRule>,
    /// Rate limits of what mesh peers send. What is allowed must exceed none of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<Arc<RateLimits>>,
}

/// Protocol of the app behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppProtocol {
    /// HTTP/1.1. Plaintext HTTP/2 and gRPC of a client are forwarded as HTTP/2.
    Http,
    /// Not declared. As `Http`, but a client that offers both versions gets HTTP/2, because gRPC needs it.
    Undeclared,
    /// HTTP/2 with prior knowledge, for every client.
    H2c,
    /// Opaque bytes.
    Tcp,
    /// Opaque bytes; the app sends first.
    TcpServerFirst,
}

/// What mesh peers may do at a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum MeshRule {
    /// Peers are refused, for this reason.
    Deny(Arc<str>),
    /// Every workload of the mesh is allowed: permissive mode.
    AnyPeer,
    /// Workloads are allowed what one of these rules grants.
    Rules(Vec<Arc<PeerRule>>),
    /// Every workload is allowed. What none of these rules grants is reported as a refusal that is not enforced.
    Audit(Vec<Arc<PeerRule>>),
}

/// What one object grants mesh peers. The ports that it applies to share it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRule {
    /// The object that the rule was compiled from, such as a TrafficTarget.
    pub origin: ObjectRef,
    /// What the rule grants, or why it grants nothing.
    pub state: PeerRuleState,
}

/// Whether a rule for mesh peers is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum PeerRuleState {
    /// The rule cannot be compiled and grants nothing; the reason.
    Invalid(Arc<str>),
    /// The rule is in force.
    Active(ActivePeerRule),
}

/// A rule for mesh peers in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivePeerRule {
    /// The peers.
    pub sources: Arc<[Identity]>,
    /// What they may send.
    pub traffic: PeerTraffic,
}

/// What a rule lets mesh peers send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerTraffic {
    /// Everything, also bytes that are not parsed.
    Any,
    /// HTTP requests that one of these matches. Bytes that are not parsed are refused.
    Requests(Vec<Arc<RouteMatch>>),
}

/// What one object grants at one port to clients outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IngressRule {
    /// The object that the rule was compiled from, such as an IngressBackend.
    pub origin: ObjectRef,
    /// The backend Service, as `<namespace>/<name>`.
    pub backend: Arc<str>,
    /// What the rule grants, or why it grants nothing.
    pub state: RuleState,
}

/// Whether a rule is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum RuleState {
    /// The rule cannot be compiled and refuses every client; the reason.
    Invalid(Arc<str>),
    /// The rule is in force.
    Active(ActiveIngressRule),
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveIngressRule {
    /// Source addresses.
    pub sources: Sources,
    /// Transport, and the client's identity.
    pub transport: IngressTransport,
}

/// Source addresses that a rule admits. The source is the TCP peer; headers are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Sources {
    /// Every address.
    Any,
    /// Only these.
    Ranges(CidrSet),
}

/// Transport that a rule admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum IngressTransport {
    /// Plaintext HTTP.
    Http,
    /// HTTP over TLS, which the sidecar terminates.
    Https {
        /// Server names that are admitted. If empty, every server name and its absence.
        sni_hosts: Vec<DnsPattern>,
        /// Check of the client's certificate.
        client: ClientCheck,
    },
    /// Opaque bytes, forwarded unchanged, such as TLS that the app terminates.
    Tcp,
}

/// Check of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ClientCheck {
    /// No certificate is requested: `skipClientCertValidation: true`.
    Skip,
    /// A certificate issued by the mesh's CA that contains one of these names is required.
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
    /// Whether bytes are forwarded without being parsed.
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
