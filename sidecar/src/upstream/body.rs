//! Bodies to and from an upstream.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::Method;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tidegate_core::route::retry::is_idempotent;
use tokio::task::AbortHandle;

use super::error::UpstreamError;
use super::http1::Checkout;
use super::http2::Lease;
use super::interim::InterimSink;
use super::shares::Share;
use crate::flow::windows::{BodyWindow, Windows};

/// A body whose type does not matter.
pub(crate) type DynBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>;
/// Why a body ended early.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body on its way to the app. As long as nothing was taken from it, it can be taken back.
pub(super) struct Outgoing {
    shared: Rc<RefCell<OutgoingState>>,
}

/// The way to have a body back.
pub(super) struct Retained {
    shared: Rc<RefCell<OutgoingState>>,
}

/// What the sender of a body and [`Retained`] share.
struct OutgoingState {
    /// `None` once it was taken back.
    body: Option<DynBody>,
    /// Whether a frame was taken from it, so that the app may have seen some of it.
    is_touched: bool,
    /// Whether it ended with an error.
    is_broken: bool,
    /// The request's place, and its room on a connection: an app may answer before it has taken the whole body.
    share: Rc<Share>,
    lease: Option<Rc<Lease>>,
    /// Where interim responses to the request go.
    interims: Option<Rc<dyn InterimSink>>,
}

/// What sends a request's body, which may outlive the answer: an app may answer before it has taken all of the body.
/// Dropped before that, the request is cancelled.
pub(crate) struct Uploading {
    task: AbortHandle,
    body: Weak<RefCell<OutgoingState>>,
}

/// The body of an app's answer. Dropping it early cancels the rest, and what is left of the request.
pub(crate) struct UpstreamBody {
    source: BodySource,
    /// What is left of the request's body, if there is one.
    upload: Option<Uploading>,
    /// The request's place, until its answer is over.
    _share: Option<Rc<Share>>,
}

/// Where the answer comes from.
enum BodySource {
    /// Its connection goes back to its pool at the answer's end.
    Http1(Incoming, Option<Checkout>),
    /// Its connection has room for one more stream when this is dropped.
    Http2(Http2Body, #[expect(dead_code, reason = "held for its drop")] Rc<Lease>),
}

/// The body of an HTTP/2 answer.
struct Http2Body {
    recv: RecvStream,
    window: BodyWindow,
    is_data_done: bool,
    /// Bytes of which the app is not told yet that they were taken: those that were given out last.
    given_out: usize,
}

impl Outgoing {
    /// A body that holds its request's place until it is sent or dropped.
    pub(super) fn new<B>(body: B, share: Rc<Share>, interims: Option<Rc<dyn InterimSink>>) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let body: DynBody = Box::pin(http_body_util::BodyExt::map_err(body, Into::into));
        Self::from_parts(body, share, interims)
    }

    fn from_parts(body: DynBody, share: Rc<Share>, interims: Option<Rc<dyn InterimSink>>) -> Self {
        let shared = OutgoingState {
            body: Some(body),
            is_touched: false,
            is_broken: false,
            share,
            lease: None,
            interims,
        };
        Self { shared: Rc::new(RefCell::new(shared)) }
    }

    /// Gives this room back no sooner than the body is done with.
    pub(super) fn hold(&self, lease: Rc<Lease>) {
        self.shared.borrow_mut().lease = Some(lease);
    }

    /// The request's place is this one from now on.
    pub(super) fn set_share(&self, share: Rc<Share>) {
        self.shared.borrow_mut().share = share;
    }

    /// Whether its request by this method may be sent again if its connection turns out to be stale, as long as nothing
    /// was taken from the body: to receive it twice is the same as once, or the app lacks a part of it.
    pub(super) fn is_repeatable(&self, method: &Method) -> bool {
        is_idempotent(method.as_str().as_bytes()) || !self.is_end_stream()
    }

    /// Where interim responses to its request go.
    pub(super) fn interims(&self) -> Option<Rc<dyn InterimSink>> {
        self.shared.borrow().interims.clone()
    }

    /// Must be called before the body is sent.
    pub(super) fn retain(&self) -> Retained {
        Retained { shared: self.shared.clone() }
    }
}

impl Retained {
    /// The body, if nothing was taken from it.
    pub(super) fn reclaim(self) -> Option<Outgoing> {
        let mut shared = self.shared.borrow_mut();
        if shared.is_touched {
            return None;
        }
        let body = shared.body.take()?;
        Some(Outgoing::from_parts(body, shared.share.clone(), shared.interims.clone()))
    }

    /// Why the request failed, if `error` is what its sender saw: the body's own error comes first.
    pub(super) fn cause(&self, error: UpstreamError) -> UpstreamError {
        if self.shared.borrow().is_broken { UpstreamError::Request } else { error }
    }

    /// For the task that sends the body, in place of having it back.
    pub(super) fn sent_by(self, task: AbortHandle) -> Uploading {
        Uploading { task, body: Rc::downgrade(&self.shared) }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut shared = self.shared.borrow_mut();
        let Some(body) = &mut shared.body else {
            return Poll::Ready(Some(Err(io::Error::other("the body was taken back").into())));
        };
        let frame = ready!(body.as_mut().poll_frame(context));
        shared.is_touched |= frame.is_some();
        shared.is_broken |= matches!(frame, Some(Err(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.shared.borrow().body.as_ref().is_some_and(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.shared.borrow().body.as_ref().map(|body| body.size_hint()).unwrap_or_default()
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if self.body.strong_count() > 0 {
            self.task.abort();
        }
    }
}

impl UpstreamBody {
    /// The body of an answer by hyper, whose connection goes back to its pool with the last frame.
    pub(super) fn http1(incoming: Incoming, checkout: Checkout, upload: Uploading) -> Self {
        let source = BodySource::Http1(incoming, Some(checkout));
        let mut body = Self { source, upload: Some(upload), _share: None };
        if body.is_end_stream() {
            body.finish();
        }
        body
    }

    /// The body of an answer by h2: its stream's window opens as its frames are taken.
    pub(super) fn http2(
        mut recv: RecvStream,
        windows: &Rc<Windows>,
        lease: Rc<Lease>,
        upload: Option<Uploading>,
    ) -> Self {
        let window = windows.open(&mut recv);
        let stream = Http2Body { recv, window, is_data_done: false, given_out: 0 };
        Self { source: BodySource::Http2(stream, lease), upload, _share: None }
    }

    /// Ends the answer; what is left of the request goes on to the app for as long as this is held.
    pub(crate) fn into_upload(self) -> Option<Uploading> {
        self.upload
    }

    /// The same; the place is given back with it.
    pub(super) fn holding(self, share: Rc<Share>) -> Self {
        Self { _share: Some(share), ..self }
    }

    /// The last frame was given out.
    fn finish(&mut self) {
        if let BodySource::Http1(_, checkout) = &mut self.source
            && let Some(checkout) = checkout.take()
        {
            checkout.give_back();
        }
    }
}

impl Http2Body {
    /// A reader that polls again has passed on what it got: the app may send as much again.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let given_out = std::mem::take(&mut self.given_out);
        if given_out > 0 {
            // A stream that is over needs no window.
            let _ = self.window.take(given_out);
        }
        if !self.is_data_done {
            match ready!(self.recv.poll_data(context)) {
                Some(Ok(data)) => {
                    self.given_out = data.len();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.is_data_done = true,
            }
        }
        let trailers = ready!(self.recv.poll_trailers(context));
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let frame = match &mut self.source {
            BodySource::Http1(incoming, _) => ready!(Pin::new(incoming).poll_frame(context))
                .map(|frame| frame.map_err(|error| UpstreamError::from(&error))),
            BodySource::Http2(stream, _) => ready!(stream.poll_frame(context))
                .map(|frame| frame.map_err(|error| UpstreamError::from(&error))),
        };
        if frame.is_none() || self.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Http1(incoming, _) => incoming.is_end_stream(),
            BodySource::Http2(stream, _) => stream.recv.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Http1(incoming, _) => incoming.size_hint(),
            BodySource::Http2(..) if self.is_end_stream() => SizeHint::with_exact(0),
            BodySource::Http2(..) => SizeHint::default(),
        }
    }
}
