//! The buckets of a policy's rate limits. All workers share them, without a lock: [`TokenBucket`] says why.
//!
//! A change of policy keeps the bucket of each limit that has the same rate as before, so that it neither fills nor empties
//! because something else has changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tidegate_core::policy::{InboundPolicy, RateLimits};
use tidegate_core::route::RequestView;
use tidegate_core::token_bucket::{TokenBucket, TokenRate};

/// The limiters of each port that has limits.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortLimiters(BTreeMap<u16, Arc<[Limiter]>>);

/// The limits of one object at one port, with their buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: Arc<RateLimits>,
    connections: Option<Arc<TimedBucket>>,
    /// By the place of the limit among [`RateLimits::of_requests`].
    requests: Box<[Arc<TimedBucket>]>,
}

#[derive(Debug)]
struct TimedBucket {
    bucket: TokenBucket,
    created: Instant,
}

impl PortLimiters {
    /// The limiters of a policy, with the buckets of the one before.
    pub(crate) fn new(policy: Option<&InboundPolicy>, before: &Self) -> Self {
        let ports = policy.into_iter().flat_map(|policy| &policy.ports);
        let limited = ports.filter(|(_, port)| !port.rate_limits.is_empty());
        let limiters = limited.map(|(number, port)| {
            let old = before.of(*number).map_or(&[][..], |limiters| limiters);
            let limiter = |limits: &Arc<RateLimits>| {
                let old = old.iter().find(|old| old.limits.origin == limits.origin);
                Limiter::new(limits.clone(), old)
            };
            (*number, port.rate_limits.iter().map(limiter).collect())
        });
        Self(limiters.collect())
    }

    /// Those of a port.
    pub(crate) fn of(&self, port: u16) -> Option<&Arc<[Limiter]>> {
        self.0.get(&port)
    }
}

impl Limiter {
    fn new(limits: Arc<RateLimits>, old: Option<&Self>) -> Self {
        let connections = limits
            .connections
            .map(|rate| TimedBucket::kept(rate, old.and_then(|old| old.connections.as_ref())));
        let requests = limits.of_requests().map(|limit| {
            let old = old.and_then(|old| old.bucket_of(&limit.bucket));
            TimedBucket::kept(limit.rate, old)
        });
        Self { connections, requests: requests.collect(), limits }
    }

    /// The limits.
    pub(crate) fn limits(&self) -> &Arc<RateLimits> {
        &self.limits
    }

    /// Takes the token of a connection; `false` if it exceeds the limit.
    pub(crate) fn take_connection(&self) -> bool {
        self.connections.as_ref().is_none_or(|bucket| bucket.take())
    }

    /// Takes the token of a request. The error is the place of the limit that it exceeds.
    pub(crate) fn take_request(&self, request: &impl RequestView) -> Result<(), usize> {
        let Some(place) = self.limits.select(request) else { return Ok(()) };
        let has_token = self.requests.get(place).is_none_or(|bucket| bucket.take());
        if has_token { Ok(()) } else { Err(place) }
    }

    /// The bucket of the limit with this name.
    fn bucket_of(&self, name: &str) -> Option<&Arc<TimedBucket>> {
        let place = self.limits.of_requests().position(|limit| *limit.bucket == *name)?;
        self.requests.get(place)
    }
}

impl TimedBucket {
    /// The old bucket, if it has this rate, or a full one.
    fn kept(rate: TokenRate, old: Option<&Arc<Self>>) -> Arc<Self> {
        match old.filter(|old| old.bucket.rate() == rate) {
            Some(old) => old.clone(),
            None => Arc::new(Self { bucket: TokenBucket::new(rate), created: Instant::now() }),
        }
    }

    fn take(&self) -> bool {
        self.bucket.take(self.created.elapsed())
    }
}

#[cfg(test)]
mod tests;
