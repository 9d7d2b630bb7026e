//! A server outside the mesh's own policy that also authorizes requests: MeshConfig's `inboundExternalAuthorization`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::dns_name::{DnsName, DnsNameError};
use crate::object_ref::ObjectRef;

/// The second authorization of each HTTP request that the policy allows. Opaque bytes are not subject to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuthorization {
    /// The object that it was compiled from, a MeshConfig.
    pub origin: ObjectRef,
    /// The server, or why there is none.
    pub state: ExternalAuthorizationState,
    /// Audit mode: refusals are reported, and the requests are forwarded.
    pub is_audit: bool,
}

/// Whether there is a server that can be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ExternalAuthorizationState {
    /// The setting cannot be understood, so that each request is refused; the reason.
    Invalid(Arc<str>),
    /// The server decides about each request.
    Active(AuthorizationServer),
}

/// A server of `envoy.service.auth.v3.Authorization`, and what its failure means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationServer {
    /// Where it is.
    pub address: ServerAddress,
    /// Time for one check.
    pub timeout: Duration,
    /// Whether a request is forwarded if the check fails.
    pub failure_mode_allow: bool,
    /// How much of a request's body the server gets; `None`: nothing.
    pub body: Option<CheckedBody>,
}

/// The part of a request's body that a server gets (Envoy: `with_request_body`). The request waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedBody {
    /// The most bytes, from 1 to [`MOST_CHECKED_BODY`].
    pub most_bytes: u32,
    /// Whether the server gets the beginning of a body that is longer, or late; otherwise such a request is refused.
    pub allow_partial: bool,
    /// Whether it gets bytes in place of text.
    pub as_bytes: bool,
}

/// A server by name or address, and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerAddress {
    /// A name that DNS resolves.
    Name(Arc<str>, u16),
    /// An address.
    Address(SocketAddr),
}

impl ServerAddress {
    /// Parses a host: an IP address, with or without brackets, or a DNS name.
    pub fn parse(host: &str, port: u16) -> Result<Self, DnsNameError> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            Ok(address) => Ok(Self::Address(SocketAddr::new(address, port))),
            Err(_) => Ok(Self::Name(DnsName::parse(host)?.as_str().into(), port)),
        }
    }

    /// The host, without its port.
    pub fn host(&self) -> String {
        match self {
            Self::Name(name, _) => name.to_string(),
            Self::Address(address) => address.ip().to_string(),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Name(_, port) => *port,
            Self::Address(address) => address.port(),
        }
    }
}

/// The most bytes of a body that a server may get: as much as the initial window of an HTTP/2 stream lets clients send.
pub const MOST_CHECKED_BODY: u32 = 32 * 1024;

/// The longest timeout of a check. A request waits for so long at most.
pub const MOST_CHECK_TIMEOUT: Duration = Duration::from_secs(60);

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Serialize for ServerAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for ExternalAuthorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_audit {
            write!(f, "audit mode: ")?;
        }
        match &self.state {
            ExternalAuthorizationState::Invalid(why) => write!(f, "refuses every request: {why}"),
            ExternalAuthorizationState::Active(server) => {
                let failure = if server.failure_mode_allow { "allows" } else { "refuses" };
                let AuthorizationServer { address, timeout, .. } = server;
                write!(f, "{address} decides within {timeout:?}; its failure {failure} the request")?;
                match &server.body {
                    Some(body) => write!(f, "; it gets up to {} bytes of the body", body.most_bytes),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_or_a_name() {
        let text = |host| ServerAddress::parse(host, 9191).map(|address| address.to_string());
        assert_eq!(text("10.0.0.1").unwrap(), "10.0.0.1:9191");
        assert_eq!(text("fd00::1").unwrap(), "[fd00::1]:9191");
        assert_eq!(text("[fd00::1]").unwrap(), "[fd00::1]:9191");
        assert_eq!(text("OPA.opa.svc.cluster.local.").unwrap(), "opa.opa.svc.cluster.local:9191");
        for host in ["", "a b", "http://opa", "opa:80", "10.0.0.1/8"] {
            assert!(text(host).is_err(), "{host}");
        }
        let name = ServerAddress::parse("opa", 1).unwrap();
        assert_eq!((name.host().as_str(), name.port()), ("opa", 1));
    }

    #[test]
    fn it_says_who_decides_and_what_a_failure_means() {
        let external = |state, is_audit| ExternalAuthorization {
            origin: ObjectRef::new("MeshConfig", "a", "b"),
            state,
            is_audit,
        };
        let server = |failure_mode_allow| AuthorizationServer {
            address: ServerAddress::parse("opa", 9191).unwrap(),
            timeout: Duration::from_secs(1),
            failure_mode_allow,
            body: failure_mode_allow.then_some(CheckedBody {
                most_bytes: 100,
                allow_partial: true,
                as_bytes: false,
            }),
        };
        let active = |allow| external(ExternalAuthorizationState::Active(server(allow)), false).to_string();
        assert_eq!(active(false), "opa:9191 decides within 1s; its failure refuses the request");
        assert_eq!(
            active(true),
            "opa:9191 decides within 1s; its failure allows the request; it gets up to 100 bytes of the body"
        );
        let invalid = |is_audit| external(ExternalAuthorizationState::Invalid("no port".into()), is_audit);
        assert_eq!(invalid(false).to_string(), "refuses every request: no port");
        assert_eq!(invalid(true).to_string(), "audit mode: refuses every request: no port");
    }
}
