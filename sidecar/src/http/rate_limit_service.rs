//! Global rate limits: a rate limit service that users run counts connections and requests of all sidecars, by Envoy's protocol
//! `envoy.service.ratelimit.v3`.
//!
//! What describes a connection or request to the service is in `tidegate_core`, what its answer means in `answer`.

mod answer;
mod quota;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::StatusCode;
use tidegate_core::policy::{Decision, RateLimitService, RateLimits, Reason};
use tidegate_core::route::RequestView;
use tidegate_proto::rate_limit::rate_limit_descriptor::Entry;
use tidegate_proto::rate_limit::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse};

use self::answer::LimitAnswer;
use super::HttpContext;
use super::verdict::{Allowance, CheckVerdict, InvalidField, Refusal, RefusalResponse};
use crate::connection_info::ServedConnection;
use crate::grpc::{self, GrpcError};
use crate::telemetry::{RateLimitResult, Telemetry};

/// The method that is called.
const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// The check of one request, which has not begun.
pub(super) struct RateLimitCheck {
    limits: Arc<RateLimits>,
    service: RateLimitService,
    /// The path of the route that applies; empty: none.
    path: Arc<str>,
    message: RateLimitRequest,
    /// Status of the response above the limit.
    status: u16,
    has_rate_limit_headers: bool,
    is_grpc: bool,
}

/// The time that the services of a connection or request have together: the longest that one of them has for itself. It begins
/// with the first call.
pub(crate) struct ServicesTime {
    longest: Duration,
    end: Option<Instant>,
}

/// Why a service has no answer.
#[derive(Debug, thiserror::Error)]
enum LimitCallError {
    /// The policy's object has no valid address.
    #[error("its address is invalid")]
    NoAddress,
    /// The service did not answer.
    #[error("{0}")]
    Call(#[from] GrpcError),
    /// The answer says neither that a limit is exceeded nor that none is.
    #[error("the answer has no code")]
    NoCode,
    /// The answer has a header that cannot be carried out.
    #[error("{0}")]
    InvalidField(#[from] InvalidField),
}

/// The decision about a connection that the policy allows; `None`: it is allowed. In audit mode, what is not is reported.
pub(crate) async fn exceeds(
    limits: &RateLimits,
    context: &HttpContext,
    client: &ServedConnection,
    time: &mut ServicesTime,
) -> Option<Decision> {
    let limit = limits.global.connections.as_ref()?;
    let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
    let descriptors = limit.descriptors.iter().map(|pairs| RateLimitDescriptor {
        entries: pairs.iter().map(|pair| entry(&pair.key, &pair.value)).collect(),
    });
    let message = message(&limit.service, descriptors.collect());
    let answer = call(context, client, (&limit.service, &message, time), LimitAnswer::of_connection).await;
    match answer {
        Ok(LimitAnswer::Within(_)) => None,
        Ok(LimitAnswer::Exceeded(_)) => Some(limits.exceeded(Reason::ConnectionGloballyLimited)),
        Err(_) if limit.service.fail_open => None,
        Err(_) => Some(limits.exceeded(Reason::RateLimitServiceFailed)),
    }
}

impl ServicesTime {
    /// Of the services that count connections.
    pub(crate) fn of_connection<'l>(limits: impl Iterator<Item = &'l Arc<RateLimits>>) -> Self {
        let limits = limits.filter_map(|limits| limits.global.connections.as_ref());
        Self::of(limits.map(|limit| &limit.service))
    }

    /// Of the services of these checks.
    pub(super) fn of_request(checks: &[RateLimitCheck]) -> Self {
        Self::of(checks.iter().map(|check| &check.service))
    }

    fn of<'s>(services: impl Iterator<Item = &'s RateLimitService>) -> Self {
        let called = services.filter(|service| service.address.is_some());
        Self { longest: called.map(|service| service.timeout).max().unwrap_or_default(), end: None }
    }

    /// What a service that is called `now` has of it, at most its own timeout.
    fn next(&mut self, timeout: Duration, now: Instant) -> Duration {
        let end = *self.end.get_or_insert_with(|| now + self.longest);
        timeout.min(end.saturating_duration_since(now))
    }
}

impl RateLimitCheck {
    /// Copies what the service gets of a request; `None` if no descriptor is for it.
    pub(super) fn new(
        limits: &Arc<RateLimits>,
        request: &impl RequestView,
        source: IpAddr,
        is_grpc: bool,
    ) -> Option<Self> {
        let limit = limits.global.requests.as_ref()?;
        let (path, descriptors) = limit.select(request);
        let described = descriptors.iter().filter_map(|descriptor| descriptor.describe(request, source));
        let described = described.map(|pairs| {
            let entry = |(key, value): (&str, std::borrow::Cow<'_, [u8]>)| Entry {
                key: key.to_owned(),
                value: grpc::text(&value),
            };
            RateLimitDescriptor { entries: pairs.into_iter().map(entry).collect() }
        });
        let message = message(&limit.service, described.collect());
        (!message.descriptors.is_empty()).then(|| Self {
            limits: limits.clone(),
            service: limit.service.clone(),
            path: path.cloned().unwrap_or_default(),
            message,
            status: limit.status,
            has_rate_limit_headers: limit.has_rate_limit_headers,
            is_grpc,
        })
    }

    /// Calls the service. Dropped before it is done, the call is cancelled.
    pub(super) async fn verdict(
        self,
        context: &HttpContext,
        client: &ServedConnection,
        time: &mut ServicesTime,
    ) -> CheckVerdict {
        let read = |response| LimitAnswer::of_request(response, self.status, self.has_rate_limit_headers);
        let answer = call(context, client, (&self.service, &self.message, time), read).await;
        match answer {
            Ok(LimitAnswer::Within(edits)) => {
                let edits = edits.filter(|_| !self.limits.is_audit);
                CheckVerdict::Allow(Allowance { edits, report: None })
            }
            Ok(LimitAnswer::Exceeded(response)) => {
                let reason = Reason::RequestGloballyLimited(self.path.clone());
                self.refuse(reason, response, "request_rate_limited")
            }
            Err(_) if self.service.fail_open => CheckVerdict::Allow(Allowance::default()),
            Err(_) => {
                let response = RefusalResponse::of_status(StatusCode::INTERNAL_SERVER_ERROR);
                self.refuse(Reason::RateLimitServiceFailed, response, "rate_limiter_error")
            }
        }
    }

    /// In audit mode, the refusal is reported only.
    fn refuse(self, reason: Reason, response: RefusalResponse, details: &'static str) -> CheckVerdict {
        match self.limits.exceeded(reason) {
            report @ Decision::Allow(_) => {
                CheckVerdict::Allow(Allowance { edits: None, report: Some(Rc::new(report)) })
            }
            Decision::Deny(denial) => {
                let response = if self.is_grpc { response.for_grpc() } else { response };
                CheckVerdict::Refuse(Refusal::new(denial, response, details))
            }
        }
    }
}

/// Calls a service within the time that is left, and counts the result.
async fn call(
    context: &HttpContext,
    client: &ServedConnection,
    (service, message, time): (&RateLimitService, &RateLimitRequest, &mut ServicesTime),
    read: impl Fn(RateLimitResponse) -> Result<LimitAnswer, LimitCallError>,
) -> Result<LimitAnswer, LimitCallError> {
    let servers = &context.rate_limit_services;
    let answer = match (&service.address, time.next(service.timeout, Instant::now())) {
        (None, _) => Err(LimitCallError::NoAddress),
        // The services before it have taken all of the time.
        (Some(_), Duration::ZERO) => Err(GrpcError::Timeout.into()),
        (Some(address), timeout) => {
            let (upstreams, method) = (&context.upstreams, (address, METHOD));
            let response = servers.call(upstreams, client, method, message, timeout).await;
            let answer = response.map_err(LimitCallError::from).and_then(read);
            servers.note(address, answer.as_ref().err());
            answer
        }
    };
    count(&answer, service, &context.telemetry);
    answer
}

fn count(answer: &Result<LimitAnswer, LimitCallError>, service: &RateLimitService, telemetry: &Telemetry) {
    telemetry.rate_limit_checked(match answer {
        Ok(LimitAnswer::Within(_)) => RateLimitResult::Ok,
        Ok(LimitAnswer::Exceeded(_)) => RateLimitResult::OverLimit,
        Err(LimitCallError::Call(GrpcError::Timeout)) => RateLimitResult::Timeout,
        Err(_) => RateLimitResult::Error,
    });
    let Err(error) = answer else { return };
    if let LimitCallError::Call(GrpcError::Upstream(error)) = error
        && let Some(limit) = error.limit()
    {
        telemetry.limited(limit);
    }
    if service.fail_open {
        telemetry.rate_limit_checked(RateLimitResult::FailureModeAllowed);
    }
}

/// One hit.
fn message(service: &RateLimitService, descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: service.domain.to_string(), descriptors, hits_addend: 0 }
}

#[cfg(test)]
mod tests;
