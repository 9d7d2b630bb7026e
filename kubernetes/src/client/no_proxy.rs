//! `NO_PROXY`: the hosts to connect to directly.

use std::net::IpAddr;

use ipnet::IpNet;

/// A list of hosts, with the same syntax as in Go and curl.
#[derive(Debug, Default)]
pub(super) struct NoProxy(Vec<NoProxyEntry>);

/// One entry of the list. Ranges match addresses only, names match names only; nothing is resolved.
#[derive(Debug)]
enum NoProxyEntry {
    Everything,
    Range(IpNet),
    Address(IpAddr, Option<u16>),
    /// A name and its subdomains; only the subdomains if it was written with a leading dot.
    Domain {
        name: String,
        is_below_only: bool,
        port: Option<u16>,
    },
}

impl NoProxy {
    /// Parses a list separated by commas or whitespace. An entry that is neither an address nor a range is a name.
    pub(super) fn parse(list: &str) -> Self {
        let words = list.split([',', ' ', '\t']).map(str::trim).filter(|word| !word.is_empty());
        Self(words.map(NoProxyEntry::parse).collect())
    }

    /// Whether to connect directly to a host, by name or address, at this port.
    pub(super) fn covers(&self, host: &str, port: u16) -> bool {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        self.0.iter().any(|entry| entry.covers(&host, address, port))
    }
}

impl NoProxyEntry {
    /// Never fails: a word that is nothing else is a name, as in Go's `httpproxy`.
    fn parse(word: &str) -> Self {
        if word == "*" {
            return Self::Everything;
        }
        if let Ok(range) = word.parse::<IpNet>() {
            return Self::Range(range);
        }
        if let Ok(address) = word.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Self::Address(address, None);
        }
        let (host, port) = match word.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
            _ => (word, None),
        };
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Self::Address(address, port);
        }
        let host = host.strip_prefix('*').unwrap_or(host).to_ascii_lowercase();
        let name = host.trim_matches('.').to_owned();
        Self::Domain { is_below_only: host.starts_with('.'), name, port }
    }

    /// `host` is in lower case and without brackets; `address` is what it parses as.
    fn covers(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let is_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Self::Everything => true,
            Self::Range(range) => address.is_some_and(|address| range.contains(&address)),
            Self::Address(wanted, at) => address == Some(*wanted) && is_port(at),
            Self::Domain { name, is_below_only, port: at } => {
                let is_below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                is_port(at) && address.is_none() && (is_below || (!is_below_only && host == name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_covered_by_name_suffix_address_range_and_port() {
        for (list, host, port, expected) in [
            ("*", "api.test", 443, true),
            ("api.test", "api.test", 443, true),
            ("api.test", "x.api.test", 443, true),
            ("api.test", "xapi.test", 443, false),
            (".test", "api.test", 443, true),
            (".api.test", "api.test", 443, false),
            ("*.test", "api.test", 443, true),
            ("API.test.", "api.TEST", 443, true),
            ("api.test:6443", "api.test", 6443, true),
            ("api.test:6443", "api.test", 443, false),
            ("a.test, 10.0.0.1", "10.0.0.1", 443, true),
            ("10.0.0.1:6443", "10.0.0.1", 443, false),
            ("10.96.0.0/12", "10.96.0.1", 443, true),
            ("10.96.0.0/12", "10.0.0.1", 443, false),
            ("fd00::/8", "[fd00::1]", 443, true),
            ("[fd00::1]:443", "fd00::1", 443, true),
            ("0.1", "10.0.0.1", 443, false),
            ("", "api.test", 443, false),
        ] {
            assert_eq!(NoProxy::parse(list).covers(host, port), expected, "{list:?} {host} {port}");
        }
    }
}
