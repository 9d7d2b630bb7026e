//! What one stream waits for, kept as the deadline of a line of its own, as an HTTP/1 connection keeps it: a body that
//! stands still is ended; an answer that the app has not begun takes as long as the app takes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::lifeline::{Lifeline, Wait};
use crate::limits::Limits;

/// How far a stream has come, shared by its two bodies.
pub(super) struct Progress {
    line: RefCell<Lifeline>,
    limits: Rc<Limits>,
    upload: Cell<Upload>,
    download: Cell<Download>,
    /// Silence is what it is for: a call of gRPC, or a stream of events.
    is_long_lived: Cell<bool>,
    received: Cell<u64>,
    ended: Cell<Option<Instant>>,
    /// Of the stream's task, if it waits for the upload's end.
    waker: RefCell<Option<Waker>>,
}

/// Who is due to move the request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upload {
    /// The client, to send more.
    Client,
    /// The app, to take what is there.
    App,
    /// Neither: all of it is on its way to the app.
    Done,
}

/// Who is due to move the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Download {
    /// The app, to begin it.
    NotBegun,
    /// The app, to send more.
    App,
    /// The client, to take what is there.
    Client,
}

impl Progress {
    /// A stream whose head has come.
    pub(super) fn new(line: Lifeline, limits: Rc<Limits>, is_long_lived: bool) -> Self {
        let progress = Self {
            line: RefCell::new(line),
            limits,
            upload: Cell::new(Upload::App),
            download: Cell::new(Download::NotBegun),
            is_long_lived: Cell::new(is_long_lived),
            received: Cell::new(0),
            ended: Cell::new(None),
            waker: RefCell::default(),
        };
        progress.rearm();
        progress
    }

    /// What ends the stream when its time is up.
    pub(super) fn line(&self) -> Lifeline {
        self.line.borrow().clone()
    }

    /// The time was up, and the client gets an answer that says so: that one has a time of its own.
    pub(super) fn ran_out(&self, line: Lifeline) {
        self.line.replace(line);
        self.upload_dropped();
    }

    /// Bytes of the request's body that the app has taken.
    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    /// When the app had taken all of the request.
    pub(super) fn upload_ended(&self) -> Option<Instant> {
        self.ended.get()
    }

    /// The app takes a piece of the request's body.
    pub(super) fn uploaded(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        if self.upload.get() != Upload::Done {
            self.upload.set(Upload::App);
            self.rearm();
        }
    }

    /// The app would take more of the request's body than there is.
    pub(super) fn awaits_upload(&self) {
        if self.upload.get() == Upload::App {
            self.upload.set(Upload::Client);
            self.rearm();
        }
    }

    /// The app has taken all of the request.
    pub(super) fn upload_done(&self) {
        if self.upload.get() != Upload::Done {
            self.ended.set(Some(Instant::now()));
            self.upload_dropped();
        }
    }

    /// No more of the request goes to the app.
    pub(super) fn upload_dropped(&self) {
        if self.upload.replace(Upload::Done) != Upload::Done {
            self.rearm();
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Waits until no more of the request goes to the app, which may answer before.
    pub(super) fn poll_upload_over(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.upload.get() == Upload::Done {
            return Poll::Ready(());
        }
        self.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    /// The answer has begun.
    pub(super) fn answered(&self, is_event_stream: bool) {
        if is_event_stream {
            self.is_long_lived.set(true);
        }
        self.download.set(Download::App);
        self.rearm();
    }

    /// The client is to take a piece of the answer.
    pub(super) fn downloading(&self) {
        self.download.set(Download::Client);
        self.rearm();
    }

    /// The client has taken all that there is of the answer.
    pub(super) fn awaits_download(&self) {
        if self.download.replace(Download::App) != Download::App {
            self.rearm();
        }
    }

    /// Whether the client, and not the app, is what the stream waits for.
    pub(super) fn is_client_due(&self) -> bool {
        self.download.get() == Download::Client || self.upload.get() == Upload::Client
    }

    fn rearm(&self) {
        let silence = || if self.is_long_lived.get() { self.limits.stream_idle } else { self.limits.body };
        let time: Duration = match (self.upload.get(), self.download.get()) {
            (_, Download::Client) => self.limits.body,
            (Upload::Done, Download::NotBegun) => return self.line.borrow().at_ease(),
            (Upload::Client | Upload::App, _) | (Upload::Done, Download::App) => silence(),
        };
        self.line.borrow().within(time, Wait::Body);
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
