//! Counts of each worker, and their sums on the metrics page.
//!
//! Only one worker writes to a slot; a scrape reads it from the control thread. Every label value comes from a closed
//! set: clients cannot create new series.

mod family;
mod page;
mod remote;
mod remote_page;
mod series;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::policy::{Decision, Grant};

pub(crate) use self::remote::CountedTcp;
use self::remote::{RemoteMetrics, RemoteShard};
use self::series::{RemoteKey, ShownSeries};
use super::access_log::AccessLogSink;
use super::trace::SpanCounts;
use super::{CheckResult, ConnectionSecurity, RateLimitResult, Record, ResponseFlag};
use crate::remotes::{RemoteId, Remotes};

/// Upper bounds of the duration histogram, in seconds; OpenTelemetry's for `http.server.request.duration`.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Labels of a series of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct RequestKey {
    is_outbound: bool,
    protocol: &'static str,
    code: u16,
    flag: ResponseFlag,
    security: ConnectionSecurity,
}

/// A counter with a single writer, which therefore needs no atomic read-modify-write instruction.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

/// One worker's counts, shared with the scrape.
#[derive(Default)]
struct Shard {
    requests: Mutex<Vec<(RequestKey, Arc<RequestSlot>)>>,
    refused: Mutex<Vec<(&'static str, Arc<Count>)>>,
    audited: Mutex<Vec<(&'static str, Arc<Count>)>>,
    limited: Mutex<Vec<(&'static str, Arc<Count>)>>,
    checked: Mutex<Vec<(&'static str, Arc<Count>)>>,
    rate_limit_checked: Mutex<Vec<(&'static str, Arc<Count>)>>,
    forward_proxy_failures: Mutex<Vec<(&'static str, Arc<Count>)>>,
    outbound: Mutex<Vec<(OutboundKey, Arc<Count>)>>,
    remote: Arc<RemoteShard>,
    totals: Totals,
}

/// Labels of a series of outbound connections: kind of destination, security, and outcome.
type OutboundKey = (&'static str, ConnectionSecurity, ResponseFlag);

/// Counts without labels.
#[derive(Default)]
pub(crate) struct Totals {
    /// Client connections that were accepted.
    pub opened: Count,
    /// Client connections that ended.
    pub closed: Count,
    /// Bytes from clients, without TLS and, for HTTP, without heads.
    pub received: Count,
    /// Bytes to clients, likewise.
    pub sent: Count,
    /// Connections of the app that were accepted.
    pub outbound_opened: Count,
    /// Connections of the app that ended.
    pub outbound_closed: Count,
    /// Connections of the app that were for which the controller did not resolve the destination.
    pub outbound_unknown: Count,
    /// Bytes from the app on connections that it opened.
    pub outbound_sent: Count,
    /// Bytes to the app on connections that it opened.
    pub outbound_received: Count,
    /// TLS handshakes that were completed.
    pub handshakes: Count,
    /// TLS handshakes that failed.
    pub handshakes_failed: Count,
    /// Connections of clients that were refused because no place was free.
    pub no_place: Count,
    /// Connections of the app that were refused because no place was free.
    pub outbound_no_place: Count,
    /// Connections that were ended to make room for another client.
    pub made_room: Count,
    /// Handshakes, TLS records and request heads that were aborted because too much data was unfinished.
    pub unfinished: Count,
    /// Attempts of requests after their first one.
    pub retries: Count,
    /// Copies of requests.
    pub mirrored: Count,
}

/// Counts of one series of requests.
#[derive(Default)]
struct RequestSlot {
    count: Count,
    sum_micros: Count,
    buckets: [Count; BOUNDS.len() + 1],
}

/// A worker's view of its counts: finds the slot of a series without a lock.
pub struct WorkerMetrics {
    shard: Arc<Shard>,
    requests: RefCell<HashMap<RequestKey, Arc<RequestSlot>>>,
    refused: RefCell<HashMap<&'static str, Arc<Count>>>,
    audited: RefCell<HashMap<&'static str, Arc<Count>>>,
    limited: RefCell<HashMap<&'static str, Arc<Count>>>,
    checked: RefCell<HashMap<&'static str, Arc<Count>>>,
    rate_limit_checked: RefCell<HashMap<&'static str, Arc<Count>>>,
    forward_proxy_failures: RefCell<HashMap<&'static str, Arc<Count>>>,
    outbound: RefCell<HashMap<OutboundKey, Arc<Count>>>,
    remote: RemoteMetrics,
}

/// The counts of all workers; registers as one collector.
#[derive(Clone, Default)]
pub struct DataPlaneMetrics {
    shards: Arc<Mutex<Vec<Arc<Shard>>>>,
    shown: Arc<ShownSeries>,
    remotes: Remotes,
    access_log: Option<AccessLogSink>,
    spans: Option<Arc<SpanCounts>>,
}

impl Count {
    /// Adds to the count. Must only be called by the thread that owns it.
    pub(crate) fn add(&self, by: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl DataPlaneMetrics {
    /// Counts that also report the lines that this access log has dropped.
    pub fn new(access_log: Option<AccessLogSink>) -> Self {
        Self { access_log, ..Self::default() }
    }

    /// Counts that also report how many spans were exported, and how many lost.
    pub(crate) fn with_spans(self, spans: Arc<SpanCounts>) -> Self {
        Self { spans: Some(spans), ..self }
    }

    /// The workloads that counts are shown by.
    pub(crate) fn remotes(&self) -> &Remotes {
        &self.remotes
    }

    /// Adds a shard for one more worker.
    pub fn worker(&self) -> WorkerMetrics {
        let shard = Arc::new(Shard::default());
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).push(shard.clone());
        WorkerMetrics {
            remote: RemoteMetrics::new(self.shown.clone(), shard.remote.clone()),
            shard,
            requests: RefCell::default(),
            refused: RefCell::default(),
            audited: RefCell::default(),
            limited: RefCell::default(),
            checked: RefCell::default(),
            rate_limit_checked: RefCell::default(),
            forward_proxy_failures: RefCell::default(),
            outbound: RefCell::default(),
        }
    }

    /// The sum of one of the totals over all workers.
    #[cfg(test)]
    pub(crate) fn total(&self, of: impl Fn(&Totals) -> &Count) -> u64 {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.iter().map(|shard| of(&shard.totals).value()).sum()
    }
}

impl WorkerMetrics {
    /// Counts without labels.
    pub(crate) fn totals(&self) -> &Totals {
        &self.shard.totals
    }

    /// Counts a request, or a connection that was refused or opaque.
    pub fn record(&self, record: &Record<'_>) {
        if let Some(outbound) = &record.outbound {
            self.totals().outbound_sent.add(record.received);
            self.totals().outbound_received.add(record.sent);
            if record.status == 0 && record.protocol.is_empty() {
                let kind = if outbound.service.is_some() { "mesh" } else { "passthrough" };
                return self.count_outbound((kind, record.security(), record.flag));
            }
            return self.count_request(record);
        }
        match record.decision {
            Some(Decision::Deny(denial)) => self.refuse(denial.reason.code()),
            Some(Decision::Allow(Grant::Audit(denial))) => {
                self.would_refuse(denial.reason.code());
            }
            _ => {}
        }
        self.totals().received.add(record.received);
        self.totals().sent.add(record.sent);
        if !record.protocol.is_empty() {
            self.count_request(record);
        }
    }

    fn count_request(&self, record: &Record<'_>) {
        self.remote.count(record);
        let key = RequestKey {
            is_outbound: record.outbound.is_some(),
            protocol: if record.protocol == "HTTP/2" { "http2" } else { "http1" },
            code: if (100..=599).contains(&record.status) { record.status } else { 0 },
            flag: record.flag,
            security: record.security(),
        };
        let mut slots = self.requests.borrow_mut();
        let slot = slots.entry(key).or_insert_with(|| {
            let slot = Arc::new(RequestSlot::default());
            let mut all = self.shard.requests.lock().unwrap_or_else(PoisonError::into_inner);
            all.push((key, slot.clone()));
            slot
        });
        slot.count.add(1);
        slot.sum_micros.add(u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX));
        if let Some(bucket) = slot.buckets.get(bucket(record.duration)) {
            bucket.add(1);
        }
    }

    fn count_outbound(&self, key: OutboundKey) {
        let mut slots = self.outbound.borrow_mut();
        let slot = slots.entry(key).or_insert_with(|| {
            let slot = Arc::new(Count::default());
            let mut all = self.shard.outbound.lock().unwrap_or_else(PoisonError::into_inner);
            all.push((key, slot.clone()));
            slot
        });
        slot.add(1);
    }

    /// Counts a connection of opaque bytes for as long as what is returned lives.
    pub(crate) fn tcp(
        &self,
        is_outbound: bool,
        remote: RemoteId,
        security: ConnectionSecurity,
    ) -> CountedTcp {
        self.remote.tcp(RemoteKey { is_outbound, remote }, security)
    }

    /// Counts that this limit was reached.
    pub fn limited(&self, limit: &'static str) {
        count_label(&self.limited, &self.shard.limited, limit);
    }

    /// Counts a connection or request that would be refused if its policy were not in audit mode.
    pub(crate) fn would_refuse(&self, reason: &'static str) {
        count_label(&self.audited, &self.shard.audited, reason);
    }

    /// Counts the result of a check by the external authorization.
    pub fn checked(&self, result: CheckResult) {
        count_label(&self.checked, &self.shard.checked, result.label());
    }

    /// Counts the result of a call of a rate limit service.
    pub fn rate_limit_checked(&self, result: RateLimitResult) {
        count_label(&self.rate_limit_checked, &self.shard.rate_limit_checked, result.label());
    }

    /// Counts a connection or request that a forward proxy did not take further.
    pub(crate) fn forward_proxy_failed(&self, reason: &'static str) {
        count_label(&self.forward_proxy_failures, &self.shard.forward_proxy_failures, reason);
    }

    /// Counts a refusal by the reason's code.
    fn refuse(&self, reason: &'static str) {
        count_label(&self.refused, &self.shard.refused, reason);
    }
}

/// Adds one to the count of a label value; `all` is the scrape's view of `slots`.
fn count_label(
    slots: &RefCell<HashMap<&'static str, Arc<Count>>>,
    all: &Mutex<Vec<(&'static str, Arc<Count>)>>,
    label: &'static str,
) {
    let mut slots = slots.borrow_mut();
    let slot = slots.entry(label).or_insert_with(|| {
        let slot = Arc::new(Count::default());
        all.lock().unwrap_or_else(PoisonError::into_inner).push((label, slot.clone()));
        slot
    });
    slot.add(1);
}

/// The index of the histogram's bucket for a duration.
fn bucket(duration: Duration) -> usize {
    BOUNDS.partition_point(|bound| *bound < duration.as_secs_f64())
}

impl std::fmt::Debug for DataPlaneMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlaneMetrics").finish_non_exhaustive()
    }
}
