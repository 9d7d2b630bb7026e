//! The protocol of a Service's port, by what its author has declared.
//!
//! The order is Open Service Mesh's: `appProtocol`, then the prefix of the port's name. A name that begins with no known
//! protocol declares nothing, because names such as `web` and `main` are common; an unknown `appProtocol` is a protocol
//! that is not HTTP as far as is known, so its bytes are passed on.

use crate::backend::BackendProtocol;
use crate::policy::AppProtocol;

/// What connections to a port carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// HTTP in the client's version.
    Http,
    /// HTTP/1.1, because the app serves websockets.
    Http1,
    /// HTTP/2 with prior knowledge, such as gRPC.
    Http2,
    /// Bytes that are not parsed: another protocol, or the app's own TLS.
    Tcp,
    /// The same, and the server sends first.
    TcpServerFirst,
    /// `appProtocol` has a value that is not known: bytes that are not parsed.
    Unknown,
    /// Nothing is declared.
    Undeclared,
}

/// A protocol's name, and what connections carry then. `appProtocol` is one of them; a port's name is one of them or
/// begins with one and a dash, the longest first.
const NAMES: [(&str, PortProtocol); 29] = [
    ("tcp-server-first", PortProtocol::TcpServerFirst),
    ("kubernetes.io/h2c", PortProtocol::Http2),
    ("kubernetes.io/wss", PortProtocol::Tcp),
    ("kubernetes.io/ws", PortProtocol::Http1),
    ("postgresql", PortProtocol::Tcp),
    ("memcached", PortProtocol::Tcp),
    ("cassandra", PortProtocol::Tcp),
    ("grpc-web", PortProtocol::Http),
    ("postgres", PortProtocol::Tcp),
    ("http2", PortProtocol::Http2),
    ("https", PortProtocol::Tcp),
    ("kafka", PortProtocol::Tcp),
    ("mongo", PortProtocol::Tcp),
    ("mysql", PortProtocol::TcpServerFirst),
    ("redis", PortProtocol::Tcp),
    ("amqp", PortProtocol::Tcp),
    ("grpc", PortProtocol::Http2),
    ("http", PortProtocol::Http),
    ("imap", PortProtocol::TcpServerFirst),
    ("ldap", PortProtocol::Tcp),
    ("mqtt", PortProtocol::Tcp),
    ("nats", PortProtocol::TcpServerFirst),
    ("smtp", PortProtocol::TcpServerFirst),
    ("h2c", PortProtocol::Http2),
    ("ssh", PortProtocol::TcpServerFirst),
    ("tcp", PortProtocol::Tcp),
    ("tls", PortProtocol::Tcp),
    ("wss", PortProtocol::Tcp),
    ("ws", PortProtocol::Http1),
];

/// Ports whose servers usually send first, or whose clients do not speak HTTP: SMTP, MySQL, Galera, PostgreSQL, Redis,
/// Elasticsearch's transport, memcached. The same as Linkerd's default opaque ports.
const OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

impl PortProtocol {
    /// The protocol of a port with this `appProtocol` and name. `numbers`: the Service's port, and that of its endpoints
    /// where it is a number.
    pub fn of(
        app_protocol: Option<&str>,
        port_name: Option<&str>,
        numbers: impl IntoIterator<Item = u16>,
    ) -> Self {
        let declared = match app_protocol {
            Some(word) => by_word(word).unwrap_or(Self::Unknown),
            None => port_name.and_then(by_prefix).unwrap_or(Self::Undeclared),
        };
        let is_opaque = || numbers.into_iter().any(|number| OPAQUE_PORTS.contains(&number));
        if declared == Self::Undeclared && is_opaque() { Self::Tcp } else { declared }
    }

    /// What connections to the port carry, in the form of destinations.
    pub fn carried(self) -> AppProtocol {
        match self {
            Self::Http | Self::Http1 => AppProtocol::Http,
            Self::Http2 => AppProtocol::H2c,
            Self::Tcp | Self::Unknown => AppProtocol::Tcp,
            Self::TcpServerFirst => AppProtocol::TcpServerFirst,
            Self::Undeclared => AppProtocol::Undeclared,
        }
    }

    /// What the port's endpoints speak. Where nothing is declared, requests that are detected keep their version.
    pub fn spoken(self) -> BackendProtocol {
        match self {
            Self::Http | Self::Undeclared => BackendProtocol::Http,
            Self::Http1 => BackendProtocol::Http1,
            Self::Http2 => BackendProtocol::Http2,
            Self::Tcp | Self::TcpServerFirst | Self::Unknown => BackendProtocol::Tcp,
        }
    }
}

fn by_word(word: &str) -> Option<PortProtocol> {
    NAMES.into_iter().find_map(|(name, protocol)| word.eq_ignore_ascii_case(name).then_some(protocol))
}

fn by_prefix(port_name: &str) -> Option<PortProtocol> {
    let has_prefix = |name: &str| {
        port_name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    NAMES.into_iter().find_map(|(name, protocol)| has_prefix(name).then_some(protocol))
}

#[cfg(test)]
mod tests;
