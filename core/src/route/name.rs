//! Names of route resources.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::error::{Problem, RouteError};

/// Maximum length of a name in bytes.
const MAX_NAME: usize = 512;

/// The name of routes that are sent and replaced as one resource. Destinations refer to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RoutesName(Arc<str>);

impl RoutesName {
    /// Checks a name: visible ASCII, at most 512 bytes.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let problem = match text.len() {
            0 => Problem::Empty,
            1..=MAX_NAME if text.bytes().all(|byte| byte.is_ascii_graphic()) => return Ok(Self(text.into())),
            1..=MAX_NAME => Problem::NotVisible,
            _ => Problem::TooLong(MAX_NAME),
        };
        Err(RouteError::new("routes", text, problem))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoutesName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_visible() {
        assert_eq!(RoutesName::parse("Service/shop/cart:80").unwrap().to_string(), "Service/shop/cart:80");
        for (text, problem) in [
            ("", Problem::Empty),
            ("a b", Problem::NotVisible),
            ("ä", Problem::NotVisible),
            (&"x".repeat(513), Problem::TooLong(512)),
        ] {
            assert_eq!(RoutesName::parse(text).unwrap_err().problem, problem, "{text}");
        }
    }
}
