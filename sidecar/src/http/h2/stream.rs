//! One stream, from its head to its end: waits for the response and sends it at the client's pace.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE, HeaderMap};
use http::{HeaderValue, Request, Response};
use http_body::Body;

use super::answer::AnswerBody;
use super::exchange::Exchanges;
use super::headers;
use super::progress::Progress;
use crate::flow::outbox::Piece;
use crate::flow::send::{Gone, send};
use crate::http::clock::DateClock;
use crate::http::timed::timed;
use crate::lifeline::Ended;

/// Serves one request. The future that waits for the response is boxed and dropped when there is one, because the
/// client may take long to read it.
pub(super) fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Piece>,
    exchanges: Rc<Exchanges>,
) -> impl Future<Output = ()> {
    let progress = exchanges.begin(&request);
    let mut answering = exchanges.answer(request, progress.clone());
    async move {
        let response = poll_fn(|context| {
            let answered = answering.as_mut().poll(context);
            for head in progress.take_interims() {
                interim(head, &mut respond);
            }
            if let Poll::Ready(response) = answered {
                return Poll::Ready(Some(response));
            }
            respond.poll_reset(context).map(|_| None)
        });
        let response = response.await;
        drop(answering);
        if let Some(response) = response {
            answer(response, respond, &progress, &exchanges).await;
        }
    }
}

/// Sends an interim response, which has no body.
fn interim(mut head: Response<()>, respond: &mut SendResponse<Piece>) {
    headers::strip_hop_by_hop(head.headers_mut());
    head.headers_mut().remove(CONTENT_LENGTH);
    if let Err(error) = respond.send_informational(head) {
        tracing::debug!(%error, "an interim response cannot be sent");
    }
}

/// Sends a response.
async fn answer(
    response: Response<AnswerBody>,
    mut respond: SendResponse<Piece>,
    progress: &Progress,
    exchanges: &Exchanges,
) {
    let (mut head, mut answer) = response.into_parts();
    complete(&mut head.headers, &answer, exchanges.clock());
    let is_end = answer.is_end_stream();
    let mut stream = match respond.send_response(Response::from_parts(head, ()), is_end) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "an answer cannot be sent");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    let waits = || progress.downloading();
    let sending = send(&mut answer, &mut stream, exchanges.outbox(), is_end, waits, |reason| reason);
    let sent = progress.line().guard(pin!(timed(progress.limited_to(), pin!(sending)))).await;
    match sent {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(Gone))) => return,
        Ok(Err(which)) => {
            answer.timed_out(which);
            return stream.send_reset(Reason::CANCEL);
        }
        Err(Ended(cause)) => {
            let is_client_due = progress.is_client_due();
            answer.ran_out(cause, is_client_due);
            return stream.send_reset(if is_client_due { Reason::CANCEL } else { Reason::INTERNAL_ERROR });
        }
    }
    // The app may still read the rest of a request that it has responded to, until this stream ends.
    let _uploading = answer.into_upload();
    let upload = poll_fn(|context| {
        let is_over = progress.poll_upload_over(context).is_ready() || stream.poll_reset(context).is_ready();
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    });
    if progress.line().guard(upload).await.is_err() {
        stream.send_reset(Reason::NO_ERROR);
    }
}

/// Adds the fields that every response has.
fn complete(headers: &mut HeaderMap, answer: &AnswerBody, clock: &DateClock) {
    if let Ok(date) = HeaderValue::from_bytes(&clock.date()) {
        headers.entry(DATE).or_insert(date);
    }
    if !answer.is_end_stream()
        && let Some(length) = answer.size_hint().exact()
    {
        headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
}
