//! What a descriptor of requests consists of (Envoy: the actions of `config.route.v3.RateLimit`).

use std::borrow::Cow;
use std::iter;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::route::{FieldName, Pattern, RequestView, RouteError};

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescriptorPair {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Arc<str>,
}

/// One part of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum DescriptorEntry {
    /// The same for each request.
    Generic(DescriptorPair),
    /// Key `remote_address`, and the address of the client.
    RemoteAddress,
    /// The value of a field. A request without the field lacks the entry.
    Header {
        /// The field.
        field: DescribedField,
        /// The key.
        key: Arc<str>,
    },
    /// A key and value for the requests whose fields match. Another request lacks the entry.
    HeaderMatch(HeaderValueMatch),
}

/// Which requests have a key and value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderValueMatch {
    /// What they have.
    pub pair: DescriptorPair,
    /// The conditions, of which a request meets all, or with `is_expected: false` not all.
    pub conditions: Vec<FieldCondition>,
    /// Whether a request has to meet them.
    pub is_expected: bool,
}

/// A condition on a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldCondition {
    /// The field.
    pub field: DescribedField,
    /// What its value must be.
    pub test: FieldTest,
}

/// What the value of a field must be. A field that is absent meets only `Present(false)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FieldTest {
    /// This value.
    Exact(Arc<str>),
    /// A value that begins so.
    Prefix(Arc<str>),
    /// A value that ends so.
    Suffix(Arc<str>),
    /// A value that contains this.
    Contains(Arc<str>),
    /// A value that matches from its first to its last byte.
    Regex(Pattern),
    /// Whether the field is present, with any value.
    Present(bool),
}

/// A field of a request, or one of the pseudo-headers that Envoy has in the same map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DescribedField {
    /// `:method`.
    Method,
    /// `:path`: path and query.
    Path,
    /// `:authority`, or `host`.
    Authority,
    /// A header field.
    Named(FieldName),
}

/// The key of an address.
const REMOTE_ADDRESS: &str = "remote_address";
/// Maximum length of a regular expression (Gateway API: `HTTPHeaderMatch.value`).
const MOST_PATTERN: usize = 4096;

impl DescriptorEntry {
    /// Key and value for a request from this address; `None` if it lacks the entry.
    pub(super) fn of<'d>(
        &'d self,
        request: &'d impl RequestView,
        source: IpAddr,
    ) -> Option<(&'d str, Cow<'d, [u8]>)> {
        let pair = |pair: &'d DescriptorPair| (&*pair.key, Cow::Borrowed(pair.value.as_bytes()));
        match self {
            Self::Generic(generic) => Some(pair(generic)),
            Self::RemoteAddress => {
                Some((REMOTE_ADDRESS, source.to_canonical().to_string().into_bytes().into()))
            }
            Self::Header { field, key } => Some((key, field.value(request)?)),
            Self::HeaderMatch(header) => header.is_met(request).then(|| pair(&header.pair)),
        }
    }

    /// Number of its regular expressions.
    pub(super) fn expressions(&self) -> usize {
        let Self::HeaderMatch(header) = self else { return 0 };
        header.conditions.iter().filter(|condition| matches!(condition.test, FieldTest::Regex(_))).count()
    }
}

impl HeaderValueMatch {
    fn is_met(&self, request: &impl RequestView) -> bool {
        self.conditions.iter().all(|condition| condition.is_met(request)) == self.is_expected
    }
}

impl FieldCondition {
    fn is_met(&self, request: &impl RequestView) -> bool {
        let value = self.field.value(request);
        match (&self.test, value.as_deref()) {
            (FieldTest::Present(expected), value) => value.is_some() == *expected,
            (_, None) => false,
            (FieldTest::Exact(text), Some(value)) => value == text.as_bytes(),
            (FieldTest::Prefix(text), Some(value)) => value.starts_with(text.as_bytes()),
            (FieldTest::Suffix(text), Some(value)) => value.ends_with(text.as_bytes()),
            (FieldTest::Contains(text), Some(value)) => {
                text.is_empty() || value.windows(text.len()).any(|part| part == text.as_bytes())
            }
            (FieldTest::Regex(pattern), Some(value)) => pattern.matches(value),
        }
    }
}

impl FieldTest {
    /// A value that matches a regular expression (RE2) in full.
    pub fn regex(text: &str) -> Result<Self, RouteError> {
        let pattern = Pattern::parse(text, MOST_PATTERN);
        pattern.map(Self::Regex).map_err(|problem| RouteError::new("regex", text, problem))
    }

    /// The same without a compiled program, to be kept where no requests are matched.
    #[must_use]
    pub fn without_program(self) -> Self {
        match self {
            Self::Regex(pattern) => Self::Regex(pattern.without_program()),
            other => other,
        }
    }
}

impl DescribedField {
    /// Parses a name, in any case.
    pub fn parse(name: &str) -> Result<Self, RouteError> {
        Ok(match name {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" => Self::Authority,
            _ if name.eq_ignore_ascii_case("host") => Self::Authority,
            _ => Self::Named(FieldName::parse(name)?),
        })
    }

    /// Its name, in lower case.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Authority => ":authority",
            Self::Named(name) => name.as_str(),
        }
    }

    /// Its value in a request; several lines are one value, joined as by Envoy.
    fn value<'r>(&'r self, request: &'r impl RequestView) -> Option<Cow<'r, [u8]>> {
        let present = |value: &'r [u8]| (!value.is_empty()).then_some(Cow::Borrowed(value));
        match self {
            Self::Method => present(request.method()),
            Self::Authority => present(request.authority()),
            Self::Path => Some(match request.query() {
                None => request.path().into(),
                Some(query) => [request.path(), query].join(&b'?').into(),
            }),
            Self::Named(name) => {
                let separator: &[u8] = if name.as_str() == "cookie" { b"; " } else { b"," };
                let mut lines = request.field(name.as_str());
                let first = lines.next()?;
                let Some(second) = lines.next() else { return Some(first.into()) };
                let all: Vec<_> = iter::once(first).chain(iter::once(second)).chain(lines).collect();
                Some(all.join(separator).into())
            }
        }
    }
}
