//! Which targets are reached without the proxy: a list by the rules of Go's `golang.org/x/net/http/httpproxy`.
//!
//! `*` is everything. `10.0.0.0/8` is a range, `10.0.0.1` an address. `example.com` is the name and its subdomains,
//! `.example.com` and `*.example.com` only the subdomains. An address or a name may have a port: then only that port.
//! `localhost` and loopback addresses never go through a proxy.
//!
//! Go compares ranges and addresses with a target that is an address. A sidecar also has the address that the app dialled,
//! and compares them with that, too.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::dns_name::DnsName;

/// A list of targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Entry>);

/// An entry of no form above.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither '*' nor a name, an address or a CIDR range; a name and an address may have a port")]
pub struct InvalidNoProxy(pub String);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    All,
    Range(IpNet),
    Address(IpAddr, Option<u16>),
    Name { name: DnsName, is_exact_too: bool, port: Option<u16> },
}

impl NoProxy {
    /// Parses entries; the result has their order.
    pub fn parse<'t>(entries: impl IntoIterator<Item = &'t str>) -> Result<Self, InvalidNoProxy> {
        entries.into_iter().map(Entry::parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a connection to this address goes there directly, whatever its host is.
    pub fn has_address(&self, ip: IpAddr, port: u16) -> bool {
        let ip = ip.to_canonical();
        ip.is_loopback() || self.0.iter().any(|entry| entry.has_address(ip, port))
    }

    /// Whether a connection to a host goes there directly. `host`: a name in any case, or an address without brackets.
    pub fn has_host(&self, host: &str, port: u16) -> bool {
        if let Ok(ip) = host.parse() {
            return self.has_address(ip, port);
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        host.eq_ignore_ascii_case("localhost") || self.0.iter().any(|entry| entry.has_name(host, port))
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, InvalidNoProxy> {
        let invalid = || InvalidNoProxy(text.to_owned());
        if text == "*" {
            return Ok(Self::All);
        }
        if text.contains('/') {
            return text.parse::<IpNet>().map(|range| Self::Range(range.trunc())).map_err(|_| invalid());
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address(ip.to_canonical(), None));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (host, Some(port.ok_or_else(invalid)?))
            }
            None => (text, None),
        };
        let unbracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = unbracketed.parse::<IpAddr>() {
            return Ok(Self::Address(ip.to_canonical(), port));
        }
        let suffix = host.strip_prefix('*').unwrap_or(host).strip_prefix('.');
        let name = DnsName::parse(suffix.unwrap_or(host)).map_err(|_| invalid())?;
        Ok(Self::Name { name, is_exact_too: suffix.is_none(), port })
    }

    fn has_address(&self, ip: IpAddr, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Range(range) => range.contains(&ip),
            Self::Address(own, only) => *own == ip && only.is_none_or(|only| only == port),
            Self::Name { .. } => false,
        }
    }

    fn has_name(&self, host: &str, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Range(_) | Self::Address(..) => false,
            Self::Name { name, is_exact_too, port: only } => {
                let is_name = (*is_exact_too && name.matches(host)) || is_below(host, name.as_str());
                is_name && only.is_none_or(|only| only == port)
            }
        }
    }
}

/// Whether a host is a subdomain of a name.
fn is_below(host: &str, name: &str) -> bool {
    let Some(split) = host.len().checked_sub(name.len()) else { return false };
    let (Some(head), Some(tail)) = (host.get(..split), host.get(split..)) else { return false };
    head.ends_with('.') && tail.eq_ignore_ascii_case(name)
}

impl fmt::Display for Entry {
    /// As [`NoProxy::parse`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = match self {
            Self::All => return f.write_str("*"),
            Self::Range(range) => return range.fmt(f),
            Self::Address(IpAddr::V6(ip), Some(port)) => return write!(f, "[{ip}]:{port}"),
            Self::Address(ip, port) => (ip.to_string(), port),
            Self::Name { name, is_exact_too, port } => {
                (format!("{}{name}", if *is_exact_too { "" } else { "." }), port)
            }
        };
        f.write_str(&host)?;
        port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl NoProxy {
    /// The entries as text.
    pub fn entries(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(Entry::to_string)
    }
}

impl Serialize for NoProxy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> NoProxy {
        NoProxy::parse(entries.iter().copied()).unwrap()
    }

    /// The cases of Go's `TestProxyForURL` and its documentation.
    #[test]
    fn names_are_compared_as_go_does() {
        for (entry, host, port, expected) in [
            ("example.com", "example.com", 80, true),
            ("example.com", "foo.example.com", 80, true),
            ("example.com", "EXAMPLE.com.", 80, true),
            ("example.com", "notexample.com", 80, false),
            (".example.com", "example.com", 80, false),
            (".example.com", "foo.example.com", 80, true),
            ("*.example.com", "foo.example.com", 80, true),
            ("*.example.com", "example.com", 80, false),
            ("example.com:8080", "example.com", 8080, true),
            ("example.com:8080", "example.com", 80, false),
            ("*", "anything", 1, true),
            ("192.168.1.0/24", "192.168.1.7", 80, true),
            ("192.168.1.0/24", "192.168.2.7", 80, false),
            ("192.168.1.1:443", "192.168.1.1", 443, true),
            ("192.168.1.1:443", "192.168.1.1", 80, false),
            ("fd00::/8", "fd12::1", 80, true),
            ("[fd00::1]:443", "fd00::1", 443, true),
            ("192.168.1.1", "::ffff:192.168.1.1", 443, true),
        ] {
            assert_eq!(list(&[entry]).has_host(host, port), expected, "{entry} {host}:{port}");
        }
    }

    #[test]
    fn loopback_is_always_direct() {
        let none = NoProxy::default();
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(none.has_host(host, 80), "{host}");
        }
        assert!(!none.has_host("localhost.example", 80));
        assert!(!none.has_address("10.0.0.1".parse().unwrap(), 80));
    }

    #[test]
    fn the_address_that_was_dialled_is_compared_with_addresses_and_ranges_only() {
        let list = list(&["10.0.0.0/8", "192.0.2.1:443", "example.com"]);
        let has = |ip: &str, port| list.has_address(ip.parse().unwrap(), port);
        assert!(has("10.9.9.9", 1) && has("::ffff:10.9.9.9", 1) && has("192.0.2.1", 443));
        assert!(!has("192.0.2.1", 80) && !has("198.51.100.1", 80));
    }

    #[test]
    fn entries_are_shown_as_they_are_parsed_and_others_are_refused() {
        let entries = ["*", "10.0.0.0/8", "10.0.0.1", "[fd00::1]:443", "a.example", ".b.example:80"];
        assert_eq!(list(&entries).entries().collect::<Vec<_>>(), entries);
        for text in ["", "a b", "10.0.0.0/33", "a:", "a:0", "a:70000", "http://a", "*a", "**"] {
            assert_eq!(NoProxy::parse([text]), Err(InvalidNoProxy(text.to_owned())));
        }
    }
}
