//! What will be told of a request once it is over, however it ends.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{HeaderMap, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tidegate_core::policy::Decision;

use super::pulse::{InFlight, Pulse};
use crate::http::Env;
use crate::http::headers::{FORWARDED_FOR, REQUEST_ID};
use crate::session::ConnectionInfo;
use crate::telemetry::{Record, ResponseFlag};

/// One request's account. It is told when it is dropped.
pub(super) struct Account {
    env: Rc<Env>,
    connection: Rc<ConnectionInfo>,
    pulse: Rc<Pulse>,
    decision: Option<Rc<Decision>>,
    start: SystemTime,
    began: Instant,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    upload: Rc<Progress>,
    upstream_time: Option<Duration>,
    status: u16,
    flag: ResponseFlag,
    details: &'static str,
    sent: u64,
    is_complete: bool,
    _in_flight: InFlight,
}

/// How far a request's body has come.
#[derive(Default)]
pub(super) struct Progress {
    bytes: Cell<u64>,
    ended: Cell<Option<Instant>>,
}

/// A request's body on its way to the app.
pub(super) struct Upload {
    body: Incoming,
    progress: Rc<Progress>,
}

impl Account {
    /// Opens the account of a request that has just come.
    pub(super) fn open<B>(
        env: &Rc<Env>,
        connection: &Rc<ConnectionInfo>,
        pulse: &Rc<Pulse>,
        request: &Request<B>,
    ) -> Self {
        let headers = request.headers();
        Self {
            env: env.clone(),
            connection: connection.clone(),
            pulse: pulse.clone(),
            decision: None,
            start: SystemTime::now(),
            began: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: headers.get(http::header::HOST).cloned(),
            user_agent: headers.get(USER_AGENT).cloned(),
            forwarded_for: None,
            request_id: None,
            upload: Rc::default(),
            upstream_time: None,
            status: 0,
            flag: ResponseFlag::None,
            details: "",
            sent: 0,
            is_complete: false,
            _in_flight: pulse.begin(),
        }
    }

    /// The policy has spoken.
    pub(super) fn decided(&mut self, decision: Rc<Decision>) {
        self.decision = Some(decision);
    }

    /// The app gets these fields.
    pub(super) fn forwarded(&mut self, headers: &HeaderMap) {
        self.forwarded_for = headers.get(FORWARDED_FOR).cloned();
        self.request_id = headers.get(REQUEST_ID).cloned();
    }

    /// The request's body, counted.
    pub(super) fn upload(&self, body: Incoming) -> Upload {
        if body.is_end_stream() {
            self.upload.ended.set(Some(Instant::now()));
        }
        Upload { body, progress: self.upload.clone() }
    }

    /// There is an answer: the app's, or ours with its flag.
    pub(super) fn answered(&mut self, status: StatusCode, flag: ResponseFlag, details: &'static str) {
        self.status = status.as_u16();
        self.flag = flag;
        self.details = details;
        self.upstream_time = self.upload.ended.get().map(|ended| ended.elapsed());
    }

    /// A piece of the answer's body goes to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.pulse.answered_data();
    }

    /// The answer is whole.
    pub(super) fn complete(&mut self) {
        if !self.is_complete {
            self.is_complete = true;
            self.pulse.answered();
        }
    }

    /// The answer broke off.
    pub(super) fn broke_off(&mut self) {
        self.is_complete = true;
        self.flag = ResponseFlag::UpstreamConnectionTermination;
        self.details = "upstream_reset_after_response_started";
    }

    /// What is to be told.
    pub(super) fn record(&self) -> Record<'_> {
        let is_cut_off = !self.is_complete;
        let authority = self.uri.authority().map(|authority| authority.as_str().as_bytes());
        Record {
            outbound: None,
            connection: Some(&self.connection),
            decision: self.decision.as_deref(),
            start: Some(self.start),
            duration: self.began.elapsed(),
            upstream_time: self.upstream_time,
            method: self.method.as_str().as_bytes(),
            path: self.uri.path_and_query().map_or(b"", |path| path.as_str().as_bytes()),
            protocol: "HTTP/2",
            status: self.status,
            flag: if is_cut_off { ResponseFlag::DownstreamConnectionTermination } else { self.flag },
            details: if is_cut_off { "downstream_remote_disconnect" } else { self.details },
            received: self.upload.bytes.get(),
            sent: self.sent,
            authority: authority.unwrap_or(bytes_of(self.host.as_ref())),
            user_agent: bytes_of(self.user_agent.as_ref()),
            forwarded_for: bytes_of(self.forwarded_for.as_ref()),
            request_id: bytes_of(self.request_id.as_ref()),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.env.telemetry.record(&self.record());
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.progress.bytes.set(self.progress.bytes.get() + bytes as u64);
        }
        if frame.is_none() || self.body.is_end_stream() {
            self.progress.ended.set(Some(Instant::now()));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn bytes_of(value: Option<&HeaderValue>) -> &[u8] {
    value.map_or(b"", HeaderValue::as_bytes)
}
