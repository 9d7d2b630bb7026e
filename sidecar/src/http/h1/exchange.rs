//! One request and its answer, once the app is to get it: both bodies at the same time, in one task.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tidegate_core::forward_proxy::ProxySettings;
use tidegate_core::forward_proxy::connect::ProxyRefusal;
use tidegate_core::policy::Decision;
use tidegate_core::route::filter::HeaderEdits;
use tidegate_core::route::retry::{RequestBody, is_idempotent};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{BodyError, Decoder};
use super::forward::{self, Notes, Persistence, Span};
use super::head::{self, Framing, RequestHead, ResponseHead, Storage, upgrade_protocols};
use super::refused::AnswerError;
use super::replay::Replay;
use super::watch::{ClientWatch, Due, Pace};
use crate::connection_info::ServedConnection;
use crate::destinations::AppliedRule;
use crate::http::HttpContext;
use crate::http::buffer::{Buffer, Buffers, LARGE, MEDIUM};
use crate::http::handler::{Attempts, FailedResponse};
use crate::http::headers::{Field, tokens};
use crate::http::local_reply::{self, LocalReply, ReplyForm};
use crate::http::request::Version;
use crate::http::verdict::Edits;
use crate::lifeline::Lifeline;
use crate::stream::Abort;
use crate::telemetry::trace::RequestTrace;
use crate::telemetry::{DialledEndpoint, ResponseFlag};
use crate::turn::Turn;
use crate::upstream::{ProxyFailure, TimedOut, UpstreamError};

/// The most of a request's body that is read only to keep the connection.
pub(super) const MOST_DRAINED: u64 = 64 * 1024;

/// One request and its answer.
pub(super) struct Exchange {
    pub(super) asked: Asked,
    pub(super) decision: Option<Rc<Decision>>,
    /// The rule of a route that applies.
    pub(super) rule: Option<AppliedRule>,
    /// What an external authorization has changed.
    pub(super) edits: Option<Box<Edits>>,
    /// The request's span, if requests are traced.
    pub(super) trace: Option<Box<RequestTrace>>,
    /// What its rule allows beyond one attempt without limit.
    pub(super) attempts: Option<Box<Attempts>>,
    /// The endpoint that was tried last.
    pub(super) endpoint: Option<DialledEndpoint>,
    /// When the request's first byte came.
    pub(super) start: Instant,
    pub(super) notes: Notes,
    /// Memory of the head that the app got, for [`Notes`].
    pub(super) noted: Buffer,
    pub(super) up: Upload,
    pub(super) down: Download,
    pub(super) watch: ClientWatch,
    pub(super) pace: Pace,
    /// The request's head, if it may be sent again.
    pub(super) repeatable: Option<Repeatable>,
    /// What the log says about the upstream beyond the reply. Boxed, because it is rare.
    pub(super) fault: Option<Box<UpstreamFault>>,
}

/// Why the client does not get the app's answer.
pub(super) enum UpstreamFault {
    /// No connection could be opened: the full error.
    Connection(String),
    /// The answer cannot be passed on, or is a forward proxy's: details in place of the reply's.
    Answer(String),
}

/// A request that may be sent again if its connection turns out to be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeatable {
    /// Bytes of its head.
    pub(super) length: u32,
    /// Whether it has a body: it may be sent again as long as no byte of that was. A request without a body may be if
    /// to receive it twice is the same as once.
    has_body: bool,
    /// Whether the connection was used before: only then may the upstream have closed it before the request.
    pub(super) is_reused: bool,
}

/// What the request's head asks of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) version: Version,
    /// How the client gets an answer of ours.
    pub(super) form: ReplyForm,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    pub(super) expects_continue: bool,
}

/// From the client to the app.
pub(super) struct Upload {
    pub(super) state: UploadState,
    pub(super) decoder: Decoder,
    pub(super) chunked: bool,
    pub(super) out: Buffer,
    /// Bytes of the body.
    pub(super) moved: u64,
    /// Whether the app may have seen any of it.
    pub(super) sent_any: bool,
    /// When its last byte was sent.
    done: Option<Instant>,
    /// What was written, if the request may be retried.
    pub(super) replay: Option<Box<Replay>>,
}

/// How far the request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadState {
    /// The app has not got all of it.
    Active,
    /// The app has got all of it.
    Done,
    /// The app takes no more; it may have answered.
    Broken,
}

/// From the app to the client.
pub(super) struct Download {
    state: DownloadState,
    pub(super) status: u16,
    decoder: Decoder,
    chunked: bool,
    /// Whether the app keeps its connection open.
    pub(super) keep_alive: bool,
    /// Whether the client received `connection: close`.
    pub(super) close: bool,
    pub(super) input: Buffer,
    pub(super) out: Buffer,
    /// Whether `input` holds bytes that were not looked at.
    is_new: bool,
    is_flushed: bool,
    /// Whether reads fill their buffer, so that a larger one pays.
    is_bulk: bool,
    /// Whether the app has switched to a websocket.
    pub(super) is_websocket: bool,
    /// Whether it may be silent for long.
    is_stream: bool,
    /// Bytes of the body.
    pub(super) moved: u64,
    /// When its first byte came.
    first_byte: Option<Instant>,
}

/// What of the answer comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DownloadState {
    Head,
    Body,
    Switching,
    Done,
}

/// How an exchange ended.
#[derive(Debug)]
pub(super) enum ExchangeOutcome {
    /// The client has got the whole answer.
    Complete,
    /// The client has got `101 Switching Protocols`.
    Switched,
    /// A connection out of the pool was closed by the app. It saw nothing of the request, or may see it again.
    Stale,
    /// The client has got nothing yet and is to get this.
    Failed(LocalReply),
    /// The client gets nothing of this answer: another attempt follows after `wait`. `is_reusable`: the connection is good
    /// for another request.
    Retry { wait: Duration, is_reusable: bool },
    /// A forward proxy wants other credentials. The app cannot have them, and gets an answer of ours.
    ProxyAuthentication,
    /// The client cannot get a whole answer.
    Aborted(ResponseFlag, &'static str),
}

/// What a look at the app's bytes gave.
enum HeadRead {
    /// More bytes are needed.
    Incomplete,
    /// A head, which goes to the client.
    Done,
    /// The head of an answer that the client does not get.
    Ended(ExchangeOutcome),
}

/// Why the request does not get to the app.
enum UploadError {
    Client,
    Upstream,
    Malformed(BodyError),
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self {
            asked: Asked::NOTHING,
            decision: None,
            rule: None,
            edits: None,
            trace: None,
            attempts: None,
            endpoint: None,
            start: Instant::now(),
            notes: Notes::default(),
            noted: Buffer::default(),
            up: Upload::new(),
            down: Download::new(),
            watch: ClientWatch::default(),
            pace: Pace::default(),
            repeatable: None,
            fault: None,
        }
    }

    /// Takes the request back after its connection turned out to be stale, so that it is sent again.
    pub(super) fn rewind(&mut self, buffers: &Buffers) {
        self.up.state = UploadState::Active;
        let is_written = std::mem::take(&mut self.up.sent_any);
        if let Some(replay) = self.up.replay.as_ref().filter(|_| is_written) {
            buffers.give(&mut self.up.out);
            self.up.out = replay.copy(buffers);
            return;
        }
        let Some(Repeatable { length, .. }) = self.repeatable.filter(|_| is_written) else { return };
        if self.noted.size() > 0 {
            self.up.out = std::mem::take(&mut self.noted);
        }
        self.up.out.rewind(length as usize);
    }

    /// Notes whether the connection of this attempt was used before.
    pub(super) fn note_reuse(&mut self, is_reused: bool) {
        if let Some(repeatable) = &mut self.repeatable {
            repeatable.is_reused = is_reused;
        }
    }

    /// Whether the request may be sent again on another connection.
    fn is_repeated(&self) -> bool {
        let is_body_unsent = || self.up.moved == 0 && !self.up.decoder.is_done();
        self.repeatable
            .is_some_and(|repeatable| repeatable.is_reused && (!repeatable.has_body || is_body_unsent()))
    }

    /// Takes from a request's head what the exchange depends on.
    #[inline]
    pub(super) fn open(&mut self, head: &RequestHead<'_>) {
        self.asked = Asked {
            version: head.request.version,
            form: ReplyForm::of(head.request.method, || head.request.field("content-type")),
            keep_alive: head.keep_alive,
            upgrade: head.upgrade,
            expects_continue: head.expects_continue,
        };
        self.up.decoder = Decoder::new(head.framing);
        self.up.chunked = head.framing == Framing::Chunked;
    }

    /// Writes the head that an app which speaks HTTP/1 gets, and notes where the log's words are in it.
    #[inline]
    pub(super) fn write_head(
        &mut self,
        head: &RequestHead<'_>,
        (connection, proxy): (&ServedConnection, Option<&ProxySettings>),
        buffers: &Buffers,
    ) {
        self.up.out = buffers.take(head.length + forward::added(connection));
        let changes = (self.rule.as_ref(), self.trace.as_deref());
        self.notes = forward::write_request(head, (connection, proxy), changes, &mut self.up.out);
        let has_body = !self.up.decoder.is_done();
        if has_body || is_idempotent(head.request.method) {
            let length = u32::try_from(self.up.out.len()).ok();
            self.repeatable = length.map(|length| Repeatable { length, has_body, is_reused: false });
        }
    }

    /// Drives both directions as far as they go.
    pub(super) fn poll<C, U>(
        &mut self,
        client: &mut C,
        inbound: &mut Buffer,
        upstream: &mut U,
        (line, env): (&Lifeline, &HttpContext),
        context: &mut Context<'_>,
    ) -> Poll<ExchangeOutcome>
    where
        C: AsyncRead + AsyncWrite + Abort + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        if self.up.state == UploadState::Active {
            match self.poll_upload(client, inbound, upstream, env, context) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    self.up.state = UploadState::Done;
                    self.up.done = Some(Instant::now());
                    self.send_copies(env);
                }
                Poll::Ready(Err(UploadError::Upstream)) if !self.up.sent_any => {
                    return Poll::Ready(ExchangeOutcome::Stale);
                }
                // The app may have answered before it stopped reading.
                Poll::Ready(Err(UploadError::Upstream)) => self.up.state = UploadState::Broken,
                Poll::Ready(Err(UploadError::Client)) => return Poll::Ready(ExchangeOutcome::client_gone()),
                Poll::Ready(Err(UploadError::Malformed(error))) => {
                    return Poll::Ready(self.fail(local_reply::bad_request(error.details())));
                }
            }
        }
        let outcome = self.poll_download(client, upstream, (line, env), context);
        if outcome.is_pending() {
            let is_watched = self.up.state != UploadState::Active;
            if is_watched && self.watch.poll(client, inbound, (line, env), context).is_ready() {
                return Poll::Ready(ExchangeOutcome::client_gone());
            }
            self.pace.keep(self.due(), self.watch, line, &env.limits);
        }
        outcome
    }

    /// How the exchange fails: with this answer if the client has not begun to get another one.
    pub(super) fn fail(&self, reply: LocalReply) -> ExchangeOutcome {
        match self.down.state {
            DownloadState::Head => ExchangeOutcome::Failed(reply),
            _ => ExchangeOutcome::Aborted(reply.flag, reply.details),
        }
    }

    /// Notes that no endpoint could be reached, if that is what this error means.
    pub(super) fn note_unreachable(&mut self, error: &UpstreamError) {
        let failure = error.transport_failure();
        self.fault = failure.map(|failure| Box::new(UpstreamFault::Connection(failure)));
    }

    /// Why no endpoint could be reached, and details in place of the reply's.
    pub(super) fn fault(&self) -> (Option<&str>, Option<&str>) {
        match self.fault.as_deref() {
            None => (None, None),
            Some(UpstreamFault::Connection(failure)) => (Some(failure), None),
            Some(UpstreamFault::Answer(details)) => (None, Some(details)),
        }
    }

    /// The exchange's outcome when the response cannot be passed on. The log gets the cause.
    fn refuse(&mut self, error: AnswerError) -> ExchangeOutcome {
        let has_begun = self.down.state != DownloadState::Head;
        let details = error.details(self.down.input.bytes(), has_begun);
        self.fault = Some(Box::new(UpstreamFault::Answer(details)));
        self.fail(local_reply::bad_gateway())
    }

    /// The flag of the app's answer.
    pub(super) fn flag(&self) -> ResponseFlag {
        self.attempts.as_ref().map_or(ResponseFlag::None, |attempts| attempts.flag())
    }

    /// When the attempt in progress must be over.
    pub(super) fn deadline(&self) -> Option<(Instant, TimedOut)> {
        self.attempts.as_ref()?.deadline()
    }

    /// From the request's last byte to the app to the first byte back.
    pub(super) fn upstream_time(&self) -> Option<Duration> {
        self.down.first_byte.map(|first| first.saturating_duration_since(self.up.done.unwrap_or(first)))
    }

    /// What is left of the request's body can be read only to keep the client's connection.
    pub(super) fn is_drainable(&self) -> bool {
        // A client that waits for `100 Continue` may send its body or not: the meaning of its next byte is unknown.
        let may_be_left_out = self.asked.expects_continue && self.up.moved == 0;
        self.up.decoder.left().is_some_and(|left| left <= MOST_DRAINED && (left == 0 || !may_be_left_out))
    }

    /// Writes the request to the app, and reads more of its body from the client, until the app has all of it.
    fn poll_upload<C, U>(
        &mut self,
        client: &mut C,
        inbound: &mut Buffer,
        upstream: &mut U,
        env: &HttpContext,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>>
    where
        C: AsyncRead + Unpin,
        U: AsyncWrite + Unpin,
    {
        let (is_repeated, up) = (self.is_repeated(), &mut self.up);
        let mut turn = Turn::new();
        loop {
            if !up.out.is_empty() {
                let before = up.out.len();
                let written = up.out.poll_write_all(upstream, context);
                turn.spend(before - up.out.len());
                if up.out.len() != before {
                    up.sent_any = true;
                    self.pace.step();
                }
                if written.is_pending() && self.noted.size() > 0 {
                    env.buffers.shrink(&mut up.out, 0);
                }
                ready!(written).map_err(|_| UploadError::Upstream)?;
                if self.noted.size() == 0 && is_repeated {
                    self.noted = std::mem::take(&mut up.out);
                } else if self.noted.size() == 0 {
                    self.noted = self.notes.keep(&mut up.out, &env.buffers);
                } else {
                    env.buffers.give(&mut up.out);
                }
            }
            // TLS may have accepted more than the socket takes: that goes on while the client is read.
            let flushed = Pin::new(&mut *upstream).poll_flush(context).map_err(|_| UploadError::Upstream)?;
            if up.decoder.is_done() {
                return flushed.map(Ok);
            }
            up.moved += up
                .decoder
                .transfer(inbound, &mut up.out, up.chunked, &env.buffers, &env.limits)
                .map_err(UploadError::Malformed)?;
            if let Some(replay) = &mut up.replay {
                replay.record(up.out.bytes(), &env.buffers);
            }
            if !up.out.is_empty() || up.decoder.is_done() {
                continue;
            }
            ready!(turn.poll(context));
            make_room(inbound, env);
            let is_bulk =
                up.moved > MEDIUM as u64 && up.decoder.left().is_none_or(|left| left > MEDIUM as u64);
            let size = if is_bulk { LARGE } else { MEDIUM };
            let count = ready!(env.buffers.poll_read(inbound, size, client, context));
            if count.map_err(|_| UploadError::Client)? == 0 {
                return Poll::Ready(Err(UploadError::Client));
            }
            self.pace.step();
        }
    }

    /// Reads the answer and writes it to the client, a step at a time: what was read is written before more is.
    fn poll_download<C, U>(
        &mut self,
        client: &mut C,
        upstream: &mut U,
        (line, env): (&Lifeline, &HttpContext),
        context: &mut Context<'_>,
    ) -> Poll<ExchangeOutcome>
    where
        C: AsyncWrite + Unpin,
        U: AsyncRead + Unpin,
    {
        let mut turn = Turn::new();
        loop {
            if ready!(self.poll_deliver(client, &mut turn, env, context)).is_err() {
                return Poll::Ready(ExchangeOutcome::client_gone());
            }
            let stepped = match self.down.state {
                DownloadState::Head => ready!(self.poll_head(upstream, (line, env), context)),
                DownloadState::Body => ready!(self.poll_body(upstream, &mut turn, env, context)),
                DownloadState::Switching if self.up.state == UploadState::Active => return Poll::Pending,
                DownloadState::Switching => return Poll::Ready(ExchangeOutcome::Switched),
                DownloadState::Done => return Poll::Ready(ExchangeOutcome::Complete),
            };
            if let Err(outcome) = stepped {
                return Poll::Ready(outcome);
            }
        }
    }

    /// Writes to the client what there is of the answer. A client that does not take it holds no more memory than that.
    #[inline]
    fn poll_deliver<C: AsyncWrite + Unpin>(
        &mut self,
        client: &mut C,
        turn: &mut Turn,
        env: &HttpContext,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let down = &mut self.down;
        if !down.out.is_empty() {
            let before = down.out.len();
            let written = down.out.poll_write_all(client, context);
            turn.spend(before - down.out.len());
            if down.out.len() != before {
                self.pace.step();
                down.is_flushed = false;
            }
            if written.is_pending() {
                env.buffers.shrink(&mut down.out, 0);
            }
            ready!(written)?;
            env.buffers.give(&mut down.out);
        }
        if !down.is_flushed {
            ready!(Pin::new(client).poll_flush(context))?;
            down.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// One step towards the head of the app's last answer: looks at what came, or reads more.
    #[inline]
    fn poll_head<U: AsyncRead + Unpin>(
        &mut self,
        upstream: &mut U,
        (line, env): (&Lifeline, &HttpContext),
        context: &mut Context<'_>,
    ) -> Poll<Result<(), ExchangeOutcome>> {
        if std::mem::take(&mut self.down.is_new) {
            match self.read_head(line, env) {
                Ok(HeadRead::Done) => return Poll::Ready(Ok(())),
                Ok(HeadRead::Incomplete) => {}
                Ok(HeadRead::Ended(outcome)) => return Poll::Ready(Err(outcome)),
                Err(error) => return Poll::Ready(Err(self.refuse(error))),
            }
        }
        if matches!(ready!(self.poll_read(upstream, env, context)), Ok(1..)) {
            Poll::Ready(Ok(()))
        } else if self.is_repeated() && self.down.first_byte.is_none() {
            Poll::Ready(Err(ExchangeOutcome::Stale))
        } else {
            Poll::Ready(Err(self.fail(local_reply::connection_terminated())))
        }
    }

    /// One step through the answer's body: moves what came of it to `out`, or reads more.
    #[inline]
    fn poll_body<U: AsyncRead + Unpin>(
        &mut self,
        upstream: &mut U,
        turn: &mut Turn,
        env: &HttpContext,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), ExchangeOutcome>> {
        if self.down.decoder.is_done() {
            self.down.state = DownloadState::Done;
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = self.transfer_down(env) {
            return Poll::Ready(Err(self.refuse(AnswerError::Body(error))));
        }
        if !self.down.out.is_empty() || self.down.decoder.is_done() {
            return Poll::Ready(Ok(()));
        }
        ready!(turn.poll(context));
        let is_good = match ready!(self.poll_read(upstream, env, context)) {
            Ok(1..) => true,
            Ok(0) => self.down.decoder.finish(&mut self.down.out, self.down.chunked),
            Err(_) => false,
        };
        if is_good {
            return Poll::Ready(Ok(()));
        }
        let flag = ResponseFlag::UpstreamConnectionTermination;
        let details = "upstream_reset_after_response_started{connection_termination}";
        Poll::Ready(Err(ExchangeOutcome::Aborted(flag, details)))
    }

    /// Reads once from the app.
    fn poll_read<U: AsyncRead + Unpin>(
        &mut self,
        upstream: &mut U,
        env: &HttpContext,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let down = &mut self.down;
        make_room(&mut down.input, env);
        let size = if down.is_bulk { LARGE } else { MEDIUM };
        let count = ready!(env.buffers.poll_read(&mut down.input, size, upstream, context))?;
        down.is_bulk |= down.input.len() >= MEDIUM;
        down.is_new = true;
        if count > 0 && down.first_byte.is_none() {
            down.first_byte = Some(Instant::now());
        }
        self.pace.step();
        Poll::Ready(Ok(count))
    }

    /// Looks for a head in what the app has sent.
    fn read_head(&mut self, line: &Lifeline, env: &HttpContext) -> Result<HeadRead, AnswerError> {
        let Asked { version, upgrade, .. } = self.asked;
        let (is_uploaded, is_drainable) = (self.up.state == UploadState::Done, self.is_drainable());
        let (input, is_head) = (self.down.input.bytes(), self.asked.is_head());
        let mut storage = Storage::new();
        let head =
            head::parse_response(input, &mut storage, &env.limits, is_head).map_err(AnswerError::Head)?;
        let Some(head) = head else { return Ok(HeadRead::Incomplete) };
        if self.endpoint.is_some_and(|endpoint| endpoint.is_http_proxy)
            && note_proxy_refusal(&head, &mut self.fault) == Some(ProxyFailure::Authentication)
        {
            self.down.status = head.status;
            return Ok(HeadRead::Ended(ExchangeOutcome::ProxyAuthentication));
        }
        if let Some(wait) = wait_to_retry(self.attempts.as_deref_mut(), self.up.replay.as_deref(), &head, env)
        {
            let is_whole = head.framing == Framing::Length((self.down.input.len() - head.length) as u64);
            let is_reusable = is_whole && is_uploaded && head.keep_alive;
            self.down.status = head.status;
            return Ok(HeadRead::Ended(ExchangeOutcome::Retry { wait, is_reusable }));
        }
        if self.down.out.size() == 0 {
            self.down.out = env.buffers.take(self.down.input.len() + 256);
        }
        let edits = response_edits(self.rule.as_ref(), self.edits.as_deref());
        let out = &mut self.down.out;
        let (status, length, framing) = (head.status, head.length, head.framing);
        match status {
            101 if upgrade => {
                let sent = if self.noted.size() > 0 { &self.noted } else { &self.up.out };
                check_switch(&head, self.notes.upgrade, sent)?;
                forward::write_switch(&head, edits, out);
                self.down.is_websocket = forward::is_websocket(head.fields);
                self.down.state = DownloadState::Switching;
            }
            101 => return Err(AnswerError::UnaskedSwitch),
            100..=199 => {
                if version == Version::Http11 {
                    forward::write_interim(&head, out);
                }
                return Ok(self.pass_interim(length));
            }
            _ => {
                let is_delimited = matches!(framing, Framing::Length(_));
                self.down.chunked = !is_delimited && version == Version::Http11;
                self.down.close = !self.asked.keep_alive
                    || line.is_finishing()
                    || !(is_uploaded || is_drainable)
                    || !(is_delimited || self.down.chunked);
                let form = (self.down.chunked, Persistence::new(self.down.close, version));
                forward::write_response(&head, version, form, edits, out);
                self.down.is_stream = head.is_stream();
                self.down.keep_alive = head.keep_alive && framing != Framing::UntilClose;
                self.down.decoder = Decoder::new(framing);
                self.down.is_bulk |= matches!(framing, Framing::Length(length) if length > MEDIUM as u64);
            }
        }
        self.down.status = status;
        self.down.input.consume(length);
        self.begin_body(env)
    }

    /// An interim answer of this length was written: the next head may be there.
    fn pass_interim(&mut self, length: usize) -> HeadRead {
        self.down.input.consume(length);
        self.down.is_new = !self.down.input.is_empty();
        HeadRead::Done
    }

    /// What is there of the answer's body goes out in the same write as its head.
    fn begin_body(&mut self, env: &HttpContext) -> Result<HeadRead, AnswerError> {
        if self.down.state == DownloadState::Head {
            self.transfer_down(env).map_err(AnswerError::Body)?;
            self.down.state = DownloadState::Body;
        }
        Ok(HeadRead::Done)
    }

    /// Moves what came of the answer's body to `out`, in the client's framing.
    fn transfer_down(&mut self, env: &HttpContext) -> Result<(), BodyError> {
        let down = &mut self.down;
        down.moved +=
            down.decoder.transfer(&mut down.input, &mut down.out, down.chunked, &env.buffers, &env.limits)?;
        Ok(())
    }

    /// What the exchange waits for, which decides about its deadline.
    fn due(&self) -> Due {
        match self.down.state {
            _ if self.up.state == UploadState::Active || !self.down.out.is_empty() => Due::Body,
            DownloadState::Body => Due::More { is_stream: self.down.is_stream },
            _ => Due::Answer,
        }
    }
}

/// What is changed of a response: by a route's rule for the app's own requests, by an external authorization for those of clients.
pub(super) fn response_edits<'e>(
    rule: Option<&'e AppliedRule>,
    edits: Option<&'e Edits>,
) -> Option<&'e HeaderEdits> {
    rule.map(AppliedRule::response_edits).or(edits.map(|edits| &edits.response))
}

/// How long to wait before the request is sent again, if this answer is to be replaced by another one.
fn wait_to_retry(
    attempts: Option<&mut Attempts>,
    replay: Option<&Replay>,
    head: &ResponseHead<'_>,
    env: &HttpContext,
) -> Option<Duration> {
    let attempts = attempts?;
    let Some(failed) = FailedResponse::of_fields(head.status, None, |name| head.text(name)) else {
        attempts.answered();
        return None;
    };
    attempts.next(env, &failed, replay.map_or(RequestBody::Gone, Replay::body))
}

impl ExchangeOutcome {
    /// The response flag of a failure.
    pub(super) fn flag(&self) -> Option<ResponseFlag> {
        match self {
            Self::Failed(reply) => Some(reply.flag),
            Self::Aborted(flag, _) => Some(*flag),
            Self::Complete
            | Self::Switched
            | Self::Stale
            | Self::Retry { .. }
            | Self::ProxyAuthentication => None,
        }
    }

    /// The client has left before it had the whole answer.
    pub(super) fn client_gone() -> Self {
        Self::Aborted(ResponseFlag::DownstreamConnectionTermination, "downstream_remote_disconnect")
    }
}

impl Asked {
    /// Of a request that could not be read.
    pub(super) const NOTHING: Self = Self {
        version: Version::Http11,
        form: ReplyForm::Text,
        keep_alive: false,
        upgrade: false,
        expects_continue: false,
    };

    /// Whether the answer has no body, whatever its head says.
    pub(super) fn is_head(&self) -> bool {
        self.form == ReplyForm::HeadOnly
    }
}

impl Upload {
    fn new() -> Self {
        Self {
            state: UploadState::Active,
            decoder: Decoder::Length(0),
            chunked: false,
            out: Buffer::default(),
            moved: 0,
            sent_any: false,
            done: None,
            replay: None,
        }
    }
}

impl Upload {
    /// All of it is to be sent again.
    pub(super) fn begin_again(&mut self) {
        self.state = UploadState::Active;
        self.sent_any = false;
        self.done = None;
    }
}

impl Download {
    /// The client has begun to get the answer.
    pub(super) fn set_begun(&mut self) {
        self.state = DownloadState::Body;
    }

    pub(super) fn new() -> Self {
        Self {
            state: DownloadState::Head,
            status: 0,
            decoder: Decoder::Length(0),
            chunked: false,
            keep_alive: false,
            close: false,
            input: Buffer::default(),
            out: Buffer::default(),
            is_new: false,
            is_websocket: false,
            is_flushed: true,
            is_bulk: false,
            is_stream: false,
            moved: 0,
            first_byte: None,
        }
    }
}

/// What a forward proxy says in place of the server, if the answer is its own.
fn refusal_of_proxy(head: &ResponseHead<'_>) -> Option<ProxyRefusal> {
    let fields = || head.fields.iter().map(|(_, name, value)| (name, value));
    let is_squids = || fields().any(|(name, _)| name.eq_ignore_ascii_case(b"x-squid-error"));
    (head.status == 407 || is_squids()).then(|| ProxyRefusal::of_response(head.status, fields()))
}

/// Notes the proxy's words, if the answer is the proxy's own; returns what it means then.
fn note_proxy_refusal(
    head: &ResponseHead<'_>,
    fault: &mut Option<Box<UpstreamFault>>,
) -> Option<ProxyFailure> {
    let refusal = refusal_of_proxy(head)?;
    let failure = ProxyFailure::of_status(head.status);
    let details = format!("{}{{{refusal}}}", failure.details());
    *fault = Some(Box::new(UpstreamFault::Answer(details)));
    Some(failure)
}

/// An app may switch to what the request has asked for, and must say to what (RFC 9110 §7.8).
///
/// `asked`: where the protocols of the request are in `sent`.
fn check_switch(head: &ResponseHead<'_>, asked: Span, sent: &Buffer) -> Result<(), AnswerError> {
    let asked = sent.past(asked.start as usize, asked.length as usize);
    let mut named = head.fields.values(Field::Upgrade).flat_map(tokens).peekable();
    if named.peek().is_none() {
        return Err(AnswerError::NamelessSwitch);
    }
    let is_asked =
        |protocol: &[u8]| upgrade_protocols(asked).any(|asked| asked.eq_ignore_ascii_case(protocol));
    if named.all(is_asked) { Ok(()) } else { Err(AnswerError::OtherSwitch) }
}

/// Lets a buffer grow that is full of bytes which only make sense with more.
pub(super) fn make_room(buffer: &mut Buffer, env: &HttpContext) {
    if buffer.size() > 0 && buffer.len() == buffer.size() {
        env.buffers.reserve(buffer, buffer.size() * 4);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::snapshot;
    use crate::telemetry::Telemetry;

    /// An upstream that takes bytes and holds them until it is flushed, as TLS does while its socket is full.
    #[derive(Default)]
    struct Holding {
        held: Vec<u8>,
        sent: Vec<u8>,
    }

    impl AsyncWrite for Holding {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.held.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            let held = std::mem::take(&mut self.held);
            self.sent.extend(held);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_an_upstream_holds_is_flushed_before_the_client_is_waited_for_and_at_the_end() {
        let env = HttpContext::new(Rc::default(), Rc::new(Telemetry::default()), snapshot::channel().1);
        let mut exchange = Exchange::new();
        exchange.up.state = UploadState::Active;
        exchange.up.decoder = Decoder::new(Framing::Length(10));
        exchange.up.out = env.buffers.take(64);
        exchange.up.out.push(b"POST / HTTP/1.1\r\n\r\n");
        let (mut client, mut app) = tokio::io::duplex(64);
        let (mut inbound, mut upstream) = (Buffer::default(), Holding::default());
        for (piece, expected) in [("hello", "POST / HTTP/1.1\r\n\r\nhello"), ("world", "helloworld")] {
            app.write_all(piece.as_bytes()).await.unwrap();
            let polled = std::future::poll_fn(|context| {
                Poll::Ready(exchange.poll_upload(&mut client, &mut inbound, &mut upstream, &env, context))
            });
            assert_eq!(polled.await.is_ready(), piece == "world");
            assert!(upstream.sent.ends_with(expected.as_bytes()), "{}", upstream.sent.escape_ascii());
        }
    }
}
