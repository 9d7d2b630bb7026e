//! Bodies of requests that may be retried: what was sent is kept, so that it can be sent again.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tidegate_core::route::retry::RequestBody;

/// The most bytes of a body that are kept. A request with a longer one is not retried once more of it was sent.
pub(crate) const MOST_REPLAYED: usize = 64 * 1024;

/// A body that records what is taken from it.
pub(crate) struct ReplayBody<B> {
    recording: Rc<RefCell<Recording<B>>>,
    /// Frames that were taken, of those that are recorded.
    taken: usize,
}

/// What was taken of a body, shared by all attempts.
struct Recording<B> {
    body: B,
    data: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// Of [`Recording::data`].
    bytes: usize,
    /// All of the body was taken.
    is_complete: bool,
    /// More was taken than is kept; nothing is kept any more.
    is_lost: bool,
}

impl<B> ReplayBody<B> {
    /// `is_kept`: it may have to be sent again.
    pub(crate) fn new(body: B, is_kept: bool) -> Self {
        let recording = Recording {
            body,
            data: Vec::new(),
            trailers: None,
            bytes: 0,
            is_complete: false,
            is_lost: !is_kept,
        };
        Self { recording: Rc::new(RefCell::new(recording)), taken: 0 }
    }

    /// The same body for another attempt. The one before must not be polled any more.
    pub(crate) fn again(&self) -> Self {
        Self { recording: self.recording.clone(), taken: 0 }
    }

    /// Whether all of it can be sent again.
    pub(crate) fn state(&self) -> RequestBody {
        if self.recording.borrow().is_lost { RequestBody::Gone } else { RequestBody::Replayable }
    }
}

impl<B: Body> ReplayBody<B> {
    /// What was taken of its data; `None` if that is not all of it, or more than is kept.
    pub(crate) fn data(&self) -> Option<Bytes> {
        let recording = self.recording.borrow();
        let is_whole = !recording.is_lost && (recording.is_complete || recording.body.is_end_stream());
        is_whole.then(|| match recording.data.as_slice() {
            [only] => only.clone(),
            parts => parts.concat().into(),
        })
    }

    /// Whether all of it was taken.
    pub(crate) fn is_complete(&self) -> bool {
        let recording = self.recording.borrow();
        recording.is_complete || recording.body.is_end_stream()
    }
}

impl<B> Recording<B> {
    fn record(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.is_complete = true;
        } else if let Some(data) = frame.data_ref().filter(|_| !self.is_lost) {
            self.bytes += data.len();
            self.is_lost = self.bytes > MOST_REPLAYED;
            if self.is_lost {
                self.data = Vec::new();
            } else {
                self.data.push(data.clone());
            }
        }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let taken = self.taken;
        let recording = self.recording.clone();
        let mut recording = recording.borrow_mut();
        if let Some(data) = recording.data.get(taken) {
            self.taken += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if recording.is_complete {
            let trailers = recording.trailers.clone().filter(|_| taken == recording.data.len());
            self.taken += 1;
            return Poll::Ready(trailers.map(Frame::trailers).map(Ok));
        }
        let frame = ready!(Pin::new(&mut recording.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => recording.record(frame),
            Some(Err(_)) => {}
            None => recording.is_complete = true,
        }
        self.taken = recording.data.len() + usize::from(recording.is_complete);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let recording = self.recording.borrow();
        let is_over = recording.body.is_end_stream() || recording.is_complete;
        let left = recording.data.len() + usize::from(recording.trailers.is_some());
        is_over && self.taken >= left
    }

    fn size_hint(&self) -> SizeHint {
        let recording = self.recording.borrow();
        let recorded = recording.data.iter().skip(self.taken).map(|data| data.len() as u64).sum::<u64>();
        match recording.body.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(recorded + rest),
            None if recording.is_complete => SizeHint::with_exact(recorded),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::channel::Channel;
    use http_body_util::{BodyExt, Full};

    use super::*;

    async fn all<B>(body: ReplayBody<B>) -> (Bytes, Option<HeaderMap>)
    where
        B: Body<Data = Bytes, Error = Infallible> + Unpin,
    {
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        (collected.to_bytes(), trailers)
    }

    #[tokio::test]
    async fn each_attempt_gets_what_was_taken_before_and_then_the_rest() {
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
        for part in ["one ", "two "] {
            sender.send_data(Bytes::from(part)).await.unwrap();
        }
        let mut first = ReplayBody::new(body, true);
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
        let mut second = first.again();
        for part in ["one ", "two "] {
            assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap(), part);
        }
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        sender.send_data(Bytes::from("three")).await.unwrap();
        sender.send_trailers(trailers.clone()).await.unwrap();
        for attempt in [second.again(), second.again()] {
            assert_eq!(attempt.state(), RequestBody::Replayable);
            assert!(!attempt.is_end_stream());
            assert_eq!(all(attempt).await, (Bytes::from("one two three"), Some(trailers.clone())));
        }
        assert_eq!(second.again().size_hint().exact(), Some(13));
    }

    #[tokio::test]
    async fn a_body_longer_than_is_kept_cannot_be_sent_again_and_arrives_whole() {
        for (length, state) in
            [(MOST_REPLAYED, RequestBody::Replayable), (MOST_REPLAYED + 1, RequestBody::Gone)]
        {
            let mut body = ReplayBody::new(Full::new(Bytes::from(vec![7; length])), true);
            assert_eq!(body.size_hint().exact(), Some(length as u64));
            let mut count = 0;
            while let Some(frame) = body.frame().await {
                count += frame.unwrap().into_data().unwrap().len();
            }
            assert_eq!((count, body.state()), (length, state));
            assert!(body.is_end_stream());
        }
    }

    #[tokio::test]
    async fn without_a_body_there_is_none_again() {
        let body = ReplayBody::new(Full::new(Bytes::new()), true);
        assert!(body.is_end_stream());
        assert_eq!(all(body.again()).await, (Bytes::new(), None));
        assert!(body.again().is_end_stream());
    }
}
