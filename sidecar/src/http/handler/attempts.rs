//! The attempts of a request whose time is limited, or that is retried: by its rule, or by an object about the Service.
//!
//! Another request has none of this, and pays nothing for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::HeaderMap;
use tidegate_core::backend::{LimitedResource, LimitedUsage, UsagePermit};
use tidegate_core::route::RetryPolicy;
use tidegate_core::route::retry::{
    Attempt, Failure, FinalReason, Pushback, RequestBody, RetryDecision, is_idempotent,
};

use super::handled::Forward;
use crate::destinations::AttemptLimits;
use crate::http::HttpContext;
use crate::http::mirror::MirrorTarget;
use crate::http::request::Request;
use crate::http::retry_budgets::RetryBudgets;
use crate::telemetry::ResponseFlag;
use crate::upstream::{TimedOut, UpstreamError};

/// The longest wait that a server may ask for before another attempt. If it asks for more, the client gets its response.
const LONGEST_PUSHBACK: Duration = Duration::from_secs(1);

/// How far a request has come.
pub(in crate::http) struct Attempts {
    /// `None`: one attempt without limit.
    limits: Option<Arc<AttemptLimits>>,
    /// Where copies go once the request was sent.
    copies: Vec<MirrorTarget>,
    /// Whose retries count together.
    backend: Arc<str>,
    /// Of the request itself, or it has an `Idempotency-Key`.
    is_idempotent: bool,
    /// When its head was complete.
    began: Instant,
    /// When the attempt in progress began.
    attempt_began: Instant,
    /// Attempts after the first one.
    retries: u32,
    /// What is open to the backend, if that is limited.
    usage: Option<Arc<LimitedUsage>>,
    /// The retry in flight, if there is one.
    retry: Option<UsagePermit>,
    /// Another attempt would have followed, but as many retries to the backend were in flight as there may be.
    has_overflown: bool,
}

/// What a response says about another attempt.
pub(in crate::http) struct FailedResponse {
    pub(in crate::http) failure: Failure,
    pub(in crate::http) pushback: Option<Pushback>,
}

impl Attempts {
    /// `forward`: where the request goes. `limits`: `None` for one attempt without limit.
    pub(super) fn new(
        limits: Option<&Arc<AttemptLimits>>,
        request: &Request<'_>,
        forward: &Forward,
    ) -> Box<Self> {
        let now = Instant::now();
        Box::new(Self {
            limits: limits.cloned(),
            copies: Vec::new(),
            backend: forward.service().cloned().unwrap_or_default(),
            is_idempotent: is_idempotent(request.method) || request.field("idempotency-key").is_some(),
            began: now,
            attempt_began: now,
            retries: 0,
            usage: forward.endpoint().usage.clone(),
            retry: None,
            has_overflown: false,
        })
    }

    /// Has copies of the request sent.
    pub(super) fn copied_to(&mut self, targets: Vec<MirrorTarget>) {
        self.copies = targets;
    }

    /// Where copies go that were not sent yet.
    pub(in crate::http) fn take_copies(&mut self) -> Option<Vec<MirrorTarget>> {
        Some(std::mem::take(&mut self.copies)).filter(|copies| !copies.is_empty())
    }

    /// Whether the request must be kept, because it may be sent more than once.
    pub(in crate::http) fn keeps_request(&self) -> bool {
        let may_retry = self.policy().is_some_and(|policy| policy.attempts() > 0);
        may_retry || !self.copies.is_empty()
    }

    fn policy(&self) -> Option<&RetryPolicy> {
        self.limits.as_ref()?.retry.as_ref()
    }

    /// When the attempt in progress must be over, and with which error it ends otherwise.
    pub(in crate::http) fn deadline(&self) -> Option<(Instant, TimedOut)> {
        let timeouts = self.limits.as_ref()?.timeouts;
        let request = timeouts.request().and_then(|time| self.began.checked_add(time));
        let attempt = timeouts.backend_request().and_then(|time| self.attempt_began.checked_add(time));
        match (request, attempt) {
            (Some(request), Some(attempt)) if attempt < request => Some((attempt, TimedOut::Attempt)),
            (Some(request), _) => Some((request, TimedOut::Request)),
            (None, attempt) => Some((attempt?, TimedOut::Attempt)),
        }
    }

    /// The request is about to be sent for the first time.
    pub(in crate::http) fn begin(&self, budgets: &RetryBudgets) {
        if let Some(policy) = self.policy() {
            budgets.record_request(&self.backend, policy);
        }
    }

    /// How long to wait before the next attempt; `None`: the client gets this failure. `body`: whether it can be sent again.
    pub(in crate::http) fn next(
        &mut self,
        env: &HttpContext,
        failed: &FailedResponse,
        body: RequestBody,
    ) -> Option<Duration> {
        // The one before is over.
        self.retry = None;
        let limits = self.limits.clone()?;
        let policy = limits.retry.as_ref()?;
        let (timeouts, budgets) = (limits.timeouts, &env.retry_budgets);
        let attempt = Attempt {
            is_idempotent: self.is_idempotent,
            body,
            retries: self.retries,
            failure: failed.failure,
            is_answered: false,
            remaining: timeouts.request().map(|time| time.saturating_sub(self.began.elapsed())),
            pushback: failed.pushback,
            is_within_budget: budgets.allows(&self.backend, policy),
            random: rand::random(),
        };
        match policy.decide(&attempt) {
            RetryDecision::After(_) if !self.take_retry() => {
                env.telemetry.limited("max_retries");
                None
            }
            RetryDecision::After(wait) => {
                budgets.record_retry(&self.backend, policy);
                env.telemetry.totals().retries.add(1);
                self.retries += 1;
                self.attempt_began = Instant::now() + wait;
                Some(wait)
            }
            RetryDecision::Final(reason) => {
                match reason {
                    FinalReason::BudgetExhausted => env.telemetry.limited("retry_budget"),
                    FinalReason::BodyGone => env.telemetry.limited("retry_body"),
                    _ => {}
                }
                None
            }
        }
    }

    /// The response is passed on: no other attempt follows.
    pub(in crate::http) fn answered(&mut self) {
        self.retry = None;
    }

    /// For the access log, of a response that is passed on.
    pub(in crate::http) fn flag(&self) -> ResponseFlag {
        if self.has_overflown { ResponseFlag::UpstreamOverflow } else { ResponseFlag::None }
    }

    /// Counts a retry to the backend, if there may be one more.
    fn take_retry(&mut self) -> bool {
        let Some(usage) = &self.usage else { return true };
        self.retry = usage.take(LimitedResource::Retry);
        self.has_overflown = self.retry.is_none();
        self.retry.is_some()
    }
}

impl FailedResponse {
    /// What a response means with this status and these fields. `is_end`: it has no body.
    pub(in crate::http) fn of_head(status: u16, fields: &HeaderMap, is_end: bool) -> Option<Self> {
        let field = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
        let grpc = if is_end { field("grpc-status").and_then(|code| code.parse().ok()) } else { None };
        Self::of_fields(status, grpc, field)
    }

    /// The same of any codec's fields. `grpc`: the status of a response of gRPC that has only trailers.
    pub(in crate::http) fn of_fields<'f>(
        status: u16,
        grpc: Option<u8>,
        field: impl Fn(&str) -> Option<&'f str>,
    ) -> Option<Self> {
        let failure = match grpc {
            Some(0) => return None,
            Some(code) => Failure::Grpc(code),
            None if status < 400 => return None,
            None => {
                let is_rate_limited = field("x-envoy-ratelimited").is_some();
                Failure::Status { code: status, is_rate_limited }
            }
        };
        let pushback = field("grpc-retry-pushback-ms")
            .map(|milliseconds| milliseconds.parse().map(Duration::from_millis))
            .or_else(|| field("retry-after").map(|seconds| seconds.parse().map(Duration::from_secs)));
        let pushback = pushback.map(|wait| match wait {
            Ok(wait) if wait <= LONGEST_PUSHBACK => Pushback::After(wait),
            Ok(_) | Err(_) => Pushback::Stop,
        });
        Some(Self { failure, pushback })
    }

    /// Classifies an error that came instead of a response; `None` if the upstream is not at fault.
    pub(in crate::http) fn of_error(error: &UpstreamError) -> Option<Self> {
        let failure = match error {
            UpstreamError::Connect(_) => Failure::Connect,
            UpstreamError::Reset(h2::Reason::REFUSED_STREAM) => Failure::RefusedStream,
            UpstreamError::Reset(_)
            | UpstreamError::Closed
            | UpstreamError::Vanished
            | UpstreamError::Protocol(_) => Failure::Reset,
            UpstreamError::Timeout(TimedOut::Attempt) => Failure::Timeout,
            UpstreamError::Timeout(TimedOut::Request)
            | UpstreamError::Request
            | UpstreamError::Overflow(_) => return None,
        };
        Some(Self { failure, pushback: None })
    }
}
