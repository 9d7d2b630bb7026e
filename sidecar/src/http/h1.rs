//! HTTP/1 towards the client and the app: one task drives both sides of a connection, in straight code.
//!
//! [`serve`] is a connection's story: read a head, decide, write the head and what is there of the body to the app in
//! one write, read the answer's head, write it and what is there of its body in one write, pump the rest. `head`
//! reads heads, `body` finds the ends of bodies, `forward` writes what goes to the next hop, `exchange` drives the
//! two directions at once, `watch` sees that the client is still there, `checked` waits for servers that have to allow a request. After `101 Switching Protocols` the bytes are a
//! tunnel's ([`crate::tunnel`]); `websocket` has the last word where that was a switch to one.
//!
//! A connection that waits for a request holds no buffers. A request in a steady state allocates nothing, spawns
//! nothing and sets no timer, unless a route's rule limits its time or has it retried.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use ::http::Request;
use bytes::BytesMut;
use tidegate_core::backend::Endpoint;
use tidegate_core::route::filter::HeaderEdits;
use tokio::io::{AsyncRead, AsyncWrite};

use self::body::BodyError;
use self::exchange::{Asked, Exchange, ExchangeOutcome, MOST_DRAINED, UploadState, make_room};
use self::forward::{Persistence, Span};
use self::glimpse::Glimpse;
use self::head::{RequestHead, Storage, has_bare_line_feed};
use self::retry::AttemptEnd;
use self::websocket::Followed;
use super::HttpContext;
use super::buffer::{Buffer, MEDIUM, SMALL};
use super::handler::{Forward, Handled, Handler, HandlerAction, PendingCheck, UpstreamProtocol};
use super::local_reply::{self, LocalReply, ReplyForm};
use super::timed::timed;
use super::verdict::RefusalResponse;
use crate::destinations::{AppliedRule, PendingHost};
use crate::lifeline::{Cause, Ended, Lifeline, Phase, Wait};
use crate::stream::Abort;
use crate::telemetry::{Record, ResponseFlag};
use crate::tunnel::{Tunnel, TunnelPatience};
use crate::upstream::{ConnectError, Http1Upstream, TimedOut, UpstreamError};

pub mod body;
mod bridge;
mod checked;
mod exchange;
mod forward;
mod glimpse;
pub mod head;
mod refused;
mod replay;
mod retry;
pub mod transcript;
mod watch;
mod websocket;

#[cfg(test)]
mod tests;

/// How long the rest of a body that is not needed, or of a connection that has ended, is still read.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves a client's connection until it ends. `first` are bytes already read from it, plaintext.
pub fn serve<'a, S>(
    stream: S,
    first: BytesMut,
    handler: &'a Handler,
    line: &'a Lifeline,
    env: &'a Rc<HttpContext>,
) -> impl Future<Output = ()> + use<'a, S>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let mut inbound = Buffer::default();
    if !first.is_empty() {
        inbound = env.buffers.take(first.len());
        inbound.push(&first);
    }
    let mut connection = ClientConnection {
        client: stream,
        inbound,
        examined: 0,
        exchange: Exchange::new(),
        handler,
        line,
        env,
    };
    async move { connection.run().await }
}

/// A client's connection and the request that is in progress on it, if any.
struct ClientConnection<'a, S> {
    client: S,
    /// What the client sent and is not consumed yet.
    inbound: Buffer,
    /// How much of `inbound` was searched for the end of a head without success.
    examined: usize,
    exchange: Exchange,
    handler: &'a Handler,
    line: &'a Lifeline,
    env: &'a Rc<HttpContext>,
}

/// What to do about the next request.
enum Next {
    /// There is none.
    End,
    /// Answer it ourselves.
    Reply(LocalReply, Option<Arc<HeaderEdits>>),
    /// Pass it on over HTTP/1. Its head and what is there of its body are ready to be sent.
    Forward(Forward),
    /// Pass it on over HTTP/2.
    Bridge(Forward, Box<Request<()>>),
    /// Wait for a verdict on it. Its head is still unread.
    Check(Box<PendingCheck>),
    /// Wait until it is known where it goes. Its head is still unread.
    Await(Box<PendingHost>),
}

/// What to do with the client's connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Wait for the next request.
    Next,
    /// Close it; the client may still be sending.
    Linger,
    /// Close it.
    Close,
    /// Drop it, so that the client sees that something is missing.
    Abort,
}

/// An answer that is not the app's.
#[derive(Clone, Copy)]
enum OwnAnswer<'r> {
    /// The sidecar's, with these header fields.
    Local(&'r LocalReply, Option<&'r HeaderEdits>),
    /// That of the server which refuses the request.
    Refusal(&'r RefusalResponse),
}

/// What the access log says of an answer to a request that the app does not get.
struct UnsentRecord {
    status: u16,
    flag: ResponseFlag,
    details: &'static str,
    /// Bytes of its body.
    length: u64,
}

impl UnsentRecord {
    /// Of a local reply in the form that the client gets.
    fn of(reply: &LocalReply, form: ReplyForm) -> Self {
        let LocalReply { flag, details, .. } = *reply;
        Self { status: reply.status_in(form), flag, details, length: reply.body_in(form).len() as u64 }
    }
}

impl<S: AsyncRead + AsyncWrite + Abort + Unpin> ClientConnection<'_, S> {
    /// One request after the other until the connection ends. It closes as the last one requires.
    async fn run(&mut self) {
        loop {
            let after = match self.next().await {
                Next::End => After::Close,
                Next::Reply(reply, headers) => self.reply_with(reply, headers).await,
                Next::Forward(forward) => self.forward(forward).await,
                Next::Bridge(forward, request) => Box::pin(bridge::forward(self, forward, *request)).await,
                Next::Check(check) => Box::pin(checked::serve(self, *check)).await,
                Next::Await(host) => match self.line.guard(Box::pin(self.handler.find(*host))).await {
                    Ok(()) => After::Next,
                    Err(Ended(_)) => After::Close,
                },
            };
            self.release();
            match after {
                After::Next => {}
                After::Linger => return self.linger().await,
                After::Close => return self.shutdown().await,
                After::Abort => return self.client.abort(),
            }
        }
    }

    /// Waits for a request, and has it decided about.
    async fn next(&mut self) -> Next {
        let limits = &self.env.limits;
        self.line.within(limits.idle, Wait::Idle);
        self.exchange.start = Instant::now();
        let mut is_partial = false;
        loop {
            if !self.inbound.is_empty() {
                if let Some(next) = self.begin() {
                    self.line.at_ease();
                    return next;
                }
                if !is_partial {
                    is_partial = true;
                    self.line.within(limits.headers, Wait::Headers);
                }
                self.env.buffers.shrink(&mut self.inbound, SMALL);
                make_room(&mut self.inbound, self.env);
                // It takes a place instead.
                self.inbound.disown();
                if !self.line.hold(self.inbound.size()) {
                    let reply = local_reply::too_much_unfinished();
                    self.env.telemetry.totals().unfinished.add(1);
                    self.refuse_unread(&reply);
                    return Next::Reply(reply, None);
                }
            }
            let (inbound, client, env) = (&mut self.inbound, &mut self.client, self.env);
            let read = poll_fn(|context| env.buffers.poll_read(inbound, MEDIUM, client, context));
            let read =
                if is_partial { self.line.guard(read).await } else { self.line.guard_idle(read).await };
            match read {
                Ok(Ok(1..)) if is_partial => {}
                Ok(Ok(1..)) => self.exchange.start = Instant::now(),
                Err(Ended(Cause::Deadline(Wait::Headers))) => {
                    let reply = local_reply::request_timeout("request_header_timeout");
                    self.refuse_unread(&reply);
                    return Next::Reply(reply, None);
                }
                Err(Ended(Cause::NoRoom)) => {
                    let reply = local_reply::too_much_unfinished();
                    self.refuse_unread(&reply);
                    return Next::Reply(reply, None);
                }
                Err(Ended(_)) if !is_partial && self.has_more().await => self.exchange.start = Instant::now(),
                // The client has gone.
                Ok(_) | Err(_) => return Next::End,
            }
        }
    }

    /// A last look at the client before an idle connection is closed: whether it has sent something since the socket
    /// was looked at, which is answered then.
    async fn has_more(&mut self) -> bool {
        if let Phase::Closed(_) = self.line.phase() {
            return false;
        }
        // The runtime asks the kernel meanwhile.
        tokio::task::yield_now().await;
        let (inbound, client, env) = (&mut self.inbound, &mut self.client, self.env);
        let read = poll_fn(|context| Poll::Ready(env.buffers.poll_read(inbound, MEDIUM, client, context)));
        matches!(read.await, Poll::Ready(Ok(1..)))
    }

    /// Looks for a head in what the client has sent, and has the request decided about; `None` if the head is not
    /// complete.
    fn begin(&mut self) -> Option<Next> {
        let bytes = self.inbound.bytes();
        if !is_worth_parsing(bytes, self.examined, self.env.limits.head_bytes) {
            return None;
        }
        self.examined = bytes.len();
        let mut storage = Storage::new();
        let head = match head::parse_request(bytes, &mut storage, &self.env.limits) {
            Ok(Some(head)) => head,
            Ok(None) => return None,
            Err(error) => {
                let reply = error.reply();
                self.refuse_unread(&reply);
                return Some(Next::Reply(reply, None));
            }
        };
        self.examined = 0;
        // Nothing of it is unfinished any more.
        let _ = self.line.hold(0);
        let exchange = &mut self.exchange;
        exchange.open(&head);
        let Handled { decision, rule, path, action } = self.handler.handle(&head.request);
        (exchange.decision, exchange.rule) = (decision, rule);
        exchange.trace = head.request.trace(&self.env.telemetry);
        let mut head = head;
        head.request.path = path.as_deref().unwrap_or(head.request.path);
        let length = head.length;
        let next = match action {
            HandlerAction::Reply(reply) => Err((reply, None)),
            HandlerAction::ReplyWith(reply, headers) => Err((reply, Some(headers))),
            HandlerAction::Forward(forward) => {
                let prepared = prepare(exchange, &head, forward, (self.handler, self.env));
                prepared.map_err(|reply| (reply, None))
            }
            HandlerAction::Check(check) => return Some(Next::Check(check)),
            HandlerAction::Await(host) => return Some(Next::Await(host)),
        };
        let next = next.unwrap_or_else(|(reply, headers)| {
            self.tell_unsent(UnsentRecord::of(&reply, self.exchange.asked.form), head.request.record());
            Next::Reply(reply, headers)
        });
        Some(self.pass_head(length, next))
    }

    /// The head, of this length, has been read: what is there of the body goes with it.
    fn pass_head(&mut self, length: usize, next: Next) -> Next {
        self.inbound.consume(length);
        if let Next::Forward(_) = next
            && let Err(error) = self.begin_upload()
        {
            let reply = local_reply::bad_request(error.details());
            self.tell(&reply);
            return Next::Reply(reply, None);
        }
        next
    }

    /// Puts what is there of the body behind the head, so that both go out in one write.
    fn begin_upload(&mut self) -> Result<(), BodyError> {
        let (up, env) = (&mut self.exchange.up, self.env);
        up.moved +=
            up.decoder.transfer(&mut self.inbound, &mut up.out, up.chunked, &env.buffers, &env.limits)?;
        Ok(())
    }

    /// Passes the request on, and the answer back.
    async fn forward(&mut self, mut forward: Forward) -> After {
        self.exchange.begin_attempts(forward.attempts.take(), self.env);
        loop {
            let deadline = self.exchange.deadline();
            let end = {
                let (mut upstream, is_reused) = match self.connect_until(deadline, &mut forward).await {
                    Ok(connected) => connected,
                    Err(Some(after)) => return after,
                    Err(None) => continue,
                };
                let (exchange, client, inbound) = (&mut self.exchange, &mut self.client, &mut self.inbound);
                exchange.note_reuse(is_reused);
                let around = (self.line, &**self.env);
                let io = &mut upstream.io;
                // Once in this future, and not for each layer.
                let exchanged = pin!(poll_fn(|context| exchange.poll(client, inbound, io, around, context)));
                match self.line.guard(timed(deadline, exchanged)).await {
                    Ok(Ok(ExchangeOutcome::Stale)) if upstream.has_vanished() => {
                        if self.handler.turn(&mut forward, &UpstreamError::Vanished, None) {
                            self.exchange.rewind(&self.env.buffers);
                            continue;
                        }
                        AttemptEnd::NotConnected(UpstreamError::Vanished)
                    }
                    Ok(Ok(ExchangeOutcome::Stale)) if is_reused => {
                        self.exchange.rewind(&self.env.buffers);
                        continue;
                    }
                    Ok(Ok(ExchangeOutcome::Complete)) => {
                        forward.responded(self.exchange.down.status, self.exchange.upstream_time());
                        self.note_proxy_refusal(&forward);
                        return self.complete(forward.endpoint(), upstream).await;
                    }
                    Ok(Ok(ExchangeOutcome::Switched)) => {
                        forward.responded(self.exchange.down.status, self.exchange.upstream_time());
                        return Box::pin(self.switch(upstream)).await;
                    }
                    Ok(Ok(ExchangeOutcome::Retry { wait, is_reusable })) => {
                        forward.responded(self.exchange.down.status, self.exchange.upstream_time());
                        if is_reusable {
                            self.env.upstreams.put(forward.endpoint(), upstream);
                        }
                        AttemptEnd::Retry(wait)
                    }
                    Ok(Ok(ExchangeOutcome::ProxyAuthentication)) => {
                        return self.refuse_for_proxy(&forward).await;
                    }
                    Ok(Ok(outcome)) => AttemptEnd::Broken { outcome, has_vanished: upstream.has_vanished() },
                    Ok(Err(which)) => AttemptEnd::TimedOut(which),
                    Err(Ended(cause)) => {
                        drop(upstream);
                        return self.cut_off(cause).await;
                    }
                }
            };
            if let Some(after) = Box::pin(self.end_attempt(&mut forward, end)).await {
                return after;
            }
        }
    }

    /// Answers a request that the forward proxy wants credentials for, which the app does not have.
    async fn refuse_for_proxy(&mut self, forward: &Forward) -> After {
        self.note_proxy_refusal(forward);
        let reply = local_reply::bad_gateway();
        self.tell(&reply);
        self.reply(reply).await
    }

    /// [`Self::connect`] for one attempt; otherwise what follows it: `None` is another attempt.
    async fn connect_until(
        &mut self,
        deadline: Option<(Instant, TimedOut)>,
        forward: &mut Forward,
    ) -> Result<(Http1Upstream, bool), Option<After>> {
        let connected = {
            let connecting = pin!(self.connect(forward));
            timed(deadline, connecting).await
        };
        let end = match connected {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(ConnectError::Ended(cause))) => return Err(Some(self.cut_off(cause).await)),
            Ok(Err(error)) => AttemptEnd::NotConnected(UpstreamError::from(error)),
            Err(which) => AttemptEnd::TimedOut(which),
        };
        Err(Box::pin(self.end_attempt(forward, end)).await)
    }

    /// Counts and logs that a forward proxy has answered in place of the server, if it has.
    fn note_proxy_refusal(&self, forward: &Forward) {
        let is_of_proxy = self.exchange.endpoint.is_some_and(|endpoint| endpoint.is_http_proxy);
        if let (_, Some(words)) = self.exchange.fault()
            && is_of_proxy
        {
            self.handler.proxy_refused(forward, self.exchange.down.status, words, self.env);
        }
    }

    /// A connection to the endpoint, or to another one if it cannot be reached, and whether it was used before.
    async fn connect(&mut self, forward: &mut Forward) -> Result<(Http1Upstream, bool), ConnectError> {
        let upstreams = &self.env.upstreams;
        loop {
            let endpoint = forward.endpoint();
            self.exchange.endpoint = Some(forward.dialled());
            if let Some(connection) = upstreams.checkout(endpoint)? {
                return Ok((connection, true));
            }
            // New connections are rare, and their futures large.
            match Box::pin(upstreams.open(endpoint, self.line)).await {
                Ok(connected) => return Ok(connected),
                Err(error @ (ConnectError::Ended(_) | ConnectError::Overflow(_))) => return Err(error),
                Err(error) => {
                    let failure = error.failure();
                    if let Some(reason) = failure.of_forward_proxy() {
                        self.env.telemetry.forward_proxy_failed(reason);
                    }
                    if !self.handler.turn(forward, &error, Some(failure)) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The client has got the whole answer.
    async fn complete(&mut self, endpoint: &Arc<Endpoint>, upstream: Http1Upstream) -> After {
        self.line.at_ease();
        self.tell_end(self.exchange.down.status, self.exchange.flag(), "via_upstream");
        let (up, down) = (&self.exchange.up, &self.exchange.down);
        let is_uploaded = up.state == UploadState::Done;
        // One byte more than the answer, or one less of the request, and the next answer would be another's.
        if is_uploaded && down.keep_alive && down.input.is_empty() && !self.exchange.asked.upgrade {
            self.env.upstreams.put(endpoint, upstream);
        } else {
            drop(upstream);
        }
        match (self.exchange.down.close, is_uploaded) {
            (true, true) if self.inbound.is_empty() => After::Close,
            (true, _) => After::Linger,
            (false, true) => After::Next,
            (false, false) => self.drain().await,
        }
    }

    /// The app has switched protocols: bytes both ways.
    async fn switch(&mut self, mut upstream: Http1Upstream) -> After {
        let mut tunnel = Tunnel::new(self.inbound.bytes(), self.exchange.down.input.bytes());
        self.env.buffers.give(&mut self.inbound);
        self.env.buffers.give(&mut self.exchange.down.input);
        let (line, limits) = (self.line, &self.env.limits);
        // A side that is silent may be so for as long as the connection lives.
        let patience = TunnelPatience { stalled: limits.body, idle: None, half_closed: Some(limits.body) };
        let mut client = Followed::new(&mut self.client, self.exchange.down.is_websocket);
        let ended = line.guard(tunnel.run(&mut client, &mut upstream.io, line, patience)).await;
        let has_room = client.has_room();
        self.exchange.up.moved = tunnel.received();
        self.exchange.down.moved = tunnel.sent();
        let (flag, details) = match ended {
            Ok(_) => (ResponseFlag::None, "via_upstream"),
            Err(Ended(cause)) => ended_by(cause, false),
        };
        self.tell_end(self.exchange.down.status, flag, details);
        match ended {
            Err(Ended(Cause::Deadline(_))) | Ok(_) => After::Abort,
            Err(_) if has_room => self.go_away().await,
            Err(_) => After::Abort,
        }
    }

    /// Tells the client of a websocket that it ends, if the client takes it at once.
    async fn go_away(&mut self) -> After {
        let (client, mut rest) = (&mut self.client, websocket::GOING_AWAY);
        let told = self.line.guard(poll_fn(|context| {
            while !rest.is_empty() {
                let count = ready!(Pin::new(&mut *client).poll_write(context, rest))?;
                rest = rest.get(count.max(1)..).unwrap_or_default();
            }
            Pin::new(&mut *client).poll_flush(context)
        }));
        if matches!(told.await, Ok(Ok(()))) { After::Linger } else { After::Abort }
    }

    /// The connection was ended from outside while a request was in flight.
    async fn cut_off(&mut self, cause: Cause) -> After {
        let is_client_due = self.exchange.up.state == UploadState::Active;
        if cause == Cause::Deadline(Wait::Body) && is_client_due {
            let reply = local_reply::request_timeout("request_body_timeout");
            if let ExchangeOutcome::Failed(reply) = self.exchange.fail(reply) {
                self.tell(&reply);
                return self.reply(reply).await;
            }
        }
        if cause == Cause::Deadline(Wait::HalfClose)
            && let ExchangeOutcome::Failed(reply) = self.exchange.fail(local_reply::half_closed())
        {
            self.tell(&reply);
            return self.reply(reply).await;
        }
        let (flag, details) = ended_by(cause, is_client_due);
        self.tell_end(self.exchange.down.status, flag, details);
        After::Abort
    }

    /// Sends an answer of our own.
    fn reply(&mut self, reply: LocalReply) -> impl Future<Output = After> {
        self.reply_with(reply, None)
    }

    /// Sends an answer of our own with these header fields.
    async fn reply_with(&mut self, reply: LocalReply, headers: Option<Arc<HeaderEdits>>) -> After {
        let close = self.write_reply(reply.close, OwnAnswer::Local(&reply, headers.as_deref()));
        self.send_reply(close).await
    }

    /// Writes an answer of our own to the buffer for the client. Returns whether the connection is closed after it, as it is
    /// with `close`.
    fn write_reply(&mut self, close: bool, answer: OwnAnswer<'_>) -> bool {
        let asked = self.exchange.asked;
        let is_drainable = self.exchange.is_drainable();
        let close = close || !asked.keep_alive || self.line.is_finishing() || !is_drainable;
        let out = &mut self.exchange.down.out;
        self.env.buffers.give(out);
        *out = self.env.buffers.take(512);
        let (persistence, date) = (Persistence::new(close, asked.version), self.env.clock.date());
        match answer {
            OwnAnswer::Local(reply, headers) => {
                let rule = self.exchange.rule.as_ref();
                let edits = headers.or_else(|| rule.map(AppliedRule::response_edits));
                let location = rule.and_then(AppliedRule::location);
                forward::write_local(reply, asked.form, persistence, (edits, location), &date, out);
            }
            OwnAnswer::Refusal(response) => {
                forward::write_refusal(response, asked.form, persistence, &date, out);
            }
        }
        close
    }

    /// Sends what [`ClientConnection::write_reply`] has written.
    async fn send_reply(&mut self, close: bool) -> After {
        self.line.within(DRAIN, Wait::Body);
        let (client, out) = (&mut self.client, &mut self.exchange.down.out);
        let written = self.line.guard(poll_fn(|context| {
            ready!(out.poll_write_all(client, context))?;
            Pin::new(&mut *client).poll_flush(context)
        }));
        match written.await {
            Ok(Ok(())) if close => After::Linger,
            Ok(Ok(())) => self.drain().await,
            Ok(Err(_)) | Err(_) => After::Abort,
        }
    }

    /// Reads the rest of the request's body, so that no byte of it is taken for a request.
    async fn drain(&mut self) -> After {
        let mut left = MOST_DRAINED * 2;
        self.line.within(DRAIN, Wait::Body);
        loop {
            let decoder = &mut self.exchange.up.decoder;
            match decoder.discard(&mut self.inbound, &self.env.limits) {
                Ok(_) if decoder.is_done() => return After::Next,
                Ok(count) if (count as u64) < left => left -= count as u64,
                Ok(_) | Err(_) => return After::Linger,
            }
            make_room(&mut self.inbound, self.env);
            let (inbound, client, env) = (&mut self.inbound, &mut self.client, self.env);
            let read = poll_fn(|context| env.buffers.poll_read(inbound, MEDIUM, client, context));
            match self.line.guard(read).await {
                Ok(Ok(1..)) => {}
                Ok(_) | Err(_) => return After::Close,
            }
        }
    }

    /// Closes the connection so that a client which still sends gets to read its answer: a socket that is dropped
    /// with bytes unread is reset, and the answer lost.
    async fn linger(&mut self) {
        self.shutdown().await;
        let mut left = 4 * MOST_DRAINED;
        self.line.within(DRAIN, Wait::Body);
        loop {
            self.env.buffers.give(&mut self.inbound);
            let (inbound, client, env) = (&mut self.inbound, &mut self.client, self.env);
            let read = poll_fn(|context| env.buffers.poll_read(inbound, MEDIUM, client, context));
            match self.line.guard(read).await {
                Ok(Ok(count @ 1..)) if (count as u64) < left => left -= count as u64,
                Ok(_) | Err(_) => break,
            }
        }
        self.env.buffers.give(&mut self.inbound);
    }

    /// Ends our side of the connection, with `close_notify` in TLS.
    async fn shutdown(&mut self) {
        self.line.within(DRAIN, Wait::Body);
        let client = &mut self.client;
        let shutdown = poll_fn(|context| Pin::new(&mut *client).poll_shutdown(context));
        // The connection ends either way.
        let _ = self.line.guard(shutdown).await;
        self.env.buffers.give(&mut self.inbound);
    }

    /// Gives back what the exchange held.
    fn release(&mut self) {
        let (exchange, buffers) = (&mut self.exchange, &self.env.buffers);
        for buffer in
            [&mut exchange.noted, &mut exchange.up.out, &mut exchange.down.input, &mut exchange.down.out]
        {
            buffers.give(buffer);
        }
        if let Some(replay) = &mut exchange.up.replay {
            replay.release(buffers);
        }
        *exchange = Exchange::new();
    }

    /// A request whose head cannot be read, or did not come.
    fn refuse_unread(&mut self, reply: &LocalReply) {
        self.exchange.asked = Asked::NOTHING;
        let answer = UnsentRecord::of(reply, self.exchange.asked.form);
        self.tell_unsent(answer, Glimpse::of(self.inbound.bytes()).record());
    }

    /// A request of which the app gets nothing; `request` is what its head says.
    fn tell_unsent(&self, reply: UnsentRecord, request: Record<'_>) {
        let exchange = &self.exchange;
        let Record { connection, outbound, .. } = Record::of(self.handler.connection(), exchange.endpoint);
        self.env.telemetry.record(&Record {
            connection,
            outbound,
            decision: exchange.decision.as_deref(),
            trace: exchange.trace.as_deref(),
            route: exchange.rule.as_ref().map(AppliedRule::label),
            start: Some(SystemTime::now()),
            duration: exchange.start.elapsed(),
            status: reply.status,
            flag: reply.flag,
            details: reply.details,
            sent: reply.length,
            ..request
        });
    }

    /// A request that was to be passed on and gets an answer of ours.
    fn tell(&mut self, reply: &LocalReply) {
        let form = self.exchange.asked.form;
        self.exchange.down.moved = reply.body_in(form).len() as u64;
        self.tell_end(reply.status_in(form), reply.flag, reply.details);
    }

    /// Writes the record of a request that was passed on, however it ended.
    fn tell_end(&self, status: u16, flag: ResponseFlag, details: &'static str) {
        let exchange = &self.exchange;
        let (notes, up) = (&exchange.notes, &exchange.up);
        let head = if exchange.noted.size() > 0 { &exchange.noted } else { &up.out };
        let noted = |span: Span| head.past(span.start as usize, span.length as usize);
        let duration = exchange.start.elapsed();
        let (unreachable, other_details) = exchange.fault();
        self.env.telemetry.record(&Record {
            decision: exchange.decision.as_deref(),
            trace: exchange.trace.as_deref(),
            route: exchange.rule.as_ref().map(AppliedRule::label),
            start: SystemTime::now().checked_sub(duration),
            duration,
            upstream_time: exchange.upstream_time(),
            method: noted(notes.method),
            path: noted(notes.path),
            protocol: exchange.asked.version.as_str(),
            status,
            flag,
            details: other_details.unwrap_or(details),
            transport_failure: unreachable.unwrap_or_default(),
            received: up.moved,
            sent: exchange.down.moved,
            authority: noted(notes.authority),
            user_agent: noted(notes.user_agent),
            forwarded_for: noted(notes.forwarded_for),
            request_id: noted(notes.request_id),
            ..Record::of(self.handler.connection(), exchange.endpoint)
        });
    }
}

/// Makes what the upstream gets of a request's head; the error is the answer to a head that it cannot get.
#[inline]
fn prepare(
    exchange: &mut Exchange,
    head: &RequestHead<'_>,
    forward: Forward,
    (handler, env): (&Handler, &HttpContext),
) -> Result<Next, LocalReply> {
    let connection = handler.connection();
    if forward.protocol == UpstreamProtocol::Http1 {
        exchange.write_head(head, (connection, forward.proxy_of_requests()), &env.buffers);
        return Ok(Next::Forward(forward));
    }
    let changes = (exchange.rule.as_ref(), exchange.trace.as_deref());
    let request = bridge::request(head, connection, changes);
    let request = request.ok_or(local_reply::bad_request("http1.invalid_url"))?;
    exchange.notes = bridge::note(head, &request, &mut exchange.noted);
    Ok(Next::Bridge(forward, Box::new(request)))
}

/// Whether the upstream has broken the exchange off.
fn is_of_upstream(flag: ResponseFlag) -> bool {
    matches!(flag, ResponseFlag::UpstreamConnectionTermination | ResponseFlag::UpstreamProtocolError)
}

/// Whether parsing these bytes can give anything new, so that a head that trickles in costs linear time. The first
/// bytes are always looked at, for what is wrong with them need not wait for more.
fn is_worth_parsing(bytes: &[u8], examined: usize, limit: usize) -> bool {
    let new = bytes.get(examined.saturating_sub(3)..).unwrap_or_default();
    examined == 0
        || bytes.len() >= (2 * examined).min(limit)
        || new.windows(4).any(|end| end == b"\r\n\r\n")
        || has_bare_line_feed(new)
}

/// Flag and details of a request that was ended from outside. `is_client_due`: whether the client was to send or to
/// take bytes.
pub(super) fn ended_by(cause: Cause, is_client_due: bool) -> (ResponseFlag, &'static str) {
    match cause {
        Cause::Deadline(Wait::HalfClose) => (ResponseFlag::DownstreamConnectionTermination, cause.details()),
        Cause::Deadline(_) if is_client_due => (ResponseFlag::DownstreamTimeout, "stream_idle_timeout"),
        Cause::Deadline(_) => (ResponseFlag::UpstreamTimeout, "stream_idle_timeout"),
        Cause::Draining => (ResponseFlag::None, "drain_time_exceeded"),
        Cause::PolicyChanged => (ResponseFlag::Refused, "policy_changed"),
        Cause::CertificateExpired => (ResponseFlag::Refused, "client_certificate_expired"),
        Cause::TrustBundleChanged => (ResponseFlag::Refused, "trust_bundle_changed"),
        Cause::MadeRoom | Cause::NoRoom => (ResponseFlag::Overload, cause.details()),
        Cause::PeerVanished => (ResponseFlag::UpstreamConnectionTermination, cause.details()),
    }
}
