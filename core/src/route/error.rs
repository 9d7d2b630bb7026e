//! Errors in routes.

use std::fmt::Display;

/// An invalid value of a route, with its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} {problem}")]
pub struct RouteError {
    /// Path of the field, such as `rules[0].matches[1].path.value`.
    pub field: String,
    /// The value as it was written.
    pub value: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a value. The text continues a sentence that begins with the value: `"abc" does not start with
/// "/"`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A path without its slash.
    #[error("does not start with \"/\"")]
    NoSlash,
    /// A path with a query or a fragment.
    #[error("must be a path without a query or a fragment")]
    NotAPath,
    /// A path that is not in normal form, so that no request has it.
    #[error("never matches: requests are brought into the form {0:?} first")]
    NotNormal(String),
    /// A path that has no normal form.
    #[error("{0}")]
    Path(#[from] crate::path::PathError),
    /// Longer than the limit, in bytes.
    #[error("has more than {0} bytes")]
    TooLong(usize),
    /// A regular expression that cannot be parsed.
    #[error("is not a regular expression: {0}")]
    Regex(String),
    /// A regular expression with another meaning in RE2.
    #[error("is not a regular expression of RE2: {0}")]
    NotRe2(&'static str),
    /// A regular expression whose program is too large.
    #[error("is too large a regular expression: it compiles to more than {0} bytes")]
    RegexTooLarge(usize),
    /// A regular expression for paths with a character that does not occur in normal form.
    #[error("never matches: a path is ASCII in its normal form; write {0:?} percent-encoded")]
    NotAscii(char),
    /// Not a host.
    #[error("is not a host name, \"*.\" and a host name, an IP address or \"*\"")]
    Host,
    /// Not a field name (RFC 9110 §5.1).
    #[error("is not a header name")]
    FieldName,
    /// Not a field value (RFC 9110 §5.5).
    #[error("is not a header value: it has a control character, or starts or ends with a blank")]
    FieldValue,
    /// A header that routes may not change.
    #[error("is a header that routes may not change: {0}")]
    ProtectedField(&'static str),
    /// Not a method (RFC 9110 §9.1).
    #[error("is not a method")]
    Method,
    /// Not the name of a gRPC service or method.
    #[error("is not the name of a gRPC service or method")]
    RpcName,
    /// A name with a character that is not visible ASCII.
    #[error("has a character that is not visible ASCII")]
    NotVisible,
    /// Empty or zero where a value is required.
    #[error("must not be empty or zero")]
    Empty,
    /// A number above its limit.
    #[error("is more than {0}")]
    TooLarge(u64),
    /// A status outside its range.
    #[error("is not a status of {0}")]
    Status(&'static str),
    /// A fraction above one, or with denominator 0.
    #[error("is not a fraction between 0 and 1")]
    Fraction,
    /// `backendRequest` longer than `request`.
    #[error("is longer than timeouts.request")]
    LongerThanRequest,
    /// A maximum below its base.
    #[error("is less than the base interval")]
    BelowBase,
    /// A word outside a vocabulary.
    #[error("is not one of {0}")]
    UnknownWord(&'static str),
    /// `replacePrefixMatch` in a rule that does not match by one prefix.
    #[error("needs the rule to have exactly one match, and that one a path prefix")]
    NeedsPrefix,
    /// A filter that excludes another filter or the rule's action.
    #[error("cannot be combined with {0}")]
    Conflict(&'static str),
    /// A filter that a rule may have only once.
    #[error("occurs twice in the rule")]
    Repeated,
}

impl RouteError {
    pub(crate) fn new(field: &str, value: impl Display, problem: impl Into<Problem>) -> Self {
        Self { field: field.to_owned(), value: value.to_string(), problem: problem.into() }
    }

    /// Prepends the parent's field: `path.value` in `matches[0]` is `matches[0].path.value`.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.field = format!("{parent}.{}", self.field);
        self
    }
}
