//! Why the policy refuses a connection or a request.

use std::fmt;
use std::sync::Arc;

/// Why a connection is refused. Ordered by how close it came to a grant, the farthest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The workload has no policy yet.
    NoPolicy,
    /// No Service of the workload has the port, and no container declares it.
    NoSuchPort,
    /// No IngressBackend names the port, and the client is not a mesh peer.
    NoIngressBackend,
    /// The object with a rule for the port is not in force; the reason.
    InvalidRule(Arc<str>),
    /// Plaintext where TLS is required.
    TlsRequired,
    /// TLS where plaintext is required.
    PlaintextRequired,
    /// The source address is not among the rule's sources.
    SourceNotAllowed,
    /// The server name is not among the rule's `sniHosts`.
    ServerNameNotAllowed,
    /// A client certificate is required and was not presented.
    ClientCertificateRequired,
    /// The client certificate is not that of a workload of this mesh, which contains both forms of its identity.
    NotAWorkload,
    /// Mesh peers may not use the port; the reason.
    MeshDenied(Arc<str>),
    /// No name in the client certificate is allowed.
    PrincipalNotAllowed,
    /// The mesh peer is not among the sources of a rule.
    PeerNotAllowed,
    /// The rules for the mesh peer distinguish HTTP requests, and the connection carries bytes that are not parsed.
    NotParsed,
    /// No rule for the mesh peer matches the request.
    RequestNotAllowed,
    /// More connections of mesh peers than a rate limit allows.
    ConnectionRateLimited,
    /// More requests of mesh peers than a rate limit allows; the path that the limit is for, or nothing.
    RequestRateLimited(Arc<str>),
    /// The rate limit service refuses the connection.
    ConnectionGloballyLimited,
    /// The rate limit service refuses the request; the path that the limit is for, or nothing.
    RequestGloballyLimited(Arc<str>),
    /// The rate limit service has no answer.
    RateLimitServiceFailed,
    /// The connection was opened for another protocol than that which the port has now.
    ProtocolChanged,
    /// The request's host is among the `sniHosts` of another rule than the connection's server name.
    Misdirected,
    /// The setting of the external authorization cannot be understood; the reason.
    ExternalAuthorizationInvalid(Arc<str>),
    /// The external authorization has no answer for the request.
    ExternalAuthorizationFailed,
    /// The request's body is larger than what the external authorization gets.
    ExternalAuthorizationBodyTooLarge,
    /// The external authorization refuses the request.
    ExternallyDenied,
}

impl Reason {
    /// A stable word for logs and metric labels.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::NoSuchPort => "no_such_port",
            Self::NoIngressBackend => "no_ingress_backend",
            Self::InvalidRule(_) => "invalid_rule",
            Self::TlsRequired => "tls_required",
            Self::PlaintextRequired => "plaintext_required",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::ServerNameNotAllowed => "server_name_not_allowed",
            Self::ClientCertificateRequired => "client_certificate_required",
            Self::NotAWorkload => "not_a_workload",
            Self::MeshDenied(_) => "mesh_denied",
            Self::PrincipalNotAllowed => "principal_not_allowed",
            Self::PeerNotAllowed => "peer_not_allowed",
            Self::NotParsed => "not_parsed",
            Self::RequestNotAllowed => "request_not_allowed",
            Self::ConnectionRateLimited => "connection_rate_limited",
            Self::RequestRateLimited(_) => "request_rate_limited",
            Self::ConnectionGloballyLimited => "connection_globally_rate_limited",
            Self::RequestGloballyLimited(_) => "request_globally_rate_limited",
            Self::RateLimitServiceFailed => "rate_limit_service_failed",
            Self::ProtocolChanged => "protocol_changed",
            Self::Misdirected => "misdirected",
            Self::ExternalAuthorizationInvalid(_) => "external_authorization_invalid",
            Self::ExternalAuthorizationFailed => "external_authorization_failed",
            Self::ExternalAuthorizationBodyTooLarge => "external_authorization_body_too_large",
            Self::ExternallyDenied => "externally_denied",
        }
    }

    /// What it says without its detail.
    fn text(&self) -> &'static str {
        match self {
            Self::NoPolicy => "the workload has no policy yet",
            Self::NoSuchPort => {
                "the port belongs to no Service of the workload and is declared by none of its containers"
            }
            Self::NoIngressBackend => "no IngressBackend opens the port",
            Self::InvalidRule(_) => "the rule is not in force",
            Self::TlsRequired => "plaintext where TLS is required",
            Self::PlaintextRequired => "TLS where plaintext is required",
            Self::SourceNotAllowed => "the source address is not among the sources",
            Self::ServerNameNotAllowed => "the server name is not among sniHosts",
            Self::ClientCertificateRequired => "a client certificate is required",
            Self::NotAWorkload => "the client certificate is not that of a workload of this mesh",
            Self::MeshDenied(_) => "mesh peers may not use the port",
            Self::PrincipalNotAllowed => "none of the client certificate's names is an allowed principal",
            Self::PeerNotAllowed => "the mesh peer is not among the sources",
            Self::NotParsed => {
                "the mesh peer is allowed certain HTTP requests only, and the connection carries bytes that are not \
                 parsed as HTTP"
            }
            Self::RequestNotAllowed => {
                "the mesh peer is not allowed a request with this method, path and header fields"
            }
            Self::ConnectionRateLimited => "the rate limit of connections is exceeded",
            Self::RequestRateLimited(_) => "the rate limit of requests is exceeded",
            Self::ConnectionGloballyLimited => "the connection exceeds a limit of the rate limit service",
            Self::RequestGloballyLimited(_) => "the request exceeds a limit of the rate limit service",
            Self::RateLimitServiceFailed => "the rate limit service gave no valid answer",
            Self::ProtocolChanged => "the port is served by another protocol now",
            Self::Misdirected => {
                "the request's host is among the sniHosts of another rule than the connection's server name"
            }
            Self::ExternalAuthorizationInvalid(_) => "the external authorization cannot be carried out",
            Self::ExternalAuthorizationFailed => {
                "the server of the external authorization gave no valid answer"
            }
            Self::ExternalAuthorizationBodyTooLarge => {
                "the request's body is larger than what the external authorization gets"
            }
            Self::ExternallyDenied => "the server of the external authorization refuses the request",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRule(why) | Self::MeshDenied(why) | Self::ExternalAuthorizationInvalid(why) => {
                write!(f, "{}: {why}", self.text())
            }
            Self::RequestRateLimited(path) if !path.is_empty() => {
                write!(f, "the rate limit of requests for {path:?} is exceeded")
            }
            Self::RequestGloballyLimited(path) if !path.is_empty() => {
                write!(f, "the request for {path:?} exceeds a limit of the rate limit service")
            }
            _ => f.write_str(self.text()),
        }
    }
}
