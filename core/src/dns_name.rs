//! DNS names in the normal form that Tidegate compares: lower case, without a trailing dot.

use std::fmt;

/// A DNS name in normal form: lower case, no trailing dot, labels of letters, digits, `-` and `_`.
///
/// At most 253 bytes, labels of 1 to 63 bytes (RFC 1035 §2.3.4). For wildcards see [`DnsPattern`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(Box<str>);

/// A pattern for host names: an exact name, or `*.` and a suffix. `*` stands for one or more whole labels.
///
/// `*.bar.example` matches `a.bar.example` and `a.b.bar.example`, but not `bar.example` or `abar.example`. These are the
/// rules of Envoy's `server_names`, which define `IngressBackend.spec.backends[].tls.sniHosts`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DnsPattern {
    /// This name only.
    Exact(DnsName),
    /// Any name that ends with a dot and this name.
    Suffix(DnsName),
}

/// Why a text is not a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    /// The text is empty, or a single dot.
    #[error("a DNS name must not be empty")]
    Empty,
    /// More than 253 bytes.
    #[error("a DNS name has at most 253 bytes, this one has {0}")]
    TooLong(usize),
    /// A label is empty or longer than 63 bytes.
    #[error("label {0:?} of {1:?} must have 1 to 63 bytes")]
    BadLabel(String, String),
    /// A byte that is not allowed in a host name, such as NUL, a space or a wildcard.
    #[error("{0:?} contains a character that is not allowed in a DNS name")]
    BadCharacter(String),
}

impl DnsName {
    /// Parses and normalises: lower-cases ASCII and drops one trailing dot.
    pub fn parse(text: &str) -> Result<Self, DnsNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(DnsNameError::Empty);
        }
        if name.len() > 253 {
            return Err(DnsNameError::TooLong(name.len()));
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(DnsNameError::BadLabel(label.to_owned(), text.to_owned()));
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(DnsNameError::BadCharacter(text.to_owned()));
            }
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text from the wire names the same host. Does not allocate.
    pub fn matches(&self, text: &str) -> bool {
        text.strip_suffix('.').unwrap_or(text).eq_ignore_ascii_case(&self.0)
    }
}

impl DnsPattern {
    /// Parses `name` or `*.name`.
    pub fn parse(text: &str) -> Result<Self, DnsNameError> {
        match text.strip_prefix("*.") {
            Some(suffix) => DnsName::parse(suffix).map(Self::Suffix),
            None => DnsName::parse(text).map(Self::Exact),
        }
    }

    /// Whether a host name from the wire matches this pattern. Does not allocate.
    pub fn matches(&self, text: &str) -> bool {
        let text = text.strip_suffix('.').unwrap_or(text);
        match self {
            Self::Exact(name) => name.matches(text),
            Self::Suffix(suffix) => {
                let Some(split) = text.len().checked_sub(suffix.0.len()) else { return false };
                let (Some(head), Some(tail)) = (text.get(..split), text.get(split..)) else { return false };
                head.len() > 1 && head.ends_with('.') && suffix.matches(tail)
            }
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DnsName({})", self.0)
    }
}

impl fmt::Display for DnsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Suffix(name) => write!(f, "*.{name}"),
        }
    }
}

impl serde::Serialize for DnsName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl serde::Serialize for DnsPattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_one_trailing_dot_are_ignored() {
        assert_eq!(DnsName::parse("A.b.Example.").unwrap(), DnsName::parse("a.B.example").unwrap());
        assert!(DnsName::parse("a.b").unwrap().matches("A.B."));
        assert!(!DnsName::parse("a.b").unwrap().matches("a.b.."));
    }

    #[test]
    fn a_text_that_is_not_a_host_name_is_refused() {
        for text in ["", ".", "a..b", "a b", "a\0.b", "*.a", "a.*", "a/b", "ä.b", ".a", &"x".repeat(64)] {
            assert!(DnsName::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_dot_in_a_name_is_a_dot() {
        assert!(!DnsName::parse("a.b.ns").unwrap().matches("aXb.ns"));
    }

    #[test]
    fn a_suffix_pattern_matches_whole_labels_only() {
        let pattern = DnsPattern::parse("*.bar.example").unwrap();
        for (name, expected) in [
            ("a.bar.example", true),
            ("a.b.bar.example", true),
            ("A.BAR.example.", true),
            ("bar.example", false),
            (".bar.example", false),
            ("abar.example", false),
            ("bar.example.org", false),
            ("äbar.example", false),
        ] {
            assert_eq!(pattern.matches(name), expected, "{name}");
        }
        assert!(DnsPattern::parse("*").is_err());
        assert!(DnsPattern::parse("f*o.example").is_err());
    }
}
