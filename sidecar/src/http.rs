//! HTTP: two codecs behind one view of a request, so that policy, header rules and logs do not depend on the version.
//!
//! [`handler`] decides what happens to a request; the codecs parse requests, carry out its decision and forward the
//! responses. [`h1`] is our own HTTP/1 implementation: one task drives client and app. [`h2`] uses the h2 crate. The
//! connections to apps and other upstreams are in `crate::upstream`. `headers` has the rules for header fields that
//! clients send, `target` those for request targets, `local_reply` the responses that the sidecar generates itself,
//! `timed` the time limits of rules, `mirror` sends the copies of requests that rules want. `checks` has what servers of the users have to
//! allow, `rate_limit_service` and `external_authorization` call them, and `verdict` is what they decide.

mod buffer;
mod checks;
pub(crate) mod clock;
mod external_authorization;
pub mod h1;
pub mod h2;
pub mod handler;
mod headers;
mod local_reply;
mod mirror;
pub(crate) mod rate_limit_service;
mod request;
mod retry_budgets;
mod target;
mod timed;
mod verdict;

use std::rc::Rc;
use std::time::Instant;

use crate::grpc::GrpcServers;
use crate::limits::Limits;
use crate::snapshot::Snapshots;
use crate::telemetry::Telemetry;
use crate::upstream::Upstreams;

/// State of one worker that its HTTP connections share.
pub struct HttpContext {
    /// Sizes, counts and times.
    pub limits: Rc<Limits>,
    /// Access log and metrics.
    pub telemetry: Rc<Telemetry>,
    /// Connections to upstreams.
    pub upstreams: Upstreams,
    /// The servers that also authorize requests.
    pub external_authorizations: GrpcServers,
    /// The servers that count for all sidecars.
    pub rate_limit_services: GrpcServers,
    /// The streams of clients that speak HTTP/2.
    pub streams: h2::Streams,
    /// Spare buffers for bytes in transit.
    pub buffers: buffer::Buffers,
    /// Bounds the retries at each backend.
    pub(crate) retry_budgets: retry_budgets::RetryBudgets,
    /// Bounds the copies of requests.
    pub(crate) mirrors: mirror::MirrorSlots,
    /// Formats the `date` of locally generated responses.
    pub clock: clock::DateClock,
}

impl HttpContext {
    /// A context with empty pools. TLS towards upstreams uses the newest snapshot.
    pub fn new(limits: Rc<Limits>, telemetry: Rc<Telemetry>, snapshots: Snapshots) -> Self {
        Self {
            upstreams: Upstreams::new(limits.clone(), snapshots),
            limits,
            telemetry,
            external_authorizations: GrpcServers::new("external authorization"),
            rate_limit_services: GrpcServers::new("the rate limit service"),
            streams: h2::Streams::default(),
            buffers: buffer::Buffers::default(),
            retry_budgets: retry_budgets::RetryBudgets::new(1),
            mirrors: mirror::MirrorSlots::default(),
            clock: clock::DateClock::new(),
        }
    }

    /// The context of one of `workers` workers, which divide what is allowed for a whole sidecar.
    #[must_use]
    pub(crate) fn of_one_in(self, workers: usize) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        Self { retry_budgets: retry_budgets::RetryBudgets::new(workers), ..self }
    }

    /// Periodic work, on every tick of the worker.
    pub fn tick(&self) {
        let now = Instant::now();
        self.upstreams.sweep(now);
        self.external_authorizations.sweep(now);
        self.rate_limit_services.sweep(now);
        self.streams.expire(now);
        self.retry_budgets.sweep();
        self.telemetry.flush();
    }
}
