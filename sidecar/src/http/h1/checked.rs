//! A request that an external authorization has to allow.
//!
//! Its head stays unread in `inbound` until there is a verdict; only then is what the app gets of it written. Meanwhile the
//! client may send its body, of which one buffer is taken, or leave, which cancels the check.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};

use super::head::{self, Storage};
use super::{After, ClientConnection, Next, OwnAnswer, UnsentRecord, bridge, ended_by, prepare};
use crate::http::external_authorization::{AuthorizationCheck, CheckVerdict, Edits, Refusal};
use crate::http::handler::{Forward, PendingCheck};
use crate::http::local_reply::{self, LocalReply, ReplyForm};
use crate::lifeline::{Cause, Ended, Wait};
use crate::stream::Abort;

/// Why a check ended without a verdict.
enum Unchecked {
    ClientLeft,
    Ended(Cause),
}

/// Waits for the verdict on a request, and passes the request on or answers it.
pub(super) async fn serve<S>(connection: &mut ClientConnection<'_, S>, pending: PendingCheck) -> After
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let PendingCheck { check, forward, path } = pending;
    let next = match verdict(connection, check).await {
        Ok(CheckVerdict::Allow(edits)) => connection.resume(forward, path, edits),
        Ok(CheckVerdict::Refuse(refusal)) => return connection.refuse(*refusal).await,
        Err(Unchecked::ClientLeft) => {
            connection.tell_unread(connection.own(&local_reply::client_left()));
            return After::Abort;
        }
        Err(Unchecked::Ended(Cause::Deadline(Wait::HalfClose))) => {
            let reply = local_reply::half_closed();
            connection.tell_unread(connection.own(&reply));
            return connection.reply(reply).await;
        }
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

/// The verdict, as long as the client waits for it.
async fn verdict<S>(
    connection: &mut ClientConnection<'_, S>,
    check: AuthorizationCheck,
) -> Result<CheckVerdict, Unchecked>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let (line, env) = (connection.line, &**connection.env);
    let mut verdict = pin!(check.verdict(env, connection.handler.connection()));
    let (client, inbound) = (&mut connection.client, &mut connection.inbound);
    let (watch, mut is_timed) = (&mut connection.exchange.watch, false);
    let decided = line.guard(poll_fn(|context| {
        if let Poll::Ready(verdict) = verdict.as_mut().poll(context) {
            return Poll::Ready(Ok(verdict));
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

impl<S: AsyncRead + AsyncWrite + Abort + Unpin> ClientConnection<'_, S> {
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
        let Refusal { decision, response, details } = refusal;
        self.exchange.decision = Some(decision);
        self.tell_unread(UnsentRecord {
            status: response.status.as_u16(),
            flag: Refusal::FLAG,
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
