//! The rate limits of a mesh peer's connection and of its requests.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::policy::{Decision, RateLimits};
use tidegate_core::route::RequestView;
use tidegate_core::route::filter::LocalRateLimit;

use crate::rate_limits::Limiter;

/// The limits of one connection by one policy. Each decision is made once, so that further refusals allocate nothing.
pub(crate) struct LimitDecisions {
    limiters: Arc<[Limiter]>,
    /// By limiter.
    exceeded: Box<[KeptDecisions]>,
    needs_normal_path: bool,
}

/// By the place of the limit that a request exceeds.
struct KeptDecisions(Box<[OnceCell<Rc<Decision>>]>);

/// What a request exceeds.
pub(crate) struct Exceeded<'d> {
    /// The refusal, or in audit mode its report.
    pub(crate) decision: Rc<Decision>,
    /// The limit.
    pub(crate) limit: &'d LocalRateLimit,
}

impl LimitDecisions {
    pub(super) fn new(limiters: Arc<[Limiter]>) -> Self {
        let cells = |limiter: &Limiter| {
            let count = limiter.limits().of_requests().count();
            KeptDecisions(std::iter::repeat_with(OnceCell::new).take(count).collect())
        };
        let exceeded = limiters.iter().map(cells).collect();
        let needs_normal_path =
            limiters.iter().any(|limiter| !limiter.limits().is_audit && limiter.limits().needs_normal_path());
        Self { limiters, exceeded, needs_normal_path }
    }

    /// Whether limits that are enforced distinguish paths: requests are matched, and forwarded, with their path in normal form.
    pub(crate) fn needs_normal_path(&self) -> bool {
        self.needs_normal_path
    }

    /// The limits of each object.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<RateLimits>> {
        self.limiters.iter().map(Limiter::limits)
    }

    /// Takes the connection's tokens. Returns the decision about it if it exceeds a limit: one that is enforced, else one in
    /// audit mode.
    pub(crate) fn take_connection(&self) -> Option<Decision> {
        let exceeded = self.limiters.iter().filter(|limiter| !limiter.take_connection());
        let decisions: Vec<_> = exceeded.map(|limiter| limiter.limits().connection_exceeds()).collect();
        decisions.into_iter().max_by_key(|decision| matches!(decision, Decision::Deny(_)))
    }

    /// Takes the request's tokens. Returns what it exceeds: a limit that is enforced, which ends the search, else one in audit
    /// mode.
    pub(crate) fn take_request(&self, request: &impl RequestView) -> Option<Exceeded<'_>> {
        let mut reported = None;
        for (limiter, cells) in self.limiters.iter().zip(&self.exceeded) {
            let Err(place) = limiter.take_request(request) else { continue };
            let (Some(cell), Some(limit)) = (cells.0.get(place), limiter.limits().of_requests().nth(place))
            else {
                continue;
            };
            let decision = cell.get_or_init(|| limiter.limits().request_exceeds(place).into()).clone();
            if matches!(*decision, Decision::Deny(_)) {
                return Some(Exceeded { decision, limit });
            }
            reported = Some(Exceeded { decision, limit });
        }
        reported
    }
}
