//! Sends requests over the worker's connections, one attempt after the other. A request that both sides have as HTTP/1 does
//! not come here: its codec drives both connections itself.

use std::rc::Rc;

use ::http::{Request, Response, request};
use bytes::Bytes;
use http_body::Body;

use super::Handler;
use super::attempts::{Attempts, FailedResponse};
use super::handled::{Forward, UpstreamProtocol};
use crate::http::HttpContext;
use crate::http::mirror;
use crate::http::timed::timed;
use crate::upstream::{
    BoxError, ConnectFailure, InterimSink, ReplayBody, SendFailure, Sending, UpstreamBody, UpstreamError,
    Upstreams,
};

/// A request on its way.
pub(in crate::http) struct SentRequest<B> {
    sending: Sending,
    /// What another attempt is made of, if the rule limits attempts.
    repeat: Option<Replayed<B>>,
}

/// What a request is made of again.
struct Replayed<B> {
    interims: Rc<dyn InterimSink>,
    head: Box<request::Parts>,
    body: ReplayBody<B>,
}

impl Handler {
    /// Sends a request. Interim responses to it go to `interims`.
    pub(in crate::http) fn send<B>(
        &self,
        env: &HttpContext,
        forward: &Forward,
        attempts: Option<&Attempts>,
        request: Request<B>,
        interims: Rc<dyn InterimSink>,
    ) -> Result<SentRequest<B>, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + 'static,
    {
        let Some(attempts) = attempts else {
            let sending = self.send_to(&env.upstreams, forward, request, interims)?;
            return Ok(SentRequest { sending, repeat: None });
        };
        attempts.begin(&env.retry_budgets);
        let (head, body) = request.into_parts();
        let body = ReplayBody::new(body, attempts.keeps_request());
        let repeat = Replayed { interims, head: Box::new(head), body };
        let sending = self.resend(&env.upstreams, forward, &repeat)?;
        Ok(SentRequest { sending, repeat: Some(repeat) })
    }

    /// Waits for the response to a request, the last one if its rule has it retried.
    pub(in crate::http) async fn response<B>(
        &self,
        env: &HttpContext,
        forward: &mut Forward,
        attempts: Option<&mut Attempts>,
        sent: SentRequest<B>,
    ) -> Result<Response<UpstreamBody>, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + 'static,
    {
        match attempts {
            None => self.response_of_one(env, forward, sent.sending).await,
            // Rare, and large.
            Some(attempts) => Box::pin(self.response_of_last(env, forward, attempts, sent)).await,
        }
    }

    /// Makes one attempt after the other, until a response is to be passed on or no other attempt follows.
    async fn response_of_last<B>(
        &self,
        env: &HttpContext,
        forward: &mut Forward,
        attempts: &mut Attempts,
        sent: SentRequest<B>,
    ) -> Result<Response<UpstreamBody>, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + 'static,
    {
        let SentRequest { mut sending, repeat } = sent;
        loop {
            let attempt = self.response_of_one(env, forward, sending);
            let outcome = match timed(attempts.deadline(), attempt).await {
                Ok(outcome) => outcome,
                Err(which) => {
                    // A client that is slow to send is not the endpoint's fault.
                    if repeat.as_ref().is_none_or(|repeat| repeat.body.is_complete()) {
                        forward.failed();
                    }
                    Err(UpstreamError::Timeout(which))
                }
            };
            let is_sent = !matches!(outcome, Err(UpstreamError::Connect(_)));
            if let Some(repeat) = repeat.as_ref().filter(|_| is_sent)
                && let Some(copies) = attempts.take_copies()
            {
                match repeat.body.data() {
                    Some(body) => mirror::send_copies(env, copies, &repeat.head, &body),
                    None => env.telemetry.limited("mirror_body"),
                }
            }
            let failed = match &outcome {
                Ok(response) => {
                    let is_end = response.body().is_end_stream();
                    FailedResponse::of_head(response.status().as_u16(), response.headers(), is_end)
                }
                Err(error) => FailedResponse::of_error(error),
            };
            let Some((failed, repeat)) = failed.zip(repeat.as_ref()) else {
                attempts.answered();
                return outcome;
            };
            let Some(wait) = attempts.next(env, &failed, repeat.body.state()) else {
                return outcome;
            };
            drop(outcome);
            tokio::time::sleep(wait).await;
            forward.change_endpoint();
            sending = self.resend(&env.upstreams, forward, repeat)?;
        }
    }

    /// Waits for the response to a request that was sent to its endpoint. If that could not be reached, the request is
    /// sent to the next one.
    async fn response_of_one(
        &self,
        env: &HttpContext,
        forward: &mut Forward,
        mut sending: Sending,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        loop {
            let SendFailure { error, unsent } = match sending.await {
                Ok(response) => {
                    forward.responded(response.status().as_u16(), None);
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            let Some(unsent) = unsent else {
                match &error {
                    UpstreamError::Vanished => forward.vanished(),
                    error if error.is_of_upstream() => forward.failed(),
                    _ => {}
                }
                return Err(error);
            };
            let failure = match &error {
                UpstreamError::Connect(error) => Some(error.failure()),
                _ => None,
            };
            if let Some(reason) = failure.and_then(ConnectFailure::of_forward_proxy) {
                env.telemetry.forward_proxy_failed(reason);
            }
            if !self.turn(forward, &error, failure) {
                return Err(error);
            }
            let is_http2 = forward.protocol == UpstreamProtocol::Http2;
            sending = env.upstreams.resend(&self.connection, forward.endpoint(), is_http2, unsent)?;
        }
    }

    /// Sends a request, for the first time or again.
    fn resend<B>(
        &self,
        upstreams: &Upstreams,
        forward: &Forward,
        replayed: &Replayed<B>,
    ) -> Result<Sending, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + 'static,
    {
        self.send_to(upstreams, forward, replayed.request(), replayed.interims.clone())
    }

    /// Sends a request to the endpoint.
    fn send_to<B>(
        &self,
        upstreams: &Upstreams,
        forward: &Forward,
        request: Request<B>,
        interims: Rc<dyn InterimSink>,
    ) -> Result<Sending, UpstreamError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        let (client, endpoint, interims) = (&self.connection, forward.endpoint(), Some(interims));
        match forward.protocol {
            UpstreamProtocol::Http1 => upstreams.send_http1(client, endpoint, request, interims),
            UpstreamProtocol::Http2 => upstreams.send(client, endpoint, request, interims),
        }
    }
}

impl<B> Replayed<B> {
    fn request(&self) -> Request<ReplayBody<B>> {
        Request::from_parts((*self.head).clone(), self.body.again())
    }
}
