//! Copies of requests, which a rule has sent to other backends (Gateway API: `RequestMirror`).
//!
//! A copy leaves once all of its request was sent, and waits for nothing that its request waits for. Each is a task of its
//! own, of which a worker has a bounded number. Its response, or the lack of one, has no effect but on the balancing of the
//! backend that it went to.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HOST};
use ::http::uri::Authority;
use ::http::{HeaderValue, Request, Uri, request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use super::HttpContext;
use super::h2::set_http2_target;
use super::handler::UpstreamProtocol;
use crate::destinations::EndpointChoice;
use crate::telemetry::Telemetry;
use crate::upstream::{SendFailure, Sending, UpstreamError};

/// The most copies of a worker that are on their way. With 64 KiB of a body each, they take at most 8 MiB.
const MOST_COPIES: usize = 128;

/// How long a copy may take, to the end of its response.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of a copy's response that are read, so that its connection can be used again.
const MOST_READ: usize = 1024 * 1024;

/// The places of a worker's copies.
#[derive(Default)]
pub(crate) struct MirrorSlots {
    taken: Rc<Cell<usize>>,
}

/// A place, until it is dropped.
struct MirrorSlot {
    taken: Rc<Cell<usize>>,
}

/// Where a copy goes.
pub(super) struct MirrorTarget {
    choice: EndpointChoice,
    protocol: UpstreamProtocol,
}

impl MirrorSlots {
    fn take(&self) -> Option<MirrorSlot> {
        let taken = self.taken.get();
        (taken < MOST_COPIES).then(|| {
            self.taken.set(taken + 1);
            MirrorSlot { taken: self.taken.clone() }
        })
    }
}

impl Drop for MirrorSlot {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - 1);
    }
}

impl MirrorTarget {
    /// An endpoint that gets it in this version of HTTP.
    pub(super) fn new(choice: EndpointChoice, protocol: UpstreamProtocol) -> Self {
        Self { choice, protocol }
    }
}

/// Sends copies of a request that was sent. `head`: as its own endpoint got it, in either version's form.
pub(super) fn send_copies(
    env: &HttpContext,
    targets: Vec<MirrorTarget>,
    head: &request::Parts,
    body: &Bytes,
) {
    for MirrorTarget { choice, protocol } in targets {
        let Some(copy) = copy(head, body.clone(), protocol) else { continue };
        let Some(slot) = env.mirrors.take() else {
            env.telemetry.limited("mirrors");
            continue;
        };
        let is_http2 = protocol == UpstreamProtocol::Http2;
        let telemetry = env.telemetry.clone();
        match env.upstreams.send_copy(&choice.endpoint, is_http2, copy) {
            Ok(sending) => drop(tokio::task::spawn_local(async move {
                let copied = tokio::time::timeout(COPY_TIMEOUT, finish(sending, choice)).await;
                // One that is cancelled, because its time is over, counts as sent.
                count(&telemetry, copied.unwrap_or(Ok(())));
                drop(slot);
            })),
            Err(refusal) => count(&telemetry, Err(refusal)),
        }
    }
}

/// Counts a copy: as sent, or by the limit that has refused it.
fn count(telemetry: &Telemetry, sent: Result<(), UpstreamError>) {
    match sent {
        Ok(()) => telemetry.totals().mirrored.add(1),
        Err(error) => {
            if let Some(limit) = error.limit() {
                telemetry.limited(limit);
            }
        }
    }
}

/// Waits for the end of a copy, and records what it says about the endpoint. The error is why it was not sent.
async fn finish(sending: Sending, mut choice: EndpointChoice) -> Result<(), UpstreamError> {
    let mut body = match sending.await {
        Ok(response) => {
            choice.responded(response.status().as_u16(), None);
            response.into_body()
        }
        Err(SendFailure { error, .. }) => {
            match &error {
                UpstreamError::Connect(_) | UpstreamError::Vanished => {
                    choice.turn();
                }
                error if error.is_of_upstream() => choice.failed(),
                _ => {}
            }
            let is_sent = !matches!(error, UpstreamError::Connect(_) | UpstreamError::Overflow(_));
            return if is_sent { Ok(()) } else { Err(error) };
        }
    };
    let mut read = 0;
    while read < MOST_READ
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(())
}

/// The same request for an endpoint of this version. `None` if it has no path.
fn copy(head: &request::Parts, body: Bytes, protocol: UpstreamProtocol) -> Option<Request<Full<Bytes>>> {
    let mut fields = head.headers.clone();
    // That of the body, which is not framed by the request's own fields.
    fields.remove(CONTENT_LENGTH);
    let path = head.uri.path_and_query()?.clone();
    let host = fields.remove(HOST);
    let of_host = || Authority::try_from(host.as_ref()?.as_bytes()).ok();
    let authority = head.uri.authority().cloned().or_else(of_host);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = fields;
    match protocol {
        UpstreamProtocol::Http1 => {
            let name = authority.as_ref().map_or("", Authority::as_str);
            request.headers_mut().insert(HOST, HeaderValue::try_from(name).ok()?);
            *request.uri_mut() = Uri::from(path);
        }
        UpstreamProtocol::Http2 => set_http2_target(&mut request, authority, path),
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let slots = MirrorSlots::default();
        let taken: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(taken.len(), MOST_COPIES);
        drop(taken);
        assert!(slots.take().is_some());
    }

    #[test]
    fn a_copy_has_the_form_of_its_endpoint_s_version() {
        let of_http1 = Request::get("/a?b").header(HOST, "cart:80").header("x", "1").body(()).unwrap();
        let of_http2 = Request::get("http://cart:80/a?b").header("x", "1").body(()).unwrap();
        for request in [of_http1, of_http2] {
            let head = request.into_parts().0;
            let one = copy(&head, Bytes::new(), UpstreamProtocol::Http1).unwrap();
            assert_eq!(
                (one.uri().to_string(), &one.headers()[HOST]),
                ("/a?b".into(), &"cart:80".parse().unwrap())
            );
            let two = copy(&head, Bytes::new(), UpstreamProtocol::Http2).unwrap();
            assert_eq!((two.uri().to_string(), two.headers().get(HOST)), ("http://cart:80/a?b".into(), None));
            assert_eq!(
                (&one.headers()["x"], &two.headers()["x"]),
                (&"1".parse().unwrap(), &"1".parse().unwrap())
            );
        }
    }
}
