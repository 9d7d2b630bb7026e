//! The deadline of one stream, kept in a [`Lifeline`] of its own, with the same rules as for an HTTP/1 connection: a
//! stalled body ends the stream; a response that the app has not begun takes as long as the app takes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::Response;

use crate::lifeline::{Lifeline, Wait};
use crate::limits::Limits;
use crate::upstream::{InterimQueue, InterimSink, TimedOut};

/// Progress of a stream, shared by its two bodies.
pub(super) struct Progress {
    line: RefCell<Lifeline>,
    limits: Rc<Limits>,
    upload: Cell<UploadWait>,
    download: Cell<DownloadWait>,
    /// Whether long silence is expected: a gRPC call, or an event stream.
    is_long_lived: Cell<bool>,
    /// Bytes of the request's body that went to the app.
    received: Cell<u64>,
    /// When the last of them did.
    ended: Cell<Option<Instant>>,
    /// When the response must be complete, by the request's rule.
    limit: Cell<Option<(Instant, TimedOut)>>,
    /// Interim responses that wait to be sent.
    interims: InterimQueue,
    /// Wakes the stream's task if it waits for the end of the upload.
    waker: RefCell<Option<Waker>>,
}

/// Which side the request's body waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadWait {
    /// The client, to send more.
    Client,
    /// The app, to accept what was received.
    App,
    /// Neither: all of it was passed to the app.
    Done,
}

/// Which side the response waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DownloadWait {
    /// The app, to begin the response.
    NotBegun,
    /// The app, to send more.
    App,
    /// The client, to accept what was sent.
    Client,
}

impl Progress {
    /// Progress of a stream whose head was received.
    pub(super) fn new(line: Lifeline, limits: Rc<Limits>, is_long_lived: bool) -> Self {
        let progress = Self {
            line: RefCell::new(line),
            limits,
            upload: Cell::new(UploadWait::App),
            download: Cell::new(DownloadWait::NotBegun),
            is_long_lived: Cell::new(is_long_lived),
            received: Cell::new(0),
            ended: Cell::new(None),
            limit: Cell::new(None),
            interims: InterimQueue::default(),
            waker: RefCell::default(),
        };
        progress.rearm();
        progress
    }

    /// The lifeline that ends the stream at its deadline.
    pub(super) fn line(&self) -> Lifeline {
        self.line.borrow().clone()
    }

    /// Records that the deadline has passed: the timeout response is sent under the new lifeline `line`.
    pub(super) fn ran_out(&self, line: Lifeline) {
        self.line.replace(line);
        self.upload_dropped();
    }

    /// Number of bytes of the request's body that the app has accepted.
    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    /// When the app had accepted the whole request.
    pub(super) fn upload_ended(&self) -> Option<Instant> {
        self.ended.get()
    }

    /// Records that the app accepts a piece of the request's body.
    pub(super) fn uploaded(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        if self.upload.get() != UploadWait::Done {
            self.upload.set(UploadWait::App);
            self.rearm();
        }
    }

    /// Records that the app waits for more of the request's body.
    pub(super) fn awaits_upload(&self) {
        if self.upload.get() == UploadWait::App {
            self.upload.set(UploadWait::Client);
            self.rearm();
        }
    }

    /// Records that the app has accepted the whole request.
    pub(super) fn upload_done(&self) {
        if self.upload.get() != UploadWait::Done {
            self.ended.set(Some(Instant::now()));
            self.upload_dropped();
        }
    }

    /// Records that no more of the request goes to the app.
    pub(super) fn upload_dropped(&self) {
        if self.upload.replace(UploadWait::Done) != UploadWait::Done {
            self.rearm();
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Waits until no more of the request goes to the app. The response may come first.
    pub(super) fn poll_upload_over(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.upload.get() == UploadWait::Done {
            return Poll::Ready(());
        }
        self.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    /// Records that the response has begun.
    pub(super) fn answered(&self, is_event_stream: bool) {
        if is_event_stream {
            self.is_long_lived.set(true);
        }
        self.download.set(DownloadWait::App);
        self.rearm();
    }

    /// Sets when the response must be complete.
    pub(super) fn limit(&self, limit: Option<(Instant, TimedOut)>) {
        self.limit.set(limit);
    }

    /// When the response must be complete, if its time is limited.
    pub(super) fn limited_to(&self) -> Option<(Instant, TimedOut)> {
        self.limit.get()
    }

    /// Interim responses to send.
    pub(super) fn take_interims(&self) -> Vec<Response<()>> {
        self.interims.take()
    }

    /// Records that a piece of the response waits for the client.
    pub(super) fn downloading(&self) {
        self.download.set(DownloadWait::Client);
        self.rearm();
    }

    /// Records that the client has accepted all that there is of the response.
    pub(super) fn awaits_download(&self) {
        if self.download.replace(DownloadWait::App) != DownloadWait::App {
            self.rearm();
        }
    }

    /// Whether the stream waits for the client rather than the app.
    pub(super) fn is_client_due(&self) -> bool {
        self.download.get() == DownloadWait::Client || self.upload.get() == UploadWait::Client
    }

    /// Sets the deadline of whatever the stream waits for now.
    fn rearm(&self) {
        let silence = || if self.is_long_lived.get() { self.limits.stream_idle } else { self.limits.body };
        let time: Duration = match (self.upload.get(), self.download.get()) {
            (_, DownloadWait::Client) => self.limits.body,
            (UploadWait::Done, DownloadWait::NotBegun) => return self.line.borrow().at_ease(),
            (UploadWait::Client | UploadWait::App, _) | (UploadWait::Done, DownloadWait::App) => silence(),
        };
        self.line.borrow().within(time, Wait::Body);
    }
}

impl InterimSink for Progress {
    fn interim(&self, head: Response<()>) {
        self.interims.interim(head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifeline::{Cause, Phase, Registry};

    fn ended_after(time: Duration, is_long_lived: bool, story: impl FnOnce(&Progress)) -> (bool, bool) {
        let registry = Registry::new();
        let line = registry.add(Rc::new(()));
        let progress = Progress::new(line.clone(), Rc::new(Limits::default()), is_long_lived);
        story(&progress);
        registry.expire(Instant::now() + time);
        (line.phase() == Phase::Closed(Cause::Deadline(Wait::Body)), progress.is_client_due())
    }

    #[test]
    fn a_body_that_stands_still_ends_its_stream_and_an_app_that_thinks_does_not() {
        let body = Limits::default().body;
        assert_eq!(ended_after(body, false, Progress::awaits_upload), (true, true));
        assert_eq!(ended_after(body, false, |progress| progress.uploaded(1)), (true, false));
        assert_eq!(ended_after(body * 10, false, Progress::upload_done), (false, false));
        let stalled_download = |progress: &Progress| {
            progress.upload_done();
            progress.answered(false);
            progress.downloading();
        };
        assert_eq!(ended_after(body, false, stalled_download), (true, true));
        let silent_app = |progress: &Progress| {
            stalled_download(progress);
            progress.awaits_download();
        };
        assert_eq!(ended_after(body, false, silent_app), (true, false));
    }

    #[test]
    fn a_call_or_a_stream_of_events_may_be_silent_for_longer_but_its_client_must_read() {
        let limits = Limits::default();
        assert_eq!(ended_after(limits.body, true, Progress::awaits_upload), (false, true));
        assert_eq!(ended_after(limits.stream_idle, true, Progress::awaits_upload), (true, true));
        let silent_events = |progress: &Progress| {
            progress.upload_done();
            progress.answered(true);
        };
        assert_eq!(ended_after(limits.body, false, silent_events), (false, false));
        assert_eq!(ended_after(limits.stream_idle, false, silent_events), (true, false));
        let unread = |progress: &Progress| {
            silent_events(progress);
            progress.downloading();
        };
        assert_eq!(ended_after(limits.body, false, unread), (true, true));
    }
}
