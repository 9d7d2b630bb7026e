//! A request that an external authorization has to allow. A stream that its client resets drops the check.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response};

use super::answer::AnswerBody;
use super::exchange::{Exchanges, StreamRequest, local, timeout};
use crate::http::external_authorization::{CheckVerdict, Edits, Refusal};
use crate::http::handler::PendingCheck;
use crate::http::headers;
use crate::http::local_reply::ReplyForm;
use crate::lifeline::Ended;

impl Exchanges {
    /// Waits for the verdict on a request, and forwards the request or answers it.
    pub(super) async fn check(
        self: Rc<Self>,
        pending: PendingCheck,
        mut request: StreamRequest,
    ) -> Response<AnswerBody> {
        let PendingCheck { check, forward, path } = pending;
        let verdict = Box::pin(check.verdict(self.env(), self.connection()));
        let edits = match request.progress.line().guard(verdict).await {
            Ok(CheckVerdict::Allow(edits)) => edits,
            Ok(CheckVerdict::Refuse(refusal)) => return refuse(*refusal, request),
            Err(Ended(cause)) => {
                let StreamRequest { log, form, progress, .. } = request;
                let reply = timeout(cause, &progress);
                progress.ran_out(self.env().streams.add());
                return local(reply, log, form);
            }
        };
        let path = match &edits {
            Some(edits) => edited_path(edits, path, &request),
            None => path,
        };
        if let Some(edits) = &edits {
            headers::edit(&mut request.head.headers, &edits.request);
        }
        self.forward(request, forward, path, edits).await
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
    let Refusal { decision, response: refused, details } = refusal;
    log.refused(decision);
    log.log_fields(&head.headers);
    log.answered(refused.status, Refusal::FLAG, details);
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
