//! What a server that users run decides about a request: to forward it, with edits, or to refuse it, with a response.

mod edits;

use std::rc::Rc;

use ::http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap};
use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use tidegate_core::policy::{Decision, Denial};
use tidegate_core::route::filter::HeaderEdits;

pub(super) use self::edits::{Edits, QueryEdits};
use super::local_reply::{grpc_message, grpc_status};
use crate::telemetry::ResponseFlag;

/// The longest message of a refused gRPC call, in bytes of the body.
const MOST_MESSAGE: usize = 1024;

/// The outcome of a check.
pub(super) enum CheckVerdict {
    /// It is forwarded.
    Allow(Allowance),
    /// It is refused.
    Refuse(Box<Refusal>),
}

/// A request that is forwarded.
#[derive(Default)]
pub(super) struct Allowance {
    /// The changes to it and its response.
    pub(super) edits: Option<Box<Edits>>,
    /// What the log says in place of the policy's decision: that audit mode has it forwarded.
    pub(super) report: Option<Rc<Decision>>,
}

/// A request that is refused.
pub(super) struct Refusal {
    /// For logs and counts.
    pub(super) decision: Rc<Decision>,
    /// What the client gets.
    pub(super) response: RefusalResponse,
    /// Response flag in the access log.
    pub(super) flag: ResponseFlag,
    /// A stable identifier for the access log.
    pub(super) details: &'static str,
}

/// A response of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusalResponse {
    pub(super) status: StatusCode,
    /// Without `content-length`.
    pub(super) fields: HeaderMap,
    pub(super) body: Bytes,
}

impl Allowance {
    /// What this allowance and then another one mean.
    pub(super) fn then(self, next: Self) -> Self {
        let edits = match (self.edits, next.edits) {
            (Some(first), Some(next)) => Some(Box::new(first.then(*next))),
            (first, next) => first.or(next),
        };
        Self { edits, report: self.report.or(next.report) }
    }
}

impl Refusal {
    /// The refusal for this reason.
    pub(super) fn new(denial: Denial, response: RefusalResponse, details: &'static str) -> Box<Self> {
        let flag = ResponseFlag::of_refusal(&denial.reason);
        Box::new(Self { decision: Rc::new(Decision::Deny(denial)), response, flag, details })
    }
}

impl RefusalResponse {
    /// Without fields and body.
    pub(super) fn of_status(status: StatusCode) -> Self {
        Self { status, fields: HeaderMap::new(), body: Bytes::new() }
    }

    /// Adds a field that the server has chosen. Those that the sidecar writes itself, or that are about the connection, are left
    /// out. The error is that it is invalid.
    pub(super) fn add(&mut self, name: &str, value: &str) -> Result<(), InvalidField> {
        if !HeaderEdits::may_edit(name) {
            return Ok(());
        }
        let invalid = || InvalidField(name.escape_debug().to_string());
        let field = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        let value = HeaderValue::from_str(value).map_err(|_| invalid())?;
        match field {
            CONTENT_LENGTH | DATE => {}
            CONTENT_TYPE => drop(self.fields.insert(field, value)),
            // Several values of one name are several fields, such as cookies.
            _ => drop(self.fields.append(field, value)),
        }
        Ok(())
    }

    /// Adds the fields that edits add to a response.
    pub(super) fn add_appended(&mut self, edits: &HeaderEdits) {
        for (name, value) in edits.appended() {
            // Fields of edits are valid.
            let _ = self.add(name.as_str(), value.as_str());
        }
    }

    /// The same for a client of gRPC: a status of gRPC without a body, "Trailers-Only" of its protocol. The body becomes the
    /// message.
    pub(super) fn for_grpc(mut self) -> Self {
        let status = grpc_status(self.status.as_u16());
        let message = grpc_message(self.body.get(..MOST_MESSAGE).unwrap_or(&self.body));
        self.fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        self.fields.insert("grpc-status", HeaderValue::from_static(status));
        if let Ok(message) = HeaderValue::try_from(message) {
            self.fields.insert("grpc-message", message);
        }
        self.status = StatusCode::OK;
        self.body = Bytes::new();
        self
    }

    /// Whether it has `content-length`.
    pub(super) fn has_length(&self) -> bool {
        !matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            && !self.fields.contains_key("grpc-status")
    }
}

/// The server's answer has a field with this name that cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("the answer has an invalid header: {0}")]
pub(super) struct InvalidField(pub(super) String);
