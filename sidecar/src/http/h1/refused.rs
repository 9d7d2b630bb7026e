//! Why an app's response cannot be forwarded, in the form of the access log's response code details.

use std::fmt::Write as _;

use super::body::BodyError;
use super::head::{FieldLine, HeadError, field_lines};
use crate::http::headers::{Field, classify};

/// Maximum bytes of a field name that are logged.
const MAX_NAME: usize = 64;

/// What is wrong with an app's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerError {
    /// The head is invalid.
    Head(HeadError),
    /// The body is invalid.
    Body(BodyError),
    /// `101` to a request that did not ask for an upgrade.
    UnaskedSwitch,
    /// `101` without an `upgrade` field that names the new protocol (RFC 9110 §7.8).
    NamelessSwitch,
    /// `101` to a protocol that the request did not offer.
    OtherSwitch,
}

impl AnswerError {
    /// `upstream_reset_before_response_started{protocol_error:CAUSE}` or `{protocol_error:CAUSE:FIELD}`. `head`: what
    /// was received of a response whose head is refused. `has_begun`: the client has received the beginning of the
    /// response.
    pub(super) fn details(self, head: &[u8], has_begun: bool) -> String {
        let moment = if has_begun { "after" } else { "before" };
        let mut details = format!("upstream_reset_{moment}_response_started{{protocol_error:");
        details.push_str(self.cause(head));
        if let Some(name) = self.field(head) {
            // Writing to a string cannot fail.
            let _ = write!(details, ":{}", name.get(..MAX_NAME).unwrap_or(name).escape_ascii());
        }
        details.push('}');
        details
    }

    fn cause(self, head: &[u8]) -> &'static str {
        match self {
            // A TLS record: an alert, or a handshake.
            Self::Head(_) if matches!(head, [0x15 | 0x16, 3, ..]) => "tls",
            Self::Head(HeadError::FirstLine | HeadError::Version) if !head.starts_with(b"HTTP/") => {
                "not_http"
            }
            Self::Head(error) => error.reply().details,
            Self::Body(error) => error.details(),
            Self::UnaskedSwitch => "http1.unexpected_101",
            Self::NamelessSwitch => "http1.101_without_upgrade",
            Self::OtherSwitch => "http1.101_to_another_protocol",
        }
    }

    fn field(self, head: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Head(HeadError::ContentLength) => Some(b"content-length"),
            Self::Head(HeadError::TransferEncoding | HeadError::TwoFramings) => Some(b"transfer-encoding"),
            Self::Head(HeadError::ConnectionOptions) => Some(b"connection"),
            Self::Head(HeadError::FieldName | HeadError::FieldValue | HeadError::FoldedLine) => {
                malformed_field(head)
            }
            Self::NamelessSwitch | Self::OtherSwitch => Some(b"upgrade"),
            Self::Head(_) | Self::Body(_) | Self::UnaskedSwitch => None,
        }
    }
}

/// The name of the first field that is malformed, or folded where it must not be, as far as it was received.
fn malformed_field(head: &[u8]) -> Option<&[u8]> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    let is_malformed = |line: &FieldLine<'_>| {
        if line.is_folded {
            return classify(line.name) != Field::Other;
        }
        let is_named = !line.name.is_empty() && line.name.iter().all(is_token);
        !is_named || line.value.is_empty() || !line.value.iter().all(is_text)
    };
    field_lines(head).find(is_malformed).map(|line| line.name)
}
