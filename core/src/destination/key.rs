//! What sidecars look destinations up by.

use std::fmt;
use std::net::SocketAddr;

use crate::dns_name::DnsName;

/// What is looked up: an address, or a host at an address whose connections are told apart by host
/// ([`Destination::ByHost`](super::Destination::ByHost)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// The address and port that a workload dials.
    pub address: SocketAddr,
    /// The host that a connection or request names.
    pub host: Option<RequestedHost>,
}

/// A host, and what names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestedHost {
    /// What names it: the same name in plaintext HTTP is another host.
    pub source: HostSource,
    /// The name, without a port.
    pub name: DnsName,
}

/// What names a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostSource {
    /// The server name in a ClientHello (RFC 6066 §3).
    Tls,
    /// `Host` or `:authority` of a request in plaintext.
    Http,
}

impl RequestedHost {
    /// The server that a ClientHello names.
    pub fn of_server_name(name: DnsName) -> Self {
        Self { source: HostSource::Tls, name }
    }

    /// The host of `Host` or `:authority`, without its port; `None` for an address, and for what is not a name.
    pub fn of_authority(authority: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(authority).ok()?;
        let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
        let name = DnsName::parse(host).ok()?;
        let is_address = host.parse::<std::net::Ipv4Addr>().is_ok();
        (!is_address).then_some(Self { source: HostSource::Http, name })
    }
}

impl HostSource {
    /// As resources are named.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
        }
    }

    /// The source with this name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Tls, Self::Http].into_iter().find(|source| source.as_str() == text)
    }
}

impl From<SocketAddr> for DestinationKey {
    fn from(address: SocketAddr) -> Self {
        Self { address, host: None }
    }
}

impl fmt::Display for DestinationKey {
    /// `<ip>:<port>`, or `<ip>:<port>/<tls|http>/<name>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the scope of an IPv6 address, which is good on one machine only.
        write!(f, "{}", SocketAddr::new(self.address.ip(), self.address.port()))?;
        match &self.host {
            Some(RequestedHost { source, name }) => write!(f, "/{}/{name}", source.as_str()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_s_host_is_a_name_without_its_port() {
        for (authority, name) in [
            ("Api.Example.com", Some("api.example.com")),
            ("api.example.com:8080", Some("api.example.com")),
            ("api.example.com.", Some("api.example.com")),
            ("192.0.2.1", None),
            ("192.0.2.1:80", None),
            ("[fd00::1]:80", None),
            ("fd00::1", None),
            ("a b", None),
            ("", None),
            (":80", None),
        ] {
            let host = RequestedHost::of_authority(authority.as_bytes());
            assert_eq!(host.as_ref().map(|host| host.name.as_str()), name, "{authority}");
        }
        assert_eq!(RequestedHost::of_authority(b"\xff"), None);
    }
}
