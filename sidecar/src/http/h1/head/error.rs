//! Why a head is refused, and the response to such a request.

use crate::http::local_reply::{self, LocalReply};

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A line that ends in a bare line feed.
    #[error("line feed without carriage return")]
    BareLineFeed,
    /// Not a `method target version` line, a method that is not a token, or too many empty lines before it.
    #[error("malformed first line")]
    FirstLine,
    /// A target in none of the forms of RFC 9112 §3.2, or one that the method does not allow.
    #[error("malformed request target")]
    Target,
    /// A version other than 1.0 and 1.1.
    #[error("unsupported version")]
    Version,
    /// A field name that is not a token, whitespace before the colon, or a folded line.
    #[error("malformed field name")]
    FieldName,
    /// A control character in a field's value.
    #[error("malformed field value")]
    FieldValue,
    /// A folded line in a field that frames, routes or names other fields.
    #[error("folded line")]
    FoldedLine,
    /// The head exceeds the limit in bytes.
    #[error("head too large")]
    TooLarge,
    /// The first line exceeds the limit in bytes.
    #[error("request target too long")]
    TargetTooLong,
    /// Too many header fields.
    #[error("too many fields")]
    TooManyFields,
    /// `host` missing, repeated, or neither empty nor a host with an optional port.
    #[error("missing, repeated or malformed host")]
    Host,
    /// `content-length` that is not a single number.
    #[error("malformed content-length")]
    ContentLength,
    /// `transfer-encoding` other than `chunked`, or in HTTP/1.0.
    #[error("unsupported transfer-encoding")]
    TransferEncoding,
    /// Both `content-length` and `transfer-encoding`.
    #[error("both content-length and transfer-encoding")]
    TwoFramings,
    /// `connection` with too many options.
    #[error("too many connection options")]
    ConnectionOptions,
    /// `CONNECT`.
    #[error("CONNECT is not served")]
    Connect,
}

impl HeadError {
    /// The response to a request whose head is refused.
    pub(crate) fn reply(self) -> LocalReply {
        match self {
            Self::Version => local_reply::version_not_supported(),
            Self::Connect => local_reply::method_not_allowed(),
            Self::TargetTooLong => local_reply::uri_too_long(),
            Self::TooLarge => local_reply::header_fields_too_large("http1.headers_too_large"),
            Self::TooManyFields => local_reply::header_fields_too_large("http1.too_many_headers"),
            Self::BareLineFeed => local_reply::bad_request("http1.bare_line_feed"),
            Self::FirstLine => local_reply::bad_request("http1.codec_error"),
            Self::Target => local_reply::bad_request("http1.invalid_url"),
            Self::FieldName | Self::FieldValue => local_reply::bad_request("http1.invalid_header"),
            Self::FoldedLine => local_reply::bad_request("http1.folded_line"),
            Self::Host => local_reply::bad_request("http1.invalid_host"),
            Self::ContentLength => local_reply::bad_request("http1.invalid_content_length"),
            Self::TransferEncoding => local_reply::bad_request("http1.invalid_transfer_encoding"),
            Self::TwoFramings => local_reply::bad_request("http1.content_length_and_chunked_not_allowed"),
            Self::ConnectionOptions => local_reply::bad_request("http1.too_many_connection_options"),
        }
    }
}
