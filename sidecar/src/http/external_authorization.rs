//! External authorization: a server that users run decides about each request that the policy allows, by Envoy's protocol
//! `envoy.service.auth.v3.Authorization`.
//!
//! `attributes` says what the server gets of a request, `answer` what its answer means, `edits` carries out what it changes.
//! An [`AuthorizationCheck`] copies its part of the head, so that a codec can wait for the [`CheckVerdict`] and keep its own buffers; requests
//! that are not subject to a check never come here.

mod answer;
mod attributes;
mod body;
mod edits;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use tidegate_core::policy::{AuthorizationServer, Decision, Denial, ExternalAuthorization, Reason};
use tidegate_proto::external_authorization::CheckRequest;

use self::answer::Answer;
pub(super) use self::body::{BodyPart, BodyPartEnd};
pub(super) use self::edits::Edits;
use super::HttpContext;
use super::local_reply::ReplyForm;
use super::request::Request;
use crate::connection_info::{ConnectionInfo, ServedConnection};
use crate::grpc::{GrpcError, GrpcServers};
use crate::telemetry::{CheckResult, ResponseFlag, Telemetry};

/// The method that is called.
const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A worker's state of external authorization.
#[derive(Default)]
pub struct ExternalAuthorizations {
    servers: GrpcServers,
    /// Whether the last check failed, so that only a change is logged.
    is_failing: Cell<bool>,
}

/// The check of one request, which has not begun.
pub(super) struct AuthorizationCheck {
    authorization: Arc<ExternalAuthorization>,
    server: AuthorizationServer,
    message: CheckRequest,
    /// The request's ID, if it came without a valid one.
    new_id: Option<Box<str>>,
    is_grpc: bool,
}

/// The outcome of a check.
pub(super) enum CheckVerdict {
    /// It is forwarded, with these edits.
    Allow(Option<Box<Edits>>),
    /// It is refused.
    Refuse(Box<Refusal>),
}

/// Why a check has no result.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    /// The server did not answer.
    #[error("{0}")]
    Call(#[from] GrpcError),
    /// The answer has a header that cannot be carried out.
    #[error("the answer has an invalid header: {0}")]
    InvalidHeader(String),
    /// The part of the request's body that the server gets did not come in time.
    #[error("the request's body did not come in time")]
    BodyTimeout,
    /// The server could not decide; what the client gets.
    #[error("the server could not decide")]
    Undecided(Box<RefusalResponse>),
}

/// A request that is refused.
pub(super) struct Refusal {
    /// For logs and counts.
    pub(super) decision: Rc<Decision>,
    /// What the client gets.
    pub(super) response: RefusalResponse,
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

impl Refusal {
    /// The flag in the access log.
    pub(super) const FLAG: ResponseFlag = ResponseFlag::ExternallyDenied;
}

impl ExternalAuthorizations {
    /// Periodic work, on every tick of the worker.
    pub(super) fn sweep(&self, now: Instant) {
        self.servers.sweep(now);
    }

    /// Logs that checks begin to fail, or that they work again.
    fn note(&self, server: &AuthorizationServer, error: Option<&CheckError>) {
        if self.is_failing.replace(error.is_some()) == error.is_some() {
            return;
        }
        let address = &server.address;
        match error {
            Some(error) => tracing::warn!(server = %address, %error, "external authorization fails"),
            None => tracing::info!(server = %address, "external authorization works again"),
        }
    }
}

impl AuthorizationCheck {
    /// Copies what the server gets of a request. `path`: with query, as the app gets it.
    pub(super) fn new(
        (authorization, server): (&Arc<ExternalAuthorization>, &AuthorizationServer),
        request: &Request<'_>,
        path: &[u8],
        connection: &Rc<ConnectionInfo>,
    ) -> Self {
        let attributes = attributes::of(request, path, connection);
        Self {
            authorization: authorization.clone(),
            server: server.clone(),
            message: attributes.message,
            new_id: attributes.new_id,
            is_grpc: ReplyForm::of(request.method, || request.field("content-type")) == ReplyForm::Grpc,
        }
    }

    /// Calls the server. Dropped before it is done, the check is cancelled.
    pub(super) async fn verdict(self, context: &HttpContext, client: &ServedConnection) -> CheckVerdict {
        let answer = self.call(context, client).await;
        context.external_authorizations.note(&self.server, answer.as_ref().err());
        match answer {
            Ok(Answer::Allow(edits)) => {
                context.telemetry.checked(CheckResult::Ok);
                CheckVerdict::Allow(self.with_id(edits))
            }
            Ok(Answer::Deny(response)) => {
                context.telemetry.checked(CheckResult::Denied);
                self.refuse(Reason::ExternallyDenied, response)
            }
            Err(error) => self.failed(error, &context.telemetry),
        }
    }

    async fn call(&self, context: &HttpContext, client: &ServedConnection) -> Result<Answer, CheckError> {
        let servers = &context.external_authorizations.servers;
        let method = (&self.server.address, METHOD);
        let response = servers.call(&context.upstreams, client, method, &self.message, self.server.timeout);
        answer::answer(response.await?, &self.message)
    }

    fn failed(self, error: CheckError, telemetry: &Telemetry) -> CheckVerdict {
        telemetry.checked(match error {
            CheckError::Call(GrpcError::Timeout) | CheckError::BodyTimeout => CheckResult::Timeout,
            _ => CheckResult::Error,
        });
        if let CheckError::Call(GrpcError::Upstream(error)) = &error
            && let Some(limit) = error.limit()
        {
            telemetry.limited(limit);
        }
        if self.server.failure_mode_allow {
            telemetry.checked(CheckResult::FailureModeAllowed);
            return CheckVerdict::Allow(self.with_id(None));
        }
        let response = match error {
            CheckError::Undecided(response) => *response,
            _ => RefusalResponse::default(),
        };
        self.refuse(Reason::ExternalAuthorizationFailed, response)
    }

    fn refuse(self, reason: Reason, response: RefusalResponse) -> CheckVerdict {
        let details = match reason {
            Reason::ExternallyDenied => "ext_authz_denied",
            Reason::ExternalAuthorizationBodyTooLarge => "ext_authz_body_too_large",
            _ => "ext_authz_error",
        };
        let origin = Some(self.authorization.origin.clone());
        let decision = Rc::new(Decision::Deny(Denial { reason, origin }));
        let response = if self.is_grpc { response.for_grpc() } else { response };
        CheckVerdict::Refuse(Box::new(Refusal { decision, response, details }))
    }

    /// The app gets the ID that the server has got.
    fn with_id(&self, edits: Option<Box<Edits>>) -> Option<Box<Edits>> {
        let Some(id) = &self.new_id else { return edits };
        let mut edits = edits.unwrap_or_default();
        edits.set_id(id);
        Some(edits)
    }
}

#[cfg(test)]
mod tests;
