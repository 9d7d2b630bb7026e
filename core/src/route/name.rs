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

    /// `<namespace>/<name>` of the object whose clients get the routes, as in `<kind>/<namespace>/<name>:<port>`. All of any
    /// other name.
    pub fn owner(&self) -> &str {
        let owner = self.0.split_once('/').and_then(|(_, rest)| rest.rsplit_once(':'));
        owner.map_or(&self.0, |(owner, _)| owner)
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
        let name = RoutesName::parse("Service/shop/cart:80").unwrap();
        assert_eq!((name.to_string().as_str(), name.owner()), ("Service/shop/cart:80", "shop/cart"));
        assert_eq!(RoutesName::parse("cart").unwrap().owner(), "cart");
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
