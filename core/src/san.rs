//! Subject alternative names (RFC 5280 §4.2.1.6), each with its type.

use std::fmt;
use std::net::IpAddr;

use crate::dns_name::DnsName;

/// A subject alternative name. Names of different types are never equal, even if their texts are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum San {
    /// dNSName.
    Dns(DnsName),
    /// uniformResourceIdentifier, compared exactly.
    Uri(Box<str>),
    /// rfc822Name. Never matches a principal.
    Email(Box<str>),
    /// iPAddress. Never matches a principal.
    Ip(IpAddr),
    /// dNSName that starts with `*.`, as in certificates for hosts. Never matches a principal.
    DnsWildcard(Box<str>),
    /// Any other type. Never matches a principal.
    Other,
}

impl fmt::Display for San {
    /// `type:value`, as `openssl` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Uri(uri) => write!(f, "URI:{}", uri.escape_debug()),
            Self::Email(address) => write!(f, "email:{}", address.escape_debug()),
            Self::Ip(address) => write!(f, "IP:{address}"),
            Self::DnsWildcard(name) => write!(f, "DNS:{}", name.escape_debug()),
            Self::Other => f.write_str("othername"),
        }
    }
}
