//! What one sidecar has open to a backend, and how much of it there may be.
//!
//! All workers count together. Each count and each limit is one number that only atomic operations read and write, and
//! nothing else is read because of it: relaxed ordering suffices.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Limits of what one sidecar has open to a backend (OSM: `UpstreamTrafficSetting`'s `connectionSettings`; Envoy: circuit
/// breakers). `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendLimits {
    /// Connections, idle ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Time in which a connection opens, TLS handshake included. `None`: the sidecar's own limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// Requests in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Requests on one connection, which is closed after them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<u32>,
    /// Requests that wait for a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Retries in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedResource {
    /// A connection.
    Connection,
    /// A request that waits for a connection.
    PendingRequest,
    /// A request on a connection.
    Request,
    /// A retry of a request.
    Retry,
}

/// The counts of a backend, with their limits. Equal only to itself: connections of different backends are not shared.
#[derive(Debug, Default)]
pub struct LimitedUsage {
    connections: LimitedCount,
    pending_requests: LimitedCount,
    requests: LimitedCount,
    retries: LimitedCount,
    requests_per_connection: LimitNumber,
    /// In nanoseconds; zero: the sidecar's own limits.
    connect_timeout: AtomicU64,
}

/// One of what is counted, until it is dropped.
#[derive(Debug)]
pub struct UsagePermit {
    usage: Arc<LimitedUsage>,
    resource: LimitedResource,
}

/// The counts at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageCounts {
    /// Connections, idle ones included.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending_requests: u32,
    /// Requests in flight.
    pub requests: u32,
    /// Retries in flight.
    pub retries: u32,
}

/// A count and its limit.
#[derive(Debug, Default)]
struct LimitedCount {
    open: AtomicU32,
    most: LimitNumber,
}

/// A limit; [`u32::MAX`]: none.
#[derive(Debug)]
struct LimitNumber(AtomicU32);

impl BackendLimits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for BackendLimits {
    /// The fields that are set, by the names in the object: `maxConnections: 1, connectTimeout: 2s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |name: &'static str, most: Option<u32>| most.map(|most| format!("{name}: {most}"));
        let fields = [
            count("maxConnections", self.max_connections),
            self.connect_timeout.map(|time| format!("connectTimeout: {time:?}")),
            count("maxRequests", self.max_requests),
            count("maxRequestsPerConnection", self.max_requests_per_connection),
            count("maxPendingRequests", self.max_pending_requests),
            count("maxRetries", self.max_retries),
        ];
        f.write_str(&fields.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl LimitedUsage {
    /// The counts of a backend with these limits: those of `before`, if it had any. `None` if nothing is limited.
    pub fn new(limits: &BackendLimits, before: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        if limits.is_unlimited() {
            return None;
        }
        let usage = before.cloned().unwrap_or_default();
        usage.connections.most.set(limits.max_connections);
        usage.pending_requests.most.set(limits.max_pending_requests);
        usage.requests.most.set(limits.max_requests);
        usage.retries.most.set(limits.max_retries);
        usage.requests_per_connection.set(limits.max_requests_per_connection);
        let nanoseconds = limits.connect_timeout.unwrap_or_default().as_nanos();
        usage.connect_timeout.store(u64::try_from(nanoseconds).unwrap_or(u64::MAX), Ordering::Relaxed);
        Some(usage)
    }

    /// Counts one more, if there may be.
    pub fn take(self: &Arc<Self>, resource: LimitedResource) -> Option<UsagePermit> {
        self.count(resource).take().then(|| UsagePermit { usage: self.clone(), resource })
    }

    /// Counts one more, also beyond the limit.
    pub fn exceed(self: &Arc<Self>, resource: LimitedResource) -> UsagePermit {
        self.count(resource).open.fetch_add(1, Ordering::Relaxed);
        UsagePermit { usage: self.clone(), resource }
    }

    /// Whether a connection that has had so many requests gets no more.
    pub fn is_spent(&self, requests: u32) -> bool {
        self.requests_per_connection.get().is_some_and(|most| requests >= most)
    }

    /// Time in which a connection opens, TLS handshake included.
    pub fn connect_timeout(&self) -> Option<Duration> {
        match self.connect_timeout.load(Ordering::Relaxed) {
            0 => None,
            nanoseconds => Some(Duration::from_nanos(nanoseconds)),
        }
    }

    /// The limits in force.
    pub fn limits(&self) -> BackendLimits {
        BackendLimits {
            max_connections: self.connections.most.get(),
            connect_timeout: self.connect_timeout(),
            max_requests: self.requests.most.get(),
            max_requests_per_connection: self.requests_per_connection.get(),
            max_pending_requests: self.pending_requests.most.get(),
            max_retries: self.retries.most.get(),
        }
    }

    /// The counts of this moment.
    pub fn counts(&self) -> UsageCounts {
        let open = |count: &LimitedCount| count.open.load(Ordering::Relaxed);
        UsageCounts {
            connections: open(&self.connections),
            pending_requests: open(&self.pending_requests),
            requests: open(&self.requests),
            retries: open(&self.retries),
        }
    }

    fn count(&self, resource: LimitedResource) -> &LimitedCount {
        match resource {
            LimitedResource::Connection => &self.connections,
            LimitedResource::PendingRequest => &self.pending_requests,
            LimitedResource::Request => &self.requests,
            LimitedResource::Retry => &self.retries,
        }
    }
}

impl PartialEq for LimitedUsage {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for LimitedUsage {}

impl LimitedCount {
    fn take(&self) -> bool {
        let most = self.most.get().unwrap_or(u32::MAX);
        let more = |open: u32| (open < most).then(|| open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

impl LimitNumber {
    fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|most| *most != u32::MAX)
    }

    fn set(&self, most: Option<u32>) {
        self.0.store(most.unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

impl Default for LimitNumber {
    fn default() -> Self {
        Self(AtomicU32::new(u32::MAX))
    }
}

impl Drop for UsagePermit {
    fn drop(&mut self) {
        self.usage.count(self.resource).open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
