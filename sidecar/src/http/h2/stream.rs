//! One stream, from its head to its end: the answer is waited for, and goes to the client as fast as the client takes
//! it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE, HeaderMap};
use http::{HeaderValue, Request, Response};
use http_body::Body;

use super::answer::Answer;
use super::exchange::Exchanges;
use super::progress::Progress;
use crate::http::clock::Clock;
use crate::lifeline::Ended;

/// What a stream claims at a time of the window that it shares with others: the length of a frame.
const PIECE: usize = 16 * 1024;

/// The stream can get no more: the client has reset it, or the connection has ended.
#[derive(Debug, thiserror::Error)]
#[error("the client takes no more of the answer")]
struct Gone;

/// Serves one request.
pub(super) async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    exchanges: Rc<Exchanges>,
) {
    let progress = exchanges.begin(&request);
    let mut answering = pin!(exchanges.answer(request, progress.clone()));
    let response = poll_fn(|context| {
        if let Poll::Ready(response) = answering.as_mut().poll(context) {
            return Poll::Ready(Some(response));
        }
        respond.poll_reset(context).map(|_| None)
    });
    let Some(response) = response.await else { return };
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
    let sent = progress.line().guard(send(&mut answer, &mut stream, &progress, is_end)).await;
    if let Err(Ended(cause)) = sent {
        let is_client_due = progress.is_client_due();
        answer.ran_out(cause, is_client_due);
        return stream.send_reset(if is_client_due { Reason::CANCEL } else { Reason::INTERNAL_ERROR });
    }
    drop(answer);
    if let Ok(Err(Gone)) = sent {
        return;
    }
    // The app may still want the rest of a request that it has answered.
    let upload = poll_fn(|context| {
        let is_over = progress.poll_upload_over(context).is_ready() || stream.poll_reset(context).is_ready();
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    });
    if progress.line().guard(upload).await.is_err() {
        stream.send_reset(Reason::NO_ERROR);
    }
}

/// What every answer has.
fn complete(headers: &mut HeaderMap, answer: &Answer, clock: &Clock) {
    if let Ok(date) = HeaderValue::from_bytes(&clock.date()) {
        headers.entry(DATE).or_insert(date);
    }
    if !answer.is_end_stream()
        && let Some(length) = answer.size_hint().exact()
    {
        headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
}

/// Sends the body of an answer; `is_end` if it has none.
async fn send(
    answer: &mut Answer,
    stream: &mut SendStream<Bytes>,
    progress: &Progress,
    is_end: bool,
) -> Result<(), Gone> {
    let mut is_end = is_end;
    while !is_end {
        let frame = poll_fn(|context| {
            if stream.poll_reset(context).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            Pin::new(&mut *answer).poll_frame(context).map(Ok)
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            Some(Err(reason)) => {
                stream.send_reset(reason);
                return Err(Gone);
            }
            None => return stream.send_data(Bytes::new(), true).map_err(|_| Gone),
        };
        match frame.into_data() {
            Ok(data) => {
                is_end = answer.is_end_stream();
                send_data(stream, data, is_end, progress).await?;
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                return stream.send_trailers(trailers).map_err(|_| Gone);
            }
        }
    }
    Ok(())
}

/// Sends no more than the client's window lets through: what h2 has is as good as sent, and waits for nothing but the
/// connection.
async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    is_end: bool,
    progress: &Progress,
) -> Result<(), Gone> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len().min(PIECE));
        progress.downloading();
        let room = poll_fn(|context| poll_room(stream, context)).await?;
        let piece = data.split_to(room.min(data.len()));
        let is_last = is_end && data.is_empty();
        stream.send_data(piece, is_last).map_err(|_| Gone)?;
        if is_last {
            return Ok(());
        }
    }
    if is_end { stream.send_data(data, true).map_err(|_| Gone) } else { Ok(()) }
}

fn poll_room(stream: &mut SendStream<Bytes>, context: &mut Context<'_>) -> Poll<Result<usize, Gone>> {
    if stream.poll_reset(context).is_ready() {
        return Poll::Ready(Err(Gone));
    }
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        if !matches!(ready!(stream.poll_capacity(context)), Some(Ok(_))) {
            return Poll::Ready(Err(Gone));
        }
    }
}
