//! Room for one request on a connection, and the request that takes it.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use futures_util::FutureExt;
use http::{Response, request};
use tidegate_core::backend::UsagePermit;

use super::Http2;
use super::connection::{Http2Connection, RequestFailure};
use crate::upstream::body::{Outgoing, UpstreamBody};
use crate::upstream::error::UpstreamError;
use crate::upstream::shares::Share;

/// Room for one request on a connection.
pub(in crate::upstream) struct Lease {
    /// Its number of streams includes this request until this is dropped.
    connection: Rc<Http2Connection>,
    all: Rc<Http2>,
    share: Option<Share>,
    /// Its place among the requests to the backend, if those are limited.
    request: Cell<Option<UsagePermit>>,
}

impl Lease {
    /// Counts a request on the connection.
    pub(super) fn new(connection: Rc<Http2Connection>, all: Rc<Http2>, share: Share) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        if let Some(place) = &connection.place {
            place.count_request();
        }
        Self { connection, all, share: Some(share), request: Cell::default() }
    }

    /// The request goes over the connection, unless the backend has as many in flight as it may.
    pub(super) fn begin(self) -> Result<Self, UpstreamError> {
        if let Some(place) = &self.connection.place {
            let request = place.request().inspect_err(|_| place.discount_request())?;
            self.request.set(Some(request));
        }
        Ok(self)
    }

    /// Sends a request. Dropped before the answer has come, the request is cancelled.
    pub(super) async fn send(
        self,
        head: Box<request::Parts>,
        body: Outgoing,
    ) -> Result<Response<UpstreamBody>, (RequestFailure, Rc<Http2Connection>)> {
        let lease = Rc::new(self);
        body.hold(lease.clone());
        let (retained, interims) = (body.retain(), body.interims());
        let before = lease.connection.received();
        let failed = |error: &h2::Error, is_unsent| {
            // Not only once its body is dropped: the request may be sent again before.
            drop(lease.request.take());
            let RequestFailure { error, is_untouched, is_stale } =
                lease.connection.judge(error, is_unsent, before);
            let failure = RequestFailure { error: retained.cause(error), is_untouched, is_stale };
            (failure, lease.connection.clone())
        };
        let (mut response, uploading) = match lease.connection.begin(head, body) {
            Ok(begun) => begun,
            Err((error, is_unsent)) => return Err(failed(&error, is_unsent)),
        };
        let response = poll_fn(|context| {
            if let Some(interims) = &interims {
                while let Poll::Ready(Some(Ok(head))) = response.poll_informational(context) {
                    interims.interim(head);
                }
            }
            response.poll_unpin(context)
        });
        match response.await {
            Ok(response) => {
                lease.connection.has_answered.set(true);
                let windows = &lease.connection.windows;
                Ok(response.map(|stream| UpstreamBody::http2(stream, windows, lease.clone(), uploading)))
            }
            Err(error) => Err(failed(&error, false)),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get() - 1);
        connection.idle_since.set(Instant::now());
        drop(self.share.take());
        if !self.all.queue.borrow().is_empty() {
            self.all.serve_queue();
        }
    }
}
