//! Names and values of header fields, and method tokens (RFC 9110 §5.1, §5.5, §9.1).

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::error::{Problem, RouteError};

/// Maximum length of a header's name (Gateway API: 256).
const MAX_NAME: usize = 256;
/// Maximum length of a header's value (Gateway API: 4096).
const MAX_VALUE: usize = 4096;
/// Maximum length of a method; the longest registered one has 17 bytes.
const MAX_METHOD: usize = 32;

/// A header's name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct FieldName(Arc<str>);

/// A header's value: visible ASCII, blanks between, and bytes above ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct FieldValue(Arc<str>);

/// A method, case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Method(Arc<str>);

impl FieldName {
    /// Parses a name, in any case. Pseudo-headers (`:path`) are not names.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        check(text.len() <= MAX_NAME, "name", text, Problem::TooLong(MAX_NAME))?;
        check(is_token(text), "name", text, Problem::FieldName)?;
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name from the wire, in any case, is this one.
    pub fn matches(&self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(self.0.as_bytes())
    }
}

impl FieldValue {
    /// Checks a value.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        check(text.len() <= MAX_VALUE, "value", text, Problem::TooLong(MAX_VALUE))?;
        let is_clean = text.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
        check(is_clean && text.trim_matches([' ', '\t']) == text, "value", text, Problem::FieldValue)?;
        Ok(Self(text.into()))
    }

    /// The value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Method {
    /// Checks a method.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        check(text.len() <= MAX_METHOD, "method", text, Problem::TooLong(MAX_METHOD))?;
        check(is_token(text), "method", text, Problem::Method)?;
        Ok(Self(text.into()))
    }

    /// The method.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(is_met: bool, field: &str, value: &str, problem: Problem) -> Result<(), RouteError> {
    if is_met { Ok(()) } else { Err(RouteError::new(field, value, problem)) }
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_in_any_case() {
        assert_eq!(FieldName::parse("X-Version").unwrap().as_str(), "x-version");
        assert!(FieldName::parse("x-version").unwrap().matches(b"X-VERSION"));
        for text in ["", ":path", "a b", "a:", "ä", "a\n"] {
            let error = FieldName::parse(text).unwrap_err();
            assert_eq!((error.field.as_str(), error.problem), ("name", Problem::FieldName), "{text:?}");
        }
        assert_eq!(FieldName::parse(&"x".repeat(257)).unwrap_err().problem, Problem::TooLong(256));
    }

    #[test]
    fn a_value_holds_no_line_break_and_no_blanks_around_it() {
        for text in ["", "a", "a b\tc", "ä", "\"x\""] {
            assert_eq!(FieldValue::parse(text).unwrap().as_str(), text);
        }
        for text in ["a\r\nb", " a", "a ", "a\0", "\x7f", "\t"] {
            assert_eq!(FieldValue::parse(text).unwrap_err().problem, Problem::FieldValue, "{text:?}");
        }
    }

    #[test]
    fn a_method_is_a_token_in_its_own_case() {
        assert_eq!(Method::parse("GET").unwrap().as_str(), "GET");
        assert_ne!(Method::parse("get").unwrap(), Method::parse("GET").unwrap());
        let error = Method::parse("GE T").unwrap_err();
        assert_eq!(error.to_string(), "method: \"GE T\" is not a method");
    }
}
