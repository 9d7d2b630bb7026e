//! The form in which a client gets a local response: as text, or as the status of a gRPC call.

use std::fmt::Write as _;

use super::LocalReply;
use crate::http::headers::is_grpc;

/// What a request allows its local response to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum ReplyForm {
    /// Status and a text.
    Text,
    /// The same to `HEAD`: the text's length without the text.
    HeadOnly,
    /// A gRPC call gets `200` and a status of gRPC, without a body ("Trailers-Only" in gRPC's `PROTOCOL-HTTP2.md`). gRPC-Web
    /// is text: its clients map HTTP's status themselves.
    Grpc,
}

impl ReplyForm {
    /// For a request by this method. `content_type` is evaluated only where it matters.
    pub(in crate::http) fn of<'a>(method: &[u8], content_type: impl FnOnce() -> Option<&'a [u8]>) -> Self {
        match method {
            b"HEAD" => Self::HeadOnly,
            b"POST" if content_type().is_some_and(is_grpc) => Self::Grpc,
            _ => Self::Text,
        }
    }
}

impl LocalReply {
    /// The status of HTTP that the client gets.
    pub(in crate::http) fn status_in(&self, form: ReplyForm) -> u16 {
        if form == ReplyForm::Grpc { 200 } else { self.status }
    }

    /// The body that the client gets.
    pub(in crate::http) fn body_in(&self, form: ReplyForm) -> &'static str {
        if form == ReplyForm::Text { self.body } else { "" }
    }

    /// `grpc-status`.
    pub(in crate::http) fn grpc_status(&self) -> &'static str {
        grpc_status(self.status)
    }

    /// `grpc-message`.
    pub(in crate::http) fn grpc_message(&self) -> String {
        grpc_message(self.body.as_bytes())
    }
}

/// `grpc-status`: gRPC's mapping of HTTP's status (`http-grpc-status-mapping.md`), which Envoy has, too.
pub(in crate::http) fn grpc_status(status: u16) -> &'static str {
    match status {
        400 => "13",                   // INTERNAL
        401 => "16",                   // UNAUTHENTICATED
        403 => "7",                    // PERMISSION_DENIED
        404 => "12",                   // UNIMPLEMENTED
        429 | 502 | 503 | 504 => "14", // UNAVAILABLE
        _ => "2",                      // UNKNOWN
    }
}

/// `grpc-message`: a text, percent-encoded (gRPC's `PROTOCOL-HTTP2.md`).
pub(in crate::http) fn grpc_message(text: &[u8]) -> String {
    let mut message = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                // Writing to a string cannot fail.
                let _ = write!(message, "%{byte:02X}");
            }
            _ => message.push(char::from(*byte)),
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::local_reply::bad_request;

    #[test]
    fn only_calls_of_grpc_get_its_status() {
        let form = |method: &str, content_type: &'static str| {
            ReplyForm::of(method.as_bytes(), || Some(content_type.as_bytes()))
        };
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert_eq!(form("POST", content_type), ReplyForm::Grpc);
            assert_eq!(form("HEAD", content_type), ReplyForm::HeadOnly);
            assert_eq!(form("GET", content_type), ReplyForm::Text);
        }
        for content_type in ["application/grpc-web", "application/grpc-web+proto", "application/json", ""] {
            assert_eq!(form("POST", content_type), ReplyForm::Text);
        }
        assert_eq!(ReplyForm::of(b"POST", || None), ReplyForm::Text);
    }

    #[test]
    fn a_status_of_http_maps_to_one_of_grpc() {
        let map = |status| LocalReply { status, ..bad_request("") }.grpc_status();
        let expected = [
            (400, "13"),
            (401, "16"),
            (403, "7"),
            (404, "12"),
            (408, "2"),
            (429, "14"),
            (500, "2"),
            (502, "14"),
            (503, "14"),
            (504, "14"),
        ];
        for (status, grpc) in expected {
            assert_eq!(map(status), grpc, "{status}");
        }
    }

    #[test]
    fn a_message_is_percent_encoded() {
        let message = |body| LocalReply { body, ..bad_request("") }.grpc_message();
        assert_eq!(message("RBAC: access denied"), "RBAC: access denied");
        assert_eq!(message("100 %\n~\u{7f}\u{e4}"), "100 %25%0A~%7F%C3%A4");
    }
}
