//! A client of HTTP/1 in front of an app that speaks only HTTP/2: the request as the app would have got it over
//! HTTP/1, turned into one over HTTP/2.
//!
//! Rare, and so built for plainness: it allocates. Trailers of a request end here, those of an answer are passed on.
//! Interim answers of the app are not looked at, so `100 Continue` is ours where a client waits for it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::uri::{Authority, PathAndQuery};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Empty};
use tidegate_core::backend::Endpoint;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::{BodyError, write_chunk};
use super::exchange::{Exchange, Upload, UploadState, make_room};
use super::forward::{self, Persistence};
use super::head::{self, Storage};
use super::watch::{Due, Pace, Watch};
use super::{After, Connection};
use crate::connection_info::ConnectionInfo;
use crate::http::HttpContext;
use crate::http::buffer::{Buffer, MEDIUM};
use crate::http::h2::http2_target;
use crate::http::headers::{Field, is_protected, is_stream};
use crate::http::local_reply::{self, LocalReply};
use crate::http::request::Version;
use crate::lifeline::{Ended, Lifeline};
use crate::limits::Limits;
use crate::stream::{Abort, PeerEnd};
use crate::telemetry::ResponseFlag;
use crate::upstream::UpstreamBody;

/// What frames a chunk, at most: its size in hexadecimal digits, and two ends of lines.
const CHUNK_FRAME: usize = 20;

type OutgoingBody = Either<Channel<Bytes, io::Error>, Empty<Bytes>>;

/// How the exchange ended.
enum Outcome {
    Complete,
    Failed(LocalReply),
    Aborted(ResponseFlag, &'static str),
}

enum UploadEnd {
    /// The app has got all of it, or wants no more.
    Done,
    ClientGone,
    Malformed(BodyError),
}

/// The client's connection, for the two directions that one task drives.
struct Shared<'c, S>(RefCell<&'c mut S>);

/// How far the two directions have come.
struct Progress {
    /// The app is to get more of the request.
    is_uploading: Cell<bool>,
    /// The app has got all of it.
    is_uploaded: Cell<bool>,
    /// What the answer waits for.
    due: Cell<Due>,
    /// Whether anything moved since the deadline was looked at.
    has_moved: Cell<bool>,
    /// Whether the client is still there.
    watch: Cell<Watch>,
}

/// Passes the request on over HTTP/2, and the answer back.
pub(super) async fn forward<S>(connection: &mut Connection<'_, S>, endpoint: Arc<Endpoint>) -> After
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let head = std::mem::take(&mut connection.exchange.up.out);
    let request = request(&head, &connection.env.limits);
    connection.exchange.noted = head;
    let Some(request) = request else {
        let reply = local_reply::bad_request("http1.invalid_url");
        connection.tell(&reply);
        return connection.reply(reply).await;
    };
    let outcome = {
        let (line, env) = (connection.line, connection.env);
        let client = connection.handler.info().clone();
        line.guard(Box::pin(exchange(connection, request, (&client, &endpoint), line, env))).await
    };
    connection.line.at_ease();
    match outcome {
        Ok(Outcome::Complete) => {
            connection.tell_end(connection.exchange.down.status, ResponseFlag::None, "via_upstream");
            let is_uploaded = connection.exchange.up.state == UploadState::Done;
            match (connection.exchange.down.close, is_uploaded) {
                (true, _) => After::Linger,
                (false, true) => After::Next,
                (false, false) => connection.drain().await,
            }
        }
        Ok(Outcome::Failed(reply)) => match connection.exchange.fail(reply) {
            super::Outcome::Failed(reply) => {
                connection.tell(&reply);
                connection.reply(reply).await
            }
            _ => {
                connection.tell_end(connection.exchange.down.status, reply.flag, reply.details);
                After::Abort
            }
        },
        Ok(Outcome::Aborted(flag, details)) => {
            connection.tell_end(connection.exchange.down.status, flag, details);
            After::Abort
        }
        Err(Ended(cause)) => connection.cut_off(cause).await,
    }
}

/// Both directions at once; over when the answer is.
async fn exchange<S>(
    connection: &mut Connection<'_, S>,
    request: Request<()>,
    (info, endpoint): (&ConnectionInfo, &Arc<Endpoint>),
    line: &Lifeline,
    env: &HttpContext,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let asked = connection.exchange.asked;
    let is_drainable = connection.exchange.is_drainable();
    let client = Shared(RefCell::new(&mut connection.client));
    let (mut reader, mut writer) = (&client, &client);
    let Exchange { up, down, watch, pace, .. } = &mut connection.exchange;
    let (sender, body): (_, OutgoingBody) = if up.decoder.is_done() {
        (None, Either::Right(Empty::new()))
    } else {
        let (sender, body) = Channel::new(1);
        (Some(sender), Either::Left(body))
    };
    if asked.expects_continue && sender.is_some() {
        let mut out = Buffer::default();
        out.push(b"HTTP/1.1 100 Continue\r\n\r\n");
        if write(&mut writer, &mut out).await.is_err() {
            return Outcome::client_gone();
        }
    }
    if sender.is_none() {
        up.state = UploadState::Done;
    }
    let progress = Progress {
        is_uploading: Cell::new(sender.is_some()),
        is_uploaded: Cell::new(sender.is_none()),
        due: Cell::new(Due::Answer),
        has_moved: Cell::new(false),
        watch: Cell::default(),
    };
    let inbound = &mut connection.inbound;
    let mut upload = pin!(async {
        if let Some(sender) = sender {
            let end = upload(up, inbound, &mut reader, sender, &progress, env).await;
            if !matches!(end, UploadEnd::Done) {
                return end;
            }
            progress.is_uploaded.set(up.state == UploadState::Done);
            progress.is_uploading.set(false);
        }
        poll_fn(|context| {
            let gone = watch.poll(&mut reader, inbound, (line, env), context);
            progress.watch.set(*watch);
            gone
        })
        .await;
        UploadEnd::ClientGone
    });
    let mut download = pin!(async {
        let sent = match env.upstreams.send(info, endpoint, request.map(|()| body)) {
            Ok(sending) => sending.await,
            Err(error) => Err(error),
        };
        let response = match sent {
            Ok(response) => response,
            Err(error) => {
                if let Some(limit) = error.limit() {
                    env.telemetry.limited(limit);
                }
                return Outcome::Failed(local_reply::upstream_failed(&error));
            }
        };
        let (head, body) = response.into_parts();
        let head = Response::from_parts(head, ());
        let status = head.status().as_u16();
        let has_body = !asked.is_head && !matches!(status, 204 | 304);
        let has_length = head.headers().contains_key(::http::header::CONTENT_LENGTH);
        let content_type = head.headers().get(::http::header::CONTENT_TYPE);
        let is_stream = content_type.is_some_and(|value| is_stream(value.as_bytes()));
        let chunked = has_body && !has_length && asked.version == Version::Http11;
        down.status = status;
        down.close = !asked.keep_alive
            || line.is_finishing()
            || !(progress.is_uploaded.get() || is_drainable)
            || (has_body && !has_length && !chunked);
        let mut out = env.buffers.take(MEDIUM);
        let persistence = Persistence::new(down.close, asked.version);
        forward::write_http2_response(&head, chunked, persistence, &mut out);
        progress.step(Due::Body);
        if write(&mut writer, &mut out).await.is_err() {
            return Outcome::client_gone();
        }
        env.buffers.give(&mut out);
        down.set_begun();
        if !has_body {
            return Outcome::Complete;
        }
        let more = Due::More { is_stream };
        pump(body, &mut down.moved, &mut writer, &mut out, chunked, (more, &progress), env).await
    });
    let mut is_upload_over = false;
    poll_fn(|context| {
        if !is_upload_over && let Poll::Ready(end) = upload.as_mut().poll(context) {
            is_upload_over = true;
            match end {
                UploadEnd::Done => {}
                UploadEnd::ClientGone => return Poll::Ready(Outcome::client_gone()),
                UploadEnd::Malformed(error) => {
                    return Poll::Ready(Outcome::Failed(local_reply::bad_request(error.details())));
                }
            }
        }
        let outcome = download.as_mut().poll(context);
        if outcome.is_pending() {
            progress.keep(pace, line, &env.limits);
        }
        outcome
    })
    .await
}

/// The answer's body, to the client.
async fn pump<W: AsyncWrite + Unpin>(
    mut body: UpstreamBody,
    moved: &mut u64,
    writer: &mut W,
    out: &mut Buffer,
    chunked: bool,
    (more, progress): (Due, &Progress),
    env: &HttpContext,
) -> Outcome {
    loop {
        progress.step(more);
        let is_end = match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    *moved += data.len() as u64;
                    if out.size() == 0 {
                        *out = env.buffers.take(data.len() + CHUNK_FRAME);
                    }
                    match chunked {
                        true if !data.is_empty() => write_chunk(out, &data),
                        true => {}
                        false => out.push(&data),
                    }
                    false
                }
                Err(frame) => {
                    write_end(out, chunked, frame.into_trailers().ok());
                    true
                }
            },
            Some(Err(_)) => {
                let flag = ResponseFlag::UpstreamConnectionTermination;
                return Outcome::Aborted(flag, "upstream_reset_after_response_started{remote_reset}");
            }
            None => {
                write_end(out, chunked, None);
                true
            }
        };
        progress.step(Due::Body);
        if write(writer, out).await.is_err() {
            return Outcome::client_gone();
        }
        // The next piece may be long in coming.
        env.buffers.give(out);
        if is_end {
            return Outcome::Complete;
        }
    }
}

impl Progress {
    /// Something has moved; the answer waits for this next.
    fn step(&self, due: Due) {
        self.has_moved.set(true);
        self.due.set(due);
    }

    fn keep(&self, pace: &mut Pace, line: &Lifeline, limits: &Limits) {
        if self.has_moved.take() {
            pace.step();
        }
        let due = if self.is_uploading.get() { Due::Body } else { self.due.get() };
        pace.keep(due, self.watch.get(), line, limits);
    }
}

impl Outcome {
    fn client_gone() -> Self {
        Self::Aborted(ResponseFlag::DownstreamConnectionTermination, "downstream_remote_disconnect")
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for &Shared<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for &Shared<'_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_shutdown(context)
    }
}

impl<S: Abort> Abort for &Shared<'_, S> {
    fn abort(&self) {
        self.0.borrow().abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.0.borrow().peer_end()
    }
}

fn write_end(out: &mut Buffer, chunked: bool, trailers: Option<HeaderMap>) {
    if !chunked {
        return;
    }
    out.push(b"0\r\n");
    for (name, value) in &trailers.unwrap_or_default() {
        let name = name.as_str().as_bytes();
        if !is_protected(name) {
            for part in [name, b": ", value.as_bytes(), b"\r\n"] {
                out.push(part);
            }
        }
    }
    out.push(b"\r\n");
}

async fn upload<R: AsyncRead + Unpin>(
    up: &mut Upload,
    inbound: &mut Buffer,
    reader: &mut R,
    mut sender: Sender<Bytes, io::Error>,
    progress: &Progress,
    env: &HttpContext,
) -> UploadEnd {
    loop {
        progress.has_moved.set(true);
        let mut out = Buffer::default();
        match up.decoder.transfer(inbound, &mut out, false, &env.buffers, &env.limits) {
            Ok(moved) => up.moved += moved,
            Err(error) => {
                sender.abort(io::ErrorKind::InvalidData.into());
                return UploadEnd::Malformed(error);
            }
        }
        if !out.is_empty() {
            let data = Bytes::copy_from_slice(out.bytes());
            env.buffers.give(&mut out);
            if sender.send_data(data).await.is_err() {
                return UploadEnd::Done;
            }
            continue;
        }
        if up.decoder.is_done() {
            up.state = UploadState::Done;
            return UploadEnd::Done;
        }
        make_room(inbound, env);
        let read = poll_fn(|context| env.buffers.poll_read(inbound, MEDIUM, reader, context));
        if !matches!(read.await, Ok(1..)) {
            sender.abort(io::ErrorKind::ConnectionAborted.into());
            return UploadEnd::ClientGone;
        }
    }
}

/// The request that is written in `out`, without what HTTP/2 frames itself.
fn request(out: &Buffer, limits: &Limits) -> Option<Request<()>> {
    let mut storage = Storage::new();
    // The fields that we add may be more than a client may send.
    let limits = Limits { header_count: head::MAX_FIELDS, head_bytes: usize::MAX, ..limits.clone() };
    let head = head::parse_request(out.bytes(), &mut storage, &limits).ok()??;
    let authority = Some(head.request.authority).filter(|authority| !authority.is_empty());
    let authority = authority.map(Authority::try_from).transpose().ok()?;
    let (uri, version) = http2_target(authority, PathAndQuery::try_from(head.request.path).ok()?);
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    *request.method_mut() = Method::from_bytes(head.request.method).ok()?;
    *request.version_mut() = version;
    for (field, name, value) in head.fields.iter() {
        let ends_here = matches!(
            field,
            Field::Host
                | Field::Connection
                | Field::HopByHop
                | Field::TransferEncoding
                | Field::Upgrade
                | Field::Expect
        );
        if !ends_here {
            let name = HeaderName::from_bytes(name).ok()?;
            request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
        }
    }
    Some(request)
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, out: &mut Buffer) -> io::Result<()> {
    poll_fn(|context| {
        ready!(out.poll_write_all(writer, context))?;
        Pin::new(&mut *writer).poll_flush(context)
    })
    .await
}
