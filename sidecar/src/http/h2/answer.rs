//! The body of a response to a client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};

use super::request_log::RequestLog;
use crate::http::h1::ended_by;
use crate::lifeline::Cause;
use crate::telemetry::ResponseFlag;
use crate::upstream::{TimedOut, Uploading, UpstreamBody, UpstreamError};

/// A response body together with the log of its request, which is written when the body ends.
pub(super) struct AnswerBody {
    source: AnswerSource,
    log: Box<RequestLog>,
}

/// Where the body comes from.
enum AnswerSource {
    Local(Option<Bytes>),
    App(UpstreamBody),
}

impl AnswerBody {
    /// A response that the sidecar generated.
    pub(super) fn local(text: Bytes, log: Box<RequestLog>) -> Self {
        Self::new(AnswerSource::Local(Some(text).filter(|text| !text.is_empty())), log)
    }

    /// A response of the app.
    pub(super) fn app(body: UpstreamBody, log: Box<RequestLog>) -> Self {
        Self::new(AnswerSource::App(body), log)
    }

    /// Records that the stream ends before the response does.
    pub(super) fn ran_out(&mut self, cause: Cause, is_client_due: bool) {
        let (flag, details) = ended_by(cause, is_client_due);
        self.log.broke_off(flag, details);
    }

    /// Records that the time that the rule allows ends before the response does.
    pub(super) fn timed_out(&mut self, which: TimedOut) {
        self.log.broke_off(ResponseFlag::UpstreamTimeout, which.details());
    }

    /// Ends the response. The rest of the request is still sent to the app as long as the returned value exists.
    pub(super) fn into_upload(self) -> Option<Uploading> {
        match self.source {
            AnswerSource::Local(_) => None,
            AnswerSource::App(body) => body.into_upload(),
        }
    }

    fn new(source: AnswerSource, mut log: Box<RequestLog>) -> Self {
        if source.is_end() {
            log.complete();
        }
        Self { source, log }
    }
}

impl AnswerSource {
    /// Whether there is nothing left to send, so that the head or the last frame ends the stream.
    fn is_end(&self) -> bool {
        match self {
            Self::Local(text) => text.is_none(),
            Self::App(body) => body.is_end_stream(),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match self {
            Self::Local(text) => Poll::Ready(text.take().map(Frame::data).map(Ok)),
            Self::App(body) => Pin::new(body).poll_frame(context),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    /// The code with which the stream is reset.
    type Error = Reason;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        let Poll::Ready(frame) = self.source.poll(context) else {
            self.log.progress().awaits_download();
            return Poll::Pending;
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let flag = ResponseFlag::UpstreamConnectionTermination;
                self.log.broke_off(flag, "upstream_reset_after_response_started");
                return Poll::Ready(Some(Err(reset_reason(&error))));
            }
            None => {
                self.log.complete();
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            self.log.sent(data.len());
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.log.ended_with(trailers);
        }
        if frame.is_trailers() || self.source.is_end() {
            self.log.complete();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            AnswerSource::Local(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            AnswerSource::App(body) => body.size_hint(),
        }
    }
}

/// The app's reset code, unless a client could take it for a complete response.
fn reset_reason(error: &UpstreamError) -> Reason {
    match error {
        UpstreamError::Reset(reason) if *reason != Reason::NO_ERROR => *reason,
        _ => Reason::INTERNAL_ERROR,
    }
}
