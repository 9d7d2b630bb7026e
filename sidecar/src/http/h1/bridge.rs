//! A client of HTTP/1 in front of an app that speaks only HTTP/2: `request` turns its request into one of HTTP/2, and
//! the answer comes back as HTTP/1.
//!
//! Rare, and so built for plainness: it allocates. Trailers of a request end here, those of an answer are passed on.
//! `100 Continue` is ours where a client waits for it, because many apps that speak HTTP/2 do not send it; other interim
//! answers are passed on.

mod client;
mod download;
mod request;
mod upload;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};

use ::http::{Request, StatusCode};
use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{Either, Empty};
use tokio::io::{AsyncRead, AsyncWrite};

use self::client::SharedClient;
pub(super) use self::request::{note, request};
use self::upload::UploadEnd;
use super::exchange::{Asked, Exchange, ExchangeOutcome, Upload, UploadState, response_edits};
use super::forward::write_http2_interim;
use super::watch::{ClientWatch, Due, Pace};
use super::{After, ClientConnection};
use crate::http::HttpContext;
use crate::http::buffer::Buffer;
use crate::http::handler::Forward;
use crate::http::local_reply::{self, LocalReply};
use crate::http::request::Version;
use crate::http::timed::timed;
use crate::lifeline::{Ended, Lifeline};
use crate::limits::Limits;
use crate::stream::Abort;
use crate::telemetry::ResponseFlag;
use crate::upstream::{InterimQueue, UpstreamError};

/// The body of a request to the app: fed by the client's direction, or empty.
type OutgoingBody = Either<Channel<Bytes, io::Error>, Empty<Bytes>>;

/// How an exchange over a bridge ended.
enum BridgeOutcome {
    /// The client has got the whole answer.
    Complete,
    /// The answer that the client gets instead of the app's, unless it has begun to get that.
    Failed(LocalReply),
    /// The app has not answered.
    Unanswered(UpstreamError),
    /// The client cannot get a whole answer.
    Aborted(ResponseFlag, &'static str),
}

/// What the two directions of an exchange share. One task polls both.
struct Bridge<'b, S> {
    client: SharedClient<'b, S>,
    progress: BridgeProgress,
    line: &'b Lifeline,
    env: &'b HttpContext,
}

/// How far the two directions have come.
struct BridgeProgress {
    /// The app is to get more of the request.
    is_uploading: Cell<bool>,
    /// The app has got all of it.
    is_uploaded: Cell<bool>,
    /// What the answer waits for.
    due: Cell<Due>,
    /// Whether anything moved since the deadline was looked at.
    has_moved: Cell<bool>,
    /// Whether the client is still there.
    watch: Cell<ClientWatch>,
}

/// Passes the request on over HTTP/2, and the answer back.
pub(super) async fn forward<S>(
    connection: &mut ClientConnection<'_, S>,
    mut forward: Forward,
    request: Request<()>,
) -> After
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let line = connection.line;
    let outcome = line.guard(Box::pin(exchange(connection, &mut forward, request))).await;
    line.at_ease();
    connection.exchange.endpoint = Some(forward.dialled());
    match outcome {
        Ok(BridgeOutcome::Complete) => {
            let flag = connection.exchange.flag();
            connection.tell_end(connection.exchange.down.status, flag, "via_upstream");
            let is_uploaded = connection.exchange.up.state == UploadState::Done;
            match (connection.exchange.down.close, is_uploaded) {
                (true, _) => After::Linger,
                (false, true) => After::Next,
                (false, false) => connection.drain().await,
            }
        }
        Ok(BridgeOutcome::Failed(reply)) => fail(connection, reply).await,
        Ok(BridgeOutcome::Unanswered(error)) => {
            let reply = connection.unanswered(&error);
            fail(connection, reply).await
        }
        Ok(BridgeOutcome::Aborted(flag, details)) => {
            connection.tell_end(connection.exchange.down.status, flag, details);
            After::Abort
        }
        Err(Ended(cause)) => connection.cut_off(cause).await,
    }
}

/// Gives the client this answer, or cuts off the one that it has begun to get.
async fn fail<S>(connection: &mut ClientConnection<'_, S>, reply: LocalReply) -> After
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    match connection.exchange.fail(reply) {
        ExchangeOutcome::Failed(reply) => {
            connection.tell(&reply);
            connection.reply(reply).await
        }
        _ => {
            connection.tell_end(connection.exchange.down.status, reply.flag, reply.details);
            After::Abort
        }
    }
}

/// Both directions at once; over when the answer is, or when the request's direction fails.
async fn exchange<S>(
    connection: &mut ClientConnection<'_, S>,
    forward: &mut Forward,
    request: Request<()>,
) -> BridgeOutcome
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let (handler, line, env) = (connection.handler, connection.line, &**connection.env);
    let is_drainable = connection.exchange.is_drainable();
    let Exchange { asked, rule, edits, up, down, watch, pace, attempts, .. } = &mut connection.exchange;
    let edits = response_edits(rule.as_ref(), edits.as_deref());
    let (sender, body) = outgoing_body(up);
    *attempts = forward.attempts.take();
    let client = SharedClient::new(&mut connection.client);
    let bridge = Bridge { client, progress: BridgeProgress::new(sender.is_some()), line, env };
    if asked.expects_continue && sender.is_some() && bridge.invite_body().await.is_err() {
        return BridgeOutcome::client_gone();
    }
    let mut upload = pin!(bridge.upload(up, &mut connection.inbound, sender, watch));
    let mut download = pin!(async {
        let interims = Rc::<InterimQueue>::default();
        let request = request.map(|()| body);
        let sent = match handler.send(env, forward, attempts.as_deref(), request, interims.clone()) {
            Ok(sent) => {
                let response = handler.response(env, forward, attempts.as_deref_mut(), sent);
                match bridge.interims(response, &interims, *asked).await {
                    Ok(response) => response,
                    Err(_) => return BridgeOutcome::client_gone(),
                }
            }
            Err(error) => Err(error),
        };
        let limit = attempts.as_ref().and_then(|attempts| attempts.deadline());
        let downloading = pin!(bridge.download(sent, (*asked, is_drainable), edits, down));
        let downloaded = timed(limit, downloading).await;
        downloaded.unwrap_or_else(|which| BridgeOutcome::Failed(local_reply::timed_out(which)))
    });
    let mut is_upload_over = false;
    poll_fn(|context| {
        if !is_upload_over && let Poll::Ready(end) = upload.as_mut().poll(context) {
            is_upload_over = true;
            match end {
                UploadEnd::Done => {}
                UploadEnd::ClientGone => return Poll::Ready(BridgeOutcome::client_gone()),
                UploadEnd::Malformed(error) => {
                    return Poll::Ready(BridgeOutcome::Failed(local_reply::bad_request(error.details())));
                }
            }
        }
        let outcome = download.as_mut().poll(context);
        if outcome.is_pending() {
            bridge.progress.keep(pace, line, &env.limits);
        }
        outcome
    })
    .await
}

/// The body of the request to the app, and where to put its data; without the latter the request has none.
fn outgoing_body(up: &mut Upload) -> (Option<Sender<Bytes, io::Error>>, OutgoingBody) {
    if up.decoder.is_done() {
        up.state = UploadState::Done;
        return (None, Either::Right(Empty::new()));
    }
    let (sender, body) = Channel::new(1);
    (Some(sender), Either::Left(body))
}

impl<S: AsyncWrite + Unpin> Bridge<'_, S> {
    /// Lets a client send its body that waits for `100 Continue`.
    async fn invite_body(&self) -> io::Result<()> {
        let mut out = Buffer::default();
        out.push(b"HTTP/1.1 100 Continue\r\n\r\n");
        self.write(&mut out).await
    }

    /// Waits for the app's answer, and writes the interim ones before it to the client. The error is that the client has gone.
    async fn interims<R>(
        &self,
        response: impl Future<Output = R>,
        interims: &InterimQueue,
        asked: Asked,
    ) -> io::Result<R> {
        let (mut response, mut client) = (pin!(response), &self.client);
        let (mut answer, mut out, mut is_written) = (None, Buffer::default(), true);
        poll_fn(|context| {
            if answer.is_none() {
                answer = match response.as_mut().poll(context) {
                    Poll::Ready(answer) => Some(answer),
                    Poll::Pending => None,
                };
            }
            for head in interims.take() {
                let is_ours = asked.expects_continue && head.status() == StatusCode::CONTINUE;
                if asked.version == Version::Http11 && !is_ours {
                    write_http2_interim(&head, &mut out);
                    self.progress.step(Due::Body);
                    is_written = false;
                }
            }
            if !is_written {
                ready!(out.poll_write_all(&mut client, context))?;
                ready!(Pin::new(&mut client).poll_flush(context))?;
                self.progress.step(Due::Answer);
                is_written = true;
            }
            answer.take().map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer)))
        })
        .await
    }

    /// Writes all of a buffer to the client.
    async fn write(&self, out: &mut Buffer) -> io::Result<()> {
        let mut client = &self.client;
        poll_fn(|context| {
            ready!(out.poll_write_all(&mut client, context))?;
            Pin::new(&mut client).poll_flush(context)
        })
        .await
    }
}

impl BridgeProgress {
    fn new(has_body: bool) -> Self {
        Self {
            is_uploading: Cell::new(has_body),
            is_uploaded: Cell::new(!has_body),
            due: Cell::new(Due::Answer),
            has_moved: Cell::new(false),
            watch: Cell::default(),
        }
    }

    /// Something has moved; the answer waits for this next.
    fn step(&self, due: Due) {
        self.has_moved.set(true);
        self.due.set(due);
    }

    /// Keeps the deadline of the direction that is waited for: the request's as long as it has more to come.
    fn keep(&self, pace: &mut Pace, line: &Lifeline, limits: &Limits) {
        if self.has_moved.take() {
            pace.step();
        }
        let due = if self.is_uploading.get() { Due::Body } else { self.due.get() };
        pace.keep(due, self.watch.get(), line, limits);
    }
}

impl BridgeOutcome {
    fn client_gone() -> Self {
        Self::Aborted(ResponseFlag::DownstreamConnectionTermination, "downstream_remote_disconnect")
    }
}
