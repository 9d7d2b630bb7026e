//! A request that servers of the users have to allow.
//!
//! Its head stays unread in `inbound` until there is a verdict; only then is what the app gets of it written. Meanwhile the
//! client may send its body, of which one buffer is taken, or leave, which cancels the check. If the server gets a part of the body,
//! that is read into `inbound` first, and stays there for the app.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{BodyError, Decoder};
use super::exchange::make_room;
use super::head::{self, Storage};
use super::{After, ClientConnection, Next, OwnAnswer, UnsentRecord, bridge, ended_by, prepare};
use crate::http::buffer::{Buffer, MEDIUM};
use crate::http::checks::RequestChecks;
use crate::http::external_authorization::{BodyPart, BodyPartEnd};
use crate::http::handler::{Forward, PendingCheck};
use crate::http::local_reply::{self, LocalReply, ReplyForm};
use crate::http::verdict::{Allowance, CheckVerdict, Edits, Refusal};
use crate::lifeline::{Cause, Ended, Wait};
use crate::stream::Abort;

/// Why a check ended without a verdict.
enum Unchecked {
    ClientLeft,
    Ended(Cause),
    /// The client gets this in place of the app's answer.
    Answered(LocalReply),
}

/// Framing that may come with each byte of a body, in bytes, and at all. A body with more is as one that is longer.
const FRAMING_OF_BYTE: usize = 2;
const FRAMING: usize = 4 * 1024;

/// Waits for the verdict on a request, and passes the request on or answers it.
pub(super) async fn serve<S>(connection: &mut ClientConnection<'_, S>, pending: PendingCheck) -> After
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let PendingCheck { checks, forward, path } = pending;
    let next = match checked(connection, checks).await {
        Ok(CheckVerdict::Allow(Allowance { edits, report })) => {
            connection.exchange.decision = report.or(connection.exchange.decision.take());
            connection.resume(forward, path, edits)
        }
        Ok(CheckVerdict::Refuse(refusal)) => return connection.refuse(*refusal).await,
        Err(Unchecked::ClientLeft) => {
            connection.tell_unread(connection.own(&local_reply::client_left()));
            return After::Abort;
        }
        Err(Unchecked::Ended(Cause::Deadline(Wait::HalfClose))) => {
            return connection.answer_unread(local_reply::half_closed()).await;
        }
        Err(Unchecked::Answered(reply)) => return connection.answer_unread(reply).await,
        Err(Unchecked::Ended(cause)) => {
            let (flag, details) = ended_by(cause, false);
            connection.tell_unread(UnsentRecord {
                flag,
                details,
                ..connection.own(&local_reply::client_left())
            });
            return After::Abort;
        }
    };
    match next {
        Next::Forward(forward) => connection.forward(forward).await,
        Next::Bridge(forward, request) => bridge::forward(connection, forward, *request).await,
        Next::Reply(reply, _) => connection.reply(reply).await,
        Next::Check(_) | Next::Await(_) | Next::End => After::Close,
    }
}

/// The verdict on a request and the part of its body that the server gets.
async fn checked<S>(
    connection: &mut ClientConnection<'_, S>,
    checks: RequestChecks,
) -> Result<CheckVerdict, Unchecked>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let (env, client) = (&**connection.env, connection.handler.connection());
    let checks = match while_awaited(connection, checks.within_limits(env, client)).await? {
        Ok(checks) => checks,
        Err(refusal) => return Ok(CheckVerdict::Refuse(refusal)),
    };
    let checks = match checks.wants_body() {
        None => checks,
        Some((most, time)) => {
            let part = Box::pin(connection.read_part(most, time)).await?;
            match checks.with_body(part, &env.telemetry) {
                Ok(checks) => checks,
                Err(verdict) => return Ok(verdict),
            }
        }
    };
    while_awaited(connection, checks.verdict(env, client)).await
}

/// The result of a check, as long as the client waits for it.
async fn while_awaited<S, T>(
    connection: &mut ClientConnection<'_, S>,
    check: impl Future<Output = T>,
) -> Result<T, Unchecked>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let (line, env) = (connection.line, &**connection.env);
    let mut check = pin!(check);
    let (client, inbound) = (&mut connection.client, &mut connection.inbound);
    let (watch, mut is_timed) = (&mut connection.exchange.watch, false);
    let decided = line.guard(poll_fn(|context| {
        if let Poll::Ready(result) = check.as_mut().poll(context) {
            return Poll::Ready(Ok(result));
        }
        if watch.poll(client, inbound, (line, env), context).is_ready() {
            return Poll::Ready(Err(Unchecked::ClientLeft));
        }
        // It waits for the response, or has left.
        if watch.has_ended && !std::mem::replace(&mut is_timed, true) {
            line.within(env.limits.half_close, Wait::HalfClose);
        }
        Poll::Pending
    }));
    let decided = decided.await;
    line.at_ease();
    match decided {
        Ok(decided) => decided,
        Err(Ended(cause)) => Err(Unchecked::Ended(cause)),
    }
}

/// The body is malformed.
fn malformed(error: BodyError) -> Unchecked {
    Unchecked::Answered(local_reply::bad_request(error.details()))
}

impl<S: AsyncRead + AsyncWrite + Abort + Unpin> ClientConnection<'_, S> {
    /// Reads until `inbound` has all of the body, or more than `most` bytes of it, or the time is over. A client that waits for
    /// `100 Continue` gets it.
    async fn read_part(&mut self, most: usize, time: Duration) -> Result<BodyPart, Unchecked> {
        let deadline = tokio::time::Instant::now() + time;
        let mut is_invited = !self.exchange.asked.expects_continue;
        let end = loop {
            let (bytes, is_whole) = self.peek(most).map_err(malformed)?;
            let is_longer = bytes.len() > most || self.inbound.len() > self.most_unread(most);
            if is_longer {
                break BodyPartEnd::Longer;
            }
            if is_whole {
                break BodyPartEnd::Whole;
            }
            if !std::mem::replace(&mut is_invited, true) {
                self.invite_body().await?;
            }
            match tokio::time::timeout_at(deadline, self.read_more()).await {
                Ok(read) => read?,
                Err(_) => break BodyPartEnd::Late,
            }
        };
        let _ = self.line.hold(0);
        let (bytes, _) = self.peek(most).map_err(malformed)?;
        Ok(BodyPart { bytes, end })
    }

    /// The data of the body that is in `inbound` behind the head, at least `most` bytes if it has them; with whether it is all.
    fn peek(&self, most: usize) -> Result<(Vec<u8>, bool), BodyError> {
        let mut storage = Storage::new();
        let parsed = head::parse_request(self.inbound.bytes(), &mut storage, &self.env.limits);
        // It has been parsed before.
        let Ok(Some(head)) = parsed else { return Ok((Vec::new(), true)) };
        let body = self.inbound.bytes().get(head.length..).unwrap_or_default();
        Decoder::new(head.framing).peek(body, most)
    }

    /// Bytes of head and body that may wait in `inbound`.
    fn most_unread(&self, most: usize) -> usize {
        self.env.limits.head_bytes + FRAMING_OF_BYTE * most + FRAMING
    }

    async fn invite_body(&mut self) -> Result<(), Unchecked> {
        let mut out = Buffer::default();
        out.push(b"HTTP/1.1 100 Continue\r\n\r\n");
        let client = &mut self.client;
        let written = self.line.guard(poll_fn(|context| {
            ready!(out.poll_write_all(client, context))?;
            Pin::new(&mut *client).poll_flush(context)
        }));
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unchecked::ClientLeft),
            Err(Ended(cause)) => Err(Unchecked::Ended(cause)),
        }
    }

    /// Reads once; unread bytes take places, as those of an incomplete head.
    async fn read_more(&mut self) -> Result<(), Unchecked> {
        make_room(&mut self.inbound, self.env);
        self.inbound.disown();
        if !self.line.hold(self.inbound.size()) {
            self.env.telemetry.totals().unfinished.add(1);
            return Err(Unchecked::Answered(local_reply::too_much_unfinished()));
        }
        let (inbound, client, env) = (&mut self.inbound, &mut self.client, self.env);
        let read = poll_fn(|context| env.buffers.poll_read(inbound, MEDIUM, client, context));
        match self.line.guard(read).await {
            Ok(Ok(1..)) => Ok(()),
            Ok(_) => Err(Unchecked::ClientLeft),
            Err(Ended(cause)) => Err(Unchecked::Ended(cause)),
        }
    }

    /// Answers a request whose head is still unread.
    async fn answer_unread(&mut self, reply: LocalReply) -> After {
        self.tell_unread(self.own(&reply));
        self.reply(reply).await
    }

    /// Makes what the upstream gets of a request that is allowed.
    fn resume(&mut self, forward: Forward, path: Option<Box<[u8]>>, edits: Option<Box<Edits>>) -> Next {
        let mut storage = Storage::new();
        let parsed = head::parse_request(self.inbound.bytes(), &mut storage, &self.env.limits);
        // It has been parsed before.
        let Ok(Some(mut head)) = parsed else { return Next::End };
        let length = head.length;
        head.request.path = path.as_deref().unwrap_or(head.request.path);
        let prepared = match &edits {
            None => prepare(&mut self.exchange, &head, forward, (self.handler, self.env)),
            Some(edits) => {
                let text = edits.head(&head.request, &edits.path(head.request.path));
                let mut storage = Storage::new();
                match head::parse_request(&text, &mut storage, &self.env.limits) {
                    Ok(Some(edited)) => {
                        prepare(&mut self.exchange, &edited, forward, (self.handler, self.env))
                    }
                    Ok(None) => Err(local_reply::bad_request("ext_authz_invalid")),
                    Err(error) => Err(LocalReply { close: false, ..error.reply() }),
                }
            }
        };
        let next = prepared.unwrap_or_else(|reply| {
            self.tell_unsent(self.own(&reply), head.request.record());
            Next::Reply(reply, None)
        });
        self.exchange.edits = edits;
        self.pass_head(length, next)
    }

    /// Answers a request that is refused.
    async fn refuse(&mut self, refusal: Refusal) -> After {
        let Refusal { decision, response, flag, details } = refusal;
        self.exchange.decision = Some(decision);
        self.tell_unread(UnsentRecord {
            status: response.status.as_u16(),
            flag,
            details,
            length: if self.exchange.asked.form == ReplyForm::HeadOnly {
                0
            } else {
                response.body.len() as u64
            },
        });
        let close = self.write_reply(false, OwnAnswer::Refusal(&response));
        self.send_reply(close).await
    }

    /// What the access log says of a local reply to the request.
    fn own(&self, reply: &LocalReply) -> UnsentRecord {
        UnsentRecord::of(reply, self.exchange.asked.form)
    }

    /// Writes the record of a request whose head is still unread, and reads over it.
    fn tell_unread(&mut self, answer: UnsentRecord) {
        let mut storage = Storage::new();
        let parsed = head::parse_request(self.inbound.bytes(), &mut storage, &self.env.limits);
        let Ok(Some(head)) = parsed else { return };
        let length = head.length;
        self.tell_unsent(answer, head.request.record());
        self.inbound.consume(length);
    }
}
