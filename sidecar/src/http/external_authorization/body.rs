//! The part of a request's body that the server gets.
//!
//! A codec reads it before the check begins, and keeps it for the app. It must come within the time of a check: a client that
//! waits for an answer before it sends more is not left waiting.

use std::time::Duration;

use ::http::StatusCode;
use tidegate_core::policy::{CheckedBody, Reason};

use super::{AuthorizationCheck, CheckError, CheckVerdict, RefusalResponse};
use crate::grpc::text;
use crate::telemetry::Telemetry;

/// Says whether the server gets only the beginning of the body, as from Envoy.
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// What was read of a body.
pub(in crate::http) struct BodyPart {
    /// At least as much as the server gets, unless the body is shorter or late.
    pub(in crate::http) bytes: Vec<u8>,
    pub(in crate::http) end: BodyPartEnd,
}

/// Why no more of a body was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum BodyPartEnd {
    /// It is all of the body.
    Whole,
    /// It is more than the server gets.
    Longer,
    /// The rest did not come in time.
    Late,
}

impl AuthorizationCheck {
    /// How much of the body must be read before the check, and within which time; `None`: nothing.
    pub(in crate::http) fn wants_body(&self) -> Option<(usize, Duration)> {
        let body = self.server.body.as_ref()?;
        Some((usize::try_from(body.most_bytes).unwrap_or(usize::MAX), self.server.timeout))
    }

    /// Adds the part of the body; the error is the verdict on a request whose body the server cannot get.
    pub(in crate::http) fn with_body(
        mut self,
        part: BodyPart,
        telemetry: &Telemetry,
    ) -> Result<Self, CheckVerdict> {
        let Some(CheckedBody { most_bytes, allow_partial, as_bytes }) = self.server.body else {
            return Ok(self);
        };
        let is_partial = part.end != BodyPartEnd::Whole;
        match part.end {
            BodyPartEnd::Longer if !allow_partial => {
                let response = RefusalResponse::of_status(StatusCode::PAYLOAD_TOO_LARGE);
                return Err(self.refuse(Reason::ExternalAuthorizationBodyTooLarge, response));
            }
            BodyPartEnd::Late if !allow_partial => {
                return Err(self.failed(CheckError::BodyTimeout, telemetry));
            }
            BodyPartEnd::Whole | BodyPartEnd::Longer | BodyPartEnd::Late => {}
        }
        let mut bytes = part.bytes;
        bytes.truncate(usize::try_from(most_bytes).unwrap_or(usize::MAX));
        let request = self.message.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
        if let Some(http) = request.and_then(|request| request.http.as_mut()) {
            http.headers.insert(PARTIAL.to_owned(), is_partial.to_string());
            if as_bytes {
                http.raw_body = bytes;
            } else {
                http.body = text(&bytes);
            }
        }
        Ok(self)
    }
}
