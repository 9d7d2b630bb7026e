//! A request that servers of the users have to allow. A stream that its client resets drops the check.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response};

use super::answer::AnswerBody;
use super::exchange::{Exchanges, StreamRequest, local, timeout};
use super::upload::{ClientBody, ClientBodyError};
use crate::http::checks::RequestChecks;
use crate::http::external_authorization::{BodyPart, BodyPartEnd};
use crate::http::handler::PendingCheck;
use crate::http::headers;
use crate::http::local_reply::{self, ReplyForm};
use crate::http::verdict::{Allowance, CheckVerdict, Edits, Refusal};
use crate::lifeline::Ended;
use crate::upstream::UpstreamError;

impl Exchanges {
    /// Waits for the verdict on a request, and forwards the request or answers it.
    pub(super) async fn check(
        self: Rc<Self>,
        pending: PendingCheck,
        mut request: StreamRequest,
    ) -> Response<AnswerBody> {
        let PendingCheck { checks, forward, path } = pending;
        let progress = request.progress.clone();
        let verdict = Box::pin(self.checked(checks, &mut request.body));
        let Allowance { edits, report } = match progress.line().guard(verdict).await {
            Ok(Ok(CheckVerdict::Allow(allowance))) => allowance,
            Ok(Ok(CheckVerdict::Refuse(refusal))) => return refuse(*refusal, request),
            Ok(Err(_)) => {
                let StreamRequest { log, form, .. } = request;
                return local(local_reply::upstream_failed(&UpstreamError::Request), log, form);
            }
            Err(Ended(cause)) => {
                let StreamRequest { log, form, progress, .. } = request;
                let reply = timeout(cause, &progress);
                progress.ran_out(self.env().streams.add());
                return local(reply, log, form);
            }
        };
        if let Some(report) = report {
            request.log.redecided(report);
        }
        let path = match &edits {
            Some(edits) => edited_path(edits, path, &request),
            None => path,
        };
        if let Some(edits) = &edits {
            headers::edit(&mut request.head.headers, &edits.request);
        }
        self.forward(request, forward, path, edits).await
    }

    /// The verdict on a request and the part of its body that the server gets. The error is that the body breaks off.
    async fn checked(
        &self,
        checks: RequestChecks,
        body: &mut ClientBody,
    ) -> Result<CheckVerdict, ClientBodyError> {
        let checks = match checks.within_limits(self.env(), self.connection()).await {
            Ok(checks) => checks,
            Err(refusal) => return Ok(CheckVerdict::Refuse(refusal)),
        };
        let checks = match checks.wants_body() {
            None => checks,
            Some((most, time)) => {
                let read = poll_fn(|context| body.poll_read_ahead(most, context));
                let end = match tokio::time::timeout(time, read).await {
                    Ok(Ok(true)) => BodyPartEnd::Whole,
                    Ok(Ok(false)) => BodyPartEnd::Longer,
                    Ok(Err(error)) => return Err(error),
                    Err(_) => BodyPartEnd::Late,
                };
                let bytes = body.read_ahead();
                let end = if bytes.len() > most { BodyPartEnd::Longer } else { end };
                match checks.with_body(BodyPart { bytes, end }, &self.env().telemetry) {
                    Ok(checks) => checks,
                    Err(verdict) => return Ok(verdict),
                }
            }
        };
        Ok(checks.verdict(self.env(), self.connection()).await)
    }
}

/// Path and query that the app gets; `None`: those of the request.
fn edited_path(edits: &Edits, path: Option<Box<[u8]>>, request: &StreamRequest) -> Option<Box<[u8]>> {
    let sent = request.target.path.as_str().as_bytes();
    let edited = match edits.path(path.as_deref().unwrap_or(sent)) {
        Cow::Borrowed(_) => None,
        Cow::Owned(edited) => Some(edited.into()),
    };
    edited.or(path)
}

/// The response of the server that refuses a request.
fn refuse(refusal: Refusal, request: StreamRequest) -> Response<AnswerBody> {
    let StreamRequest { head, mut log, form, .. } = request;
    let Refusal { decision, response: refused, flag, details } = refusal;
    log.redecided(decision);
    log.log_fields(&head.headers);
    log.answered(refused.status, flag, details);
    log.progress().upload_dropped();
    let (length, has_length) = (refused.body.len(), refused.has_length());
    let body = if form == ReplyForm::HeadOnly { Bytes::new() } else { refused.body };
    let mut response = Response::new(AnswerBody::local(body, log));
    *response.status_mut() = refused.status;
    *response.headers_mut() = refused.fields;
    if has_length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if length > 0 {
        let text = HeaderValue::from_static("text/plain");
        response.headers_mut().entry(CONTENT_TYPE).or_insert(text);
    }
    response
}
