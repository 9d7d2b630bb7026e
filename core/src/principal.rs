//! Principals of policies (`AuthenticatedPrincipal`), and their comparison with the names in a certificate.

use std::fmt;

use crate::dns_name::DnsName;
use crate::san::San;

/// A name that a client certificate must contain. Compared only with names of the same type, and exactly: the only
/// wildcard is a lone `*`, and neither suffixes nor regular expressions match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// `*`: any certificate issued by the mesh's CA.
    Any,
    /// A DNS name such as `ingress-nginx.ingress-nginx.cluster.local`; matches DNS names only.
    Dns(DnsName),
    /// A URI such as `spiffe://cluster.local/ns/ingress-nginx/sa/ingress-nginx`; matches URIs only.
    Uri(Box<str>),
    /// Any other text, such as `*.cluster.local`. Matches nothing; kept so that logs and statuses can show it.
    Unmatchable(Box<str>),
}

impl Principal {
    /// Parses a principal of a policy: `*` is any certificate, a text with `://` a URI, anything else a DNS name.
    pub fn parse(text: &str) -> Self {
        if text == "*" {
            Self::Any
        } else if text.contains("://") {
            let clean = text.is_ascii() && !text.bytes().any(|b| b.is_ascii_control() || b == b' ');
            if clean { Self::Uri(text.into()) } else { Self::Unmatchable(text.into()) }
        } else {
            DnsName::parse(text).map_or_else(|_| Self::Unmatchable(text.into()), Self::Dns)
        }
    }

    /// Whether a verified certificate with these names contains this principal.
    pub fn matches(&self, sans: &[San]) -> bool {
        match self {
            Self::Any => true,
            Self::Dns(wanted) => sans.iter().any(|san| matches!(san, San::Dns(name) if name == wanted)),
            Self::Uri(wanted) => sans.iter().any(|san| matches!(san, San::Uri(uri) if uri == wanted)),
            Self::Unmatchable(_) => false,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Dns(name) => name.fmt(f),
            Self::Uri(text) | Self::Unmatchable(text) => f.write_str(text),
        }
    }
}

impl serde::Serialize for Principal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_in_another_type_of_name_does_not_match() {
        let text = "ingress-nginx.ingress-nginx.cluster.local";
        let principal = Principal::parse(text);
        assert!(principal.matches(&[San::Email("x".into()), San::Dns(DnsName::parse(text).unwrap())]));
        for san in [San::Uri(text.into()), San::Email(text.into()), San::DnsWildcard(text.into()), San::Other]
        {
            assert!(!principal.matches(std::slice::from_ref(&san)), "{san}");
        }
        let uri = "spiffe://cluster.local/ns/a/sa/b";
        assert!(Principal::parse(uri).matches(&[San::Uri(uri.into())]));
        assert!(!Principal::parse(uri).matches(&[San::Email(uri.into())]));
    }

    #[test]
    fn a_principal_is_not_a_pattern() {
        let sans = [San::Dns(DnsName::parse("axb.ns.cluster.local").unwrap())];
        for text in
            ["a.b.ns.cluster.local", "*.cluster.local", "a?b.ns.cluster.local", ".*", "cluster.local", ""]
        {
            assert!(!Principal::parse(text).matches(&sans), "{text:?}");
        }
        assert!(Principal::parse("*").matches(&sans));
    }

    #[test]
    fn dns_principals_ignore_case_and_one_trailing_dot() {
        let sans = [San::Dns(DnsName::parse("SA.ns.cluster.local.").unwrap())];
        assert!(Principal::parse("sa.NS.Cluster.Local").matches(&sans));
    }
}
