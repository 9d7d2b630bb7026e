//! Credentials for a proxy.

use std::fmt;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Serialize;

/// Basic credentials (RFC 7617) as the value of `Proxy-Authorization`. Neither `Debug` nor the JSON form shows them.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyCredentials(Arc<str>);

/// A user or password that Basic credentials cannot have (RFC 7617 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCredentials {
    /// The first colon separates user and password.
    #[error("the username must not contain ':'")]
    Colon,
    /// Control characters are not allowed.
    #[error("{0} must not contain control characters")]
    Control(&'static str),
    /// The user is missing.
    #[error("the username must not be empty")]
    Empty,
    /// They would not fit into a header field.
    #[error("username and password must have at most {MAX_LENGTH} bytes together")]
    TooLong,
}

/// Shown in place of credentials.
const REDACTED: &str = "<redacted>";

/// The most bytes of user and password together.
const MAX_LENGTH: usize = 1024;

impl ProxyCredentials {
    /// Basic credentials, in UTF-8.
    pub fn basic(user: &str, password: &str) -> Result<Self, InvalidCredentials> {
        if user.is_empty() {
            return Err(InvalidCredentials::Empty);
        }
        if user.contains(':') {
            return Err(InvalidCredentials::Colon);
        }
        for (what, text) in [("the username", user), ("the password", password)] {
            if text.chars().any(char::is_control) {
                return Err(InvalidCredentials::Control(what));
            }
        }
        if user.len() + password.len() > MAX_LENGTH {
            return Err(InvalidCredentials::TooLong);
        }
        Ok(Self(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))).into()))
    }

    /// From the value of a `Proxy-Authorization` field; `None` unless it can be one.
    pub fn from_authorization(value: &str) -> Option<Self> {
        let is_value = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        (is_value && value.starts_with("Basic ") && value.len() <= 2 * MAX_LENGTH).then(|| Self(value.into()))
    }

    /// The value of `Proxy-Authorization`.
    pub fn authorization(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProxyCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for ProxyCredentials {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_encoded_as_rfc_7617_has_it() {
        let encoded =
            |user, password| ProxyCredentials::basic(user, password).map(|it| it.authorization().to_owned());
        assert_eq!(encoded("Aladdin", "open sesame").unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(encoded("test", "123£").unwrap(), "Basic dGVzdDoxMjPCow==");
        assert_eq!(encoded("a", "b:c").unwrap(), "Basic YTpiOmM=");
        assert_eq!(encoded("a:b", "c"), Err(InvalidCredentials::Colon));
        assert_eq!(encoded("", "c"), Err(InvalidCredentials::Empty));
        assert_eq!(encoded("a", "c\r\nx: y"), Err(InvalidCredentials::Control("the password")));
        assert_eq!(encoded("a", &"x".repeat(1024)), Err(InvalidCredentials::TooLong));
    }

    #[test]
    fn credentials_are_never_shown() {
        let credentials = ProxyCredentials::basic("mesh", "s3cret").unwrap();
        assert_eq!(format!("{credentials:?}"), "<redacted>");
        assert_eq!(serde_json::to_string(&credentials).unwrap(), "\"<redacted>\"");
    }

    #[test]
    fn a_value_from_the_wire_must_fit_into_a_field() {
        let credentials = ProxyCredentials::basic("mesh", "s3cret").unwrap();
        let value = credentials.authorization();
        assert_eq!(ProxyCredentials::from_authorization(value), Some(credentials.clone()));
        for value in ["", "Bearer x", "Basic x\r\ny: z"] {
            assert_eq!(ProxyCredentials::from_authorization(value), None, "{value:?}");
        }
    }
}
