//! External authorization: a server that users run decides about each request that the policy allows, by Envoy's protocol
//! `envoy.service.auth.v3.Authorization`.
//!
//! `attributes` says what the server gets of a request, `answer` what its answer means, `body` has the part of the request's body that
//! the server gets.

mod answer;
mod attributes;
mod body;

use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::policy::{AuthorizationServer, Decision, Denial, ExternalAuthorization, Grant, Reason};
use tidegate_core::route::filter::HeaderEdits;
use tidegate_proto::external_authorization::CheckRequest;

use self::answer::Answer;
pub(super) use self::body::{BodyPart, BodyPartEnd};
use super::HttpContext;
use super::local_reply::ReplyForm;
use super::request::Request;
use super::verdict::{Allowance, CheckVerdict, Edits, InvalidField, Refusal, RefusalResponse};
use crate::connection_info::{ConnectionInfo, ServedConnection};
use crate::grpc::GrpcError;
use crate::telemetry::{CheckResult, Telemetry};

/// The method that is called.
const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The check of one request, which has not begun.
pub(super) struct AuthorizationCheck {
    authorization: Arc<ExternalAuthorization>,
    server: AuthorizationServer,
    message: CheckRequest,
    /// The request's ID, if it came without a valid one.
    new_id: Option<Box<str>>,
    is_grpc: bool,
}

/// Why a check has no result.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    /// The server did not answer.
    #[error("{0}")]
    Call(#[from] GrpcError),
    /// The answer has a header that cannot be carried out.
    #[error("{0}")]
    InvalidField(#[from] InvalidField),
    /// The part of the request's body that the server gets did not come in time.
    #[error("the request's body did not come in time")]
    BodyTimeout,
    /// The server could not decide; what the client gets.
    #[error("the server could not decide")]
    Undecided(Box<RefusalResponse>),
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
        context.external_authorizations.note(&self.server.address, answer.as_ref().err());
        match answer {
            Ok(Answer::Allow(edits)) => {
                context.telemetry.checked(CheckResult::Ok);
                self.allow(edits)
            }
            Ok(Answer::Deny(response)) => {
                context.telemetry.checked(CheckResult::Denied);
                self.refuse(Reason::ExternallyDenied, response)
            }
            Err(error) => self.failed(error, &context.telemetry),
        }
    }

    async fn call(&self, context: &HttpContext, client: &ServedConnection) -> Result<Answer, CheckError> {
        let servers = &context.external_authorizations;
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
            return self.allow(None);
        }
        let response = match error {
            CheckError::Undecided(response) => *response,
            _ => answer::forbidden(),
        };
        self.refuse(Reason::ExternalAuthorizationFailed, response)
    }

    /// Refuses the request; in audit mode it is forwarded, and that is reported.
    fn refuse(self, reason: Reason, response: RefusalResponse) -> CheckVerdict {
        let denial = Denial { reason, origin: Some(self.authorization.origin.clone()) };
        if self.authorization.is_audit {
            let report = Some(Rc::new(Decision::Allow(Grant::Audit(denial))));
            return CheckVerdict::Allow(Allowance { report, ..self.allowance(None) });
        }
        let details = match denial.reason {
            Reason::ExternallyDenied => "ext_authz_denied",
            Reason::ExternalAuthorizationBodyTooLarge => "ext_authz_body_too_large",
            _ => "ext_authz_error",
        };
        let response = if self.is_grpc { response.for_grpc() } else { response };
        CheckVerdict::Refuse(Refusal::new(denial, response, details))
    }

    /// Edits what the server gets as the app would get it.
    pub(super) fn edit(&mut self, edits: &HeaderEdits) {
        let request = self.message.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
        let Some(http) = request.and_then(|request| request.http.as_mut()) else { return };
        http.headers.retain(|name, _| !edits.drops(name.as_bytes()));
        for (name, value) in edits.appended() {
            let joined = http.headers.entry(name.as_str().to_owned()).or_default();
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(value.as_str());
        }
    }

    fn allow(&self, edits: Option<Box<Edits>>) -> CheckVerdict {
        CheckVerdict::Allow(self.allowance(edits))
    }

    /// The app gets the ID that the server has got.
    fn allowance(&self, mut edits: Option<Box<Edits>>) -> Allowance {
        if let Some(id) = &self.new_id {
            edits.get_or_insert_default().set_id(id);
        }
        Allowance { edits, report: None }
    }
}

#[cfg(test)]
mod tests;
