//! When a failed request is retried.
//!
//! The policy is data, and the decision is a pure function of a failed attempt. The caller keeps the state: it counts
//! attempts, measures time, draws the random number and keeps a [`RetryBudget`].
//!
//! Without a policy, a request that might have been processed is never retried (RFC 9110 §9.2.2): a POST is never sent
//! twice. Istio retries `unavailable` by default, and formerly 503, which repeated requests that servers had executed
//! (istio#50506).

mod backoff;
mod budget;
mod condition;

use std::time::Duration;

use serde::Serialize;

pub use self::backoff::Backoff;
pub use self::budget::{Budget, RetryBudget};
pub use self::condition::{Failure, RetryOn};

use super::error::{Problem, RouteError};

/// Maximum number of attempts beyond the first. More would only multiply the load on an overloaded backend.
pub(crate) const MAX_ATTEMPTS: u32 = 100;

/// When a rule's requests are retried (Gateway API: `HTTPRouteRetry`, GEP-1731; OSM: `Retry`; Envoy: `RetryPolicy`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    on: RetryOn,
    methods: RetryMethods,
    attempts: u32,
    backoff: Backoff,
    budget: Option<Budget>,
}

/// Which requests may be retried although they might have been processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryMethods {
    /// GET, HEAD, OPTIONS, TRACE, PUT and DELETE (RFC 9110 §9.2.2), and any request with an `Idempotency-Key`.
    Idempotent,
    /// All requests. OSM's and Istio's policies ignore the method.
    All,
}

/// A failed attempt, and the means for another one.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Whether the request has the same effect if it is received twice: by its [method](is_idempotent), or because it has an
    /// `Idempotency-Key`.
    pub is_idempotent: bool,
    /// State of its body.
    pub body: RequestBody,
    /// Number of retries so far.
    pub retries: u32,
    /// What went wrong.
    pub failure: Failure,
    /// Whether any part of a response was sent to the client.
    pub is_answered: bool,
    /// Time left of the request's timeout; `None` if it has none.
    pub remaining: Option<Duration>,
    /// What the server asked about another attempt, if it did.
    pub pushback: Option<Pushback>,
    /// Whether the budget allows a retry ([`RetryBudget::allows`]).
    pub is_within_budget: bool,
    /// A fresh random number, for the jitter of the backoff.
    pub random: u32,
}

/// State of a request's body after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// The request has a body, and no byte of it was sent. The server cannot have processed the request.
    Unsent,
    /// The whole body can be sent again, or the request has none.
    Replayable,
    /// It was sent and cannot be sent again, because it exceeds the replay buffer.
    Gone,
}

/// `grpc-retry-pushback-ms` (gRFC A6), or `Retry-After` (RFC 9110 §10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Do not retry: a negative pushback, or one that cannot be parsed.
    Stop,
    /// Retry no sooner than after this time.
    After(Duration),
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Retry after this wait, and record that in the budget ([`RetryBudget::record_retry`]).
    After(Duration),
    /// Do not retry: the client gets the failure.
    Final(FinalReason),
}

/// Why a request is not retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinalReason {
    /// Part of a response was sent to the client.
    Answered,
    /// The policy does not cover this failure.
    NotRetriable,
    /// The server may have processed the request, and the method is not idempotent.
    NotIdempotent,
    /// The body cannot be sent again.
    BodyGone,
    /// The server asked not to.
    Pushback,
    /// All attempts are used up.
    AttemptsExhausted,
    /// The budget allows no retry.
    BudgetExhausted,
    /// The request's timeout would expire before the next attempt.
    Timeout,
}

impl RetryPolicy {
    /// A policy with `attempts` beyond the first. 0 disables all retries, including those of requests that were not
    /// processed. The default of Gateway API, OSM and Envoy is 1.
    pub fn new(
        on: RetryOn,
        methods: RetryMethods,
        attempts: u32,
        backoff: Backoff,
        budget: Option<Budget>,
    ) -> Result<Self, RouteError> {
        if attempts > MAX_ATTEMPTS {
            return Err(RouteError::new("retry.attempts", attempts, Problem::TooLarge(MAX_ATTEMPTS.into())));
        }
        Ok(Self { on, methods, attempts, backoff, budget })
    }

    /// The policy of a rule that has none: requests that provably were not processed are retried at once, at most twice.
    pub fn unprocessed() -> Self {
        Self {
            on: RetryOn::default(),
            methods: RetryMethods::Idempotent,
            attempts: 2,
            backoff: Backoff::NONE,
            budget: None,
        }
    }

    /// Failures that it retries although the request might have been processed.
    pub fn on(&self) -> &RetryOn {
        &self.on
    }

    /// Which requests it retries.
    pub fn methods(&self) -> RetryMethods {
        self.methods
    }

    /// Attempts beyond the first.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Waits between attempts.
    pub fn backoff(&self) -> &Backoff {
        &self.backoff
    }

    /// Limit of retries relative to requests, if any.
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    /// Decides about a retry after this failure.
    pub fn decide(&self, attempt: &Attempt) -> RetryDecision {
        if let Some(reason) = self.final_reason(attempt) {
            return RetryDecision::Final(reason);
        }
        let drawn = self.backoff.wait(attempt.retries, attempt.random);
        let wait = match attempt.pushback {
            Some(Pushback::After(least)) => drawn.max(least),
            Some(Pushback::Stop) | None => drawn,
        };
        if attempt.remaining.is_some_and(|remaining| remaining <= wait) {
            return RetryDecision::Final(FinalReason::Timeout);
        }
        RetryDecision::After(wait)
    }

    fn final_reason(&self, attempt: &Attempt) -> Option<FinalReason> {
        let is_unprocessed = attempt.is_unprocessed();
        let may_repeat = self.methods == RetryMethods::All || attempt.is_idempotent;
        if attempt.is_answered {
            Some(FinalReason::Answered)
        } else if !is_unprocessed && !self.on.covers(attempt.failure) {
            Some(FinalReason::NotRetriable)
        } else if !is_unprocessed && !may_repeat {
            Some(FinalReason::NotIdempotent)
        } else if attempt.body == RequestBody::Gone {
            Some(FinalReason::BodyGone)
        } else if attempt.pushback == Some(Pushback::Stop) {
            Some(FinalReason::Pushback)
        } else if attempt.retries >= self.attempts {
            Some(FinalReason::AttemptsExhausted)
        } else if !attempt.is_within_budget {
            Some(FinalReason::BudgetExhausted)
        } else {
            None
        }
    }
}

impl Attempt {
    /// Whether the server cannot have processed the request; or, after a stale connection, whether the request is
    /// idempotent (RFC 9112 §9.3.1 allows a retry then).
    fn is_unprocessed(&self) -> bool {
        match self.failure {
            Failure::Connect | Failure::RefusedStream => true,
            Failure::StaleConnection => self.is_idempotent || self.body == RequestBody::Unsent,
            Failure::Reset | Failure::Timeout | Failure::Status { .. } | Failure::Grpc(_) => false,
        }
    }
}

/// Whether a request by this method has the same effect if it is received twice (RFC 9110 §9.2.2).
pub fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

impl FinalReason {
    /// A stable word for logs and metric labels.
    pub fn code(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NotRetriable => "not_retriable",
            Self::NotIdempotent => "not_idempotent",
            Self::BodyGone => "body_too_large",
            Self::Pushback => "pushback",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::BudgetExhausted => "budget_exhausted",
            Self::Timeout => "timeout",
        }
    }
}

#[cfg(test)]
mod tests;
