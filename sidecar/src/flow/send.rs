//! Sends the body of a message to a stream, at the peer's pace; for clients and apps alike.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use super::outbox::{Outbox, Piece};

/// The stream accepts no more data: the peer has reset it, or the connection has ended.
#[derive(Debug, thiserror::Error)]
#[error("the peer accepts no more of the body")]
pub(crate) struct Gone;

/// Sends a body; `is_end` if it is empty and the stream has ended already. `waits` is called whenever the peer must
/// make room first. If the body fails, the stream is reset with the code that `reason` derives from its error.
///
/// # Errors
///
/// If the stream ends before the body was sent.
pub(crate) async fn send<B>(
    body: &mut B,
    stream: &mut SendStream<Piece>,
    outbox: &Outbox,
    is_end: bool,
    waits: impl Fn(),
    reason: impl Fn(B::Error) -> Reason,
) -> Result<(), Gone>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut is_end = is_end;
    while !is_end {
        let frame = poll_fn(|context| {
            if stream.poll_reset(context).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            Pin::new(&mut *body).poll_frame(context).map(Ok)
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                stream.send_reset(reason(error));
                return Err(Gone);
            }
            None => return stream.send_data(Piece::default(), true).map_err(|_| Gone),
        };
        match frame.into_data() {
            Ok(data) => {
                is_end = body.is_end_stream();
                send_data(stream, data, outbox, is_end, &waits).await?;
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                return stream.send_trailers(trailers).map_err(|_| Gone);
            }
        }
    }
    Ok(())
}

/// Sends data within the peer's flow-control window and the room in the outbox.
async fn send_data(
    stream: &mut SendStream<Piece>,
    mut data: Bytes,
    outbox: &Outbox,
    is_end: bool,
    waits: impl Fn(),
) -> Result<(), Gone> {
    while !data.is_empty() {
        let size = outbox.piece(data.len());
        stream.reserve_capacity(size);
        waits();
        let room = poll_fn(|context| poll_room(stream, context)).await?;
        let mut piece = pin!(outbox.clone().put(data.split_to(room.min(size))));
        let piece = poll_fn(|context| {
            if stream.poll_reset(context).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            piece.as_mut().poll(context).map(Ok)
        });
        let piece = piece.await?;
        let is_last = is_end && data.is_empty();
        stream.send_data(piece, is_last).map_err(|_| Gone)?;
        if is_last {
            return Ok(());
        }
    }
    if is_end { stream.send_data(Piece::default(), true).map_err(|_| Gone) } else { Ok(()) }
}

/// Waits for the peer's flow-control window to open; returns how many bytes it allows.
fn poll_room(stream: &mut SendStream<Piece>, context: &mut Context<'_>) -> Poll<Result<usize, Gone>> {
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
