//! The body of a request on its way to the app.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use super::progress::Progress;
use super::repetition;
use crate::flow::windows::{BodyWindow, Windows};

/// A request's body. What the app accepts of it opens the client's flow-control window.
pub(super) struct ClientBody {
    stream: RecvStream,
    /// Bytes left by `content-length`, which h2 enforces.
    left: Option<u64>,
    /// All DATA frames were read; what may follow is trailers.
    is_data_done: bool,
    /// `None` for a request without a body.
    window: Option<BodyWindow>,
    progress: Rc<Progress>,
    /// What was read before the body is sent, if anything was.
    ahead: Option<Box<ReadAhead>>,
}

/// The beginning of a body.
#[derive(Default)]
struct ReadAhead {
    frames: VecDeque<Frame<Bytes>>,
    /// Bytes of data in them.
    bytes: usize,
}

/// Why a request's body ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientBodyError {
    /// The client reset the stream, or its connection has ended.
    #[error("the client aborted its request: {0}")]
    BrokenOff(#[from] h2::Error),
    /// See [`repetition`].
    #[error("the request's trailers repeat too much")]
    Repetition,
}

impl ClientBody {
    /// The body of a request whose head has these fields. h2 has validated `content-length` (RFC 9113 §8.1.1).
    pub(super) fn new(
        mut stream: RecvStream,
        headers: &HeaderMap,
        windows: &Rc<Windows>,
        progress: Rc<Progress>,
    ) -> Self {
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let window = (!stream.is_end_stream()).then(|| windows.open(&mut stream));
        if window.is_none() {
            progress.upload_done();
        }
        Self { stream, left: length, is_data_done: false, window, progress, ahead: None }
    }

    /// Reads ahead until there are more than `most` bytes, or the body is complete, which is the result. What was read
    /// is still sent to the app.
    pub(super) fn poll_read_ahead(
        &mut self,
        most: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<bool, ClientBodyError>> {
        while self.ahead.as_ref().is_none_or(|ahead| ahead.bytes <= most) {
            let Poll::Ready(frame) = self.poll(context) else {
                self.progress.awaits_upload();
                return Poll::Pending;
            };
            let Some(frame) = frame.transpose()? else { return Poll::Ready(Ok(true)) };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.progress.uploaded(bytes);
            let ahead = self.ahead.get_or_insert_default();
            ahead.bytes += bytes;
            ahead.frames.push_back(frame);
        }
        Poll::Ready(Ok(false))
    }

    /// The data that was read ahead.
    pub(super) fn read_ahead(&self) -> Vec<u8> {
        let frames = self.ahead.iter().flat_map(|ahead| &ahead.frames);
        frames.filter_map(Frame::data_ref).flatten().copied().collect()
    }

    /// The first frame that was read ahead.
    fn take_ahead(&mut self) -> Option<Frame<Bytes>> {
        let ahead = self.ahead.as_mut()?;
        let frame = ahead.frames.pop_front();
        if let Some(frame) = &frame {
            ahead.bytes -= frame.data_ref().map_or(0, Bytes::len);
        }
        if ahead.frames.is_empty() {
            self.ahead = None;
        }
        frame
    }

    /// The next piece of data, or the trailers. Each piece that is taken opens the client's windows by its length.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        if !self.is_data_done {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    if let Some(window) = &mut self.window {
                        window.take(data.len())?;
                    }
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.is_data_done = true,
            }
        }
        let Some(trailers) = ready!(self.stream.poll_trailers(context))? else { return Poll::Ready(None) };
        if repetition::is_excessive(&trailers) {
            return Poll::Ready(Some(Err(ClientBodyError::Repetition)));
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        if let Some(frame) = self.take_ahead() {
            if self.is_end_stream() {
                self.progress.upload_done();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let Poll::Ready(frame) = self.poll(context) else {
            self.progress.awaits_upload();
            return Poll::Pending;
        };
        if let Some(Ok(frame)) = &frame {
            self.progress.uploaded(frame.data_ref().map_or(0, Bytes::len));
        }
        if frame.is_none() || self.stream.is_end_stream() {
            self.progress.upload_done();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead.as_ref().map_or(0, |ahead| ahead.bytes as u64);
        match self.left {
            _ if self.stream.is_end_stream() => SizeHint::with_exact(ahead),
            Some(left) => SizeHint::with_exact(ahead + left),
            None => SizeHint::default(),
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        self.progress.upload_dropped();
    }
}
