//! A worker's counts, and the page that adds the workers up.
//!
//! Each worker writes to slots that nobody else writes to; a scrape reads them from the control thread. Every label
//! value comes from a closed set: what a client sends never makes a new series.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use tidegate_core::policy::Decision;

use super::access_log::{AccessLogSink, security};
use super::{Record, ResponseFlag};

/// Upper bounds of the duration histogram, in seconds; OpenTelemetry's for `http.server.request.duration`.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// What sets one series of requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct RequestKey {
    protocol: &'static str,
    code: u16,
    flag: ResponseFlag,
    security: &'static str,
}

/// A counter with one writer: its owner reads and writes it without a locked instruction.
#[derive(Default)]
pub struct Count(AtomicU64);

/// One worker's counts, as a scrape sees them.
#[derive(Default)]
struct Shard {
    requests: Mutex<Vec<(RequestKey, Arc<RequestSlot>)>>,
    refused: Mutex<Vec<(&'static str, Arc<Count>)>>,
    limited: Mutex<Vec<(&'static str, Arc<Count>)>>,
    outbound: Mutex<Vec<(OutboundKey, Arc<Count>)>>,
    totals: Totals,
}

/// What sets one series of outbound connections apart: the kind of destination, how it was spoken to, and how it ended.
type OutboundKey = (&'static str, &'static str, ResponseFlag);

/// Counts without labels.
#[derive(Default)]
pub struct Totals {
    /// Client connections that were accepted.
    pub opened: Count,
    /// Client connections that ended.
    pub closed: Count,
    /// Bytes from clients, without TLS and, for HTTP, without heads.
    pub received: Count,
    /// Bytes to clients, likewise.
    pub sent: Count,
    /// Connections of the app's that were accepted.
    pub outbound_opened: Count,
    /// Connections of the app's that ended.
    pub outbound_closed: Count,
    /// Connections of the app's that were passed through because the controller did not say who is there.
    pub outbound_unknown: Count,
    /// Bytes from the app on its own connections.
    pub outbound_sent: Count,
    /// Bytes to the app on its own connections.
    pub outbound_received: Count,
    /// TLS handshakes that were completed.
    pub handshakes: Count,
    /// TLS handshakes that failed.
    pub handshakes_failed: Count,
    /// Clients' connections for which there was no place.
    pub no_place: Count,
    /// Connections of the app's for which there was none.
    pub outbound_no_place: Count,
    /// Connections that were ended so that another client gets their place.
    pub made_room: Count,
    /// Handshakes, TLS records and heads of requests that were given up because too much was unfinished.
    pub unfinished: Count,
}

#[derive(Default)]
struct RequestSlot {
    count: Count,
    sum_micros: Count,
    buckets: [Count; BOUNDS.len() + 1],
}

/// A worker's end: finds the slot of a series without a lock.
pub struct WorkerMetrics {
    shard: Arc<Shard>,
    requests: RefCell<HashMap<RequestKey, Arc<RequestSlot>>>,
    refused: RefCell<HashMap<&'static str, Arc<Count>>>,
    limited: RefCell<HashMap<&'static str, Arc<Count>>>,
    outbound: RefCell<HashMap<OutboundKey, Arc<Count>>>,
}

/// All workers' counts; registers as one collector.
#[derive(Clone, Default)]
pub struct DataPlaneMetrics {
    shards: Arc<Mutex<Vec<Arc<Shard>>>>,
    access_log: Option<AccessLogSink>,
}

impl Count {
    /// Adds; only ever called by the one thread that owns the count.
    pub fn add(&self, by: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl DataPlaneMetrics {
    /// Counts that also report the lines that this access log has lost.
    pub fn new(access_log: Option<AccessLogSink>) -> Self {
        Self { shards: Arc::default(), access_log }
    }

    /// A shard for one more worker.
    pub fn worker(&self) -> WorkerMetrics {
        let shard = Arc::new(Shard::default());
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).push(shard.clone());
        WorkerMetrics {
            shard,
            requests: RefCell::default(),
            refused: RefCell::default(),
            limited: RefCell::default(),
            outbound: RefCell::default(),
        }
    }
}

impl WorkerMetrics {
    /// Counts without labels.
    pub fn totals(&self) -> &Totals {
        &self.shard.totals
    }

    /// Counts a request, or a connection that was refused or passed on unseen.
    pub fn record(&self, record: &Record<'_>) {
        if let Some(outbound) = &record.outbound {
            let kind = if outbound.service.is_some() { "mesh" } else { "passthrough" };
            self.count_outbound((kind, security(record), record.flag));
            self.totals().outbound_sent.add(record.received);
            self.totals().outbound_received.add(record.sent);
            return;
        }
        if let Some(Decision::Deny(denial)) = record.decision {
            self.refuse(denial.reason.code());
        }
        self.totals().received.add(record.received);
        self.totals().sent.add(record.sent);
        if record.protocol.is_empty() {
            return;
        }
        let key = RequestKey {
            protocol: if record.protocol == "HTTP/2" { "http2" } else { "http1" },
            code: if (100..=599).contains(&record.status) { record.status } else { 0 },
            flag: record.flag,
            security: security(record),
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

    /// Counts that this limit was met.
    pub fn limited(&self, limit: &'static str) {
        count_word(&self.limited, &self.shard.limited, limit);
    }

    fn refuse(&self, reason: &'static str) {
        count_word(&self.refused, &self.shard.refused, reason);
    }
}

/// Counts one more of what a word stands for; `all` is the page's view of `slots`.
fn count_word(
    slots: &RefCell<HashMap<&'static str, Arc<Count>>>,
    all: &Mutex<Vec<(&'static str, Arc<Count>)>>,
    word: &'static str,
) {
    let mut slots = slots.borrow_mut();
    let slot = slots.entry(word).or_insert_with(|| {
        let slot = Arc::new(Count::default());
        all.lock().unwrap_or_else(PoisonError::into_inner).push((word, slot.clone()));
        slot
    });
    slot.add(1);
}

fn bucket(duration: Duration) -> usize {
    BOUNDS.partition_point(|bound| *bound < duration.as_secs_f64())
}

impl std::fmt::Debug for DataPlaneMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlaneMetrics").finish_non_exhaustive()
    }
}

impl Collector for DataPlaneMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();

        let mut requests: BTreeMap<_, (u64, f64, [u64; BOUNDS.len() + 1])> = BTreeMap::new();
        for shard in &shards {
            for (key, slot) in shard.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let sort = (key.protocol, key.code, key.flag.code(), key.security);
                let sum = requests.entry(sort).or_default();
                sum.0 += slot.count.value();
                sum.1 += Duration::from_micros(slot.sum_micros.value()).as_secs_f64();
                for (total, bucket) in sum.2.iter_mut().zip(&slot.buckets) {
                    *total += bucket.value();
                }
            }
        }
        let help = "Requests that were answered, by the app or by the sidecar itself";
        let mut family =
            encoder.encode_descriptor("tidegate_http_requests", help, None, MetricType::Counter)?;
        for ((protocol, code, flag, security), (count, ..)) in &requests {
            let code = code.to_string();
            let labels = [
                ("request_protocol", *protocol),
                ("response_code", code.as_str()),
                ("response_flags", *flag),
                ("connection_security_policy", *security),
            ];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(count, None)?;
        }

        let mut durations: BTreeMap<_, (u64, f64, [u64; BOUNDS.len() + 1])> = BTreeMap::new();
        for ((protocol, _, _, security), (count, sum, buckets)) in requests {
            let total = durations.entry((protocol, security)).or_default();
            total.0 += count;
            total.1 += sum;
            for (total, bucket) in total.2.iter_mut().zip(buckets) {
                *total += bucket;
            }
        }
        let help = "From a request's first byte to the last byte of its answer";
        let mut family = encoder.encode_descriptor(
            "tidegate_http_request_duration",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for ((protocol, security), (count, sum, buckets)) in durations {
            let labels = [("request_protocol", protocol), ("connection_security_policy", security)];
            let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(buckets).collect();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }

        for (name, help, label, words) in [
            (
                "tidegate_refused",
                "Connections and requests that the policy refused",
                "reason",
                (|shard| &shard.refused) as fn(&Shard) -> &Mutex<Vec<(&'static str, Arc<Count>)>>,
            ),
            (
                "tidegate_requests_limited",
                "Requests that met a limit of the sidecar's, and HTTP/2 connections that were ended for a flood",
                "limit",
                |shard| &shard.limited,
            ),
        ] {
            let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
            for shard in &shards {
                for (word, count) in words(shard).lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    *counts.entry(word).or_default() += count.value();
                }
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (word, count) in counts {
                family.encode_family(&[(label, word)])?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
            }
        }

        let mut outbound: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
        for shard in &shards {
            for ((kind, security, flag), count) in
                shard.outbound.lock().unwrap_or_else(PoisonError::into_inner).iter()
            {
                *outbound.entry((kind, security, flag.code())).or_default() += count.value();
            }
        }
        let help = "Connections of the app's that ended, by what they were to";
        let mut family =
            encoder.encode_descriptor("tidegate_outbound_connections", help, None, MetricType::Counter)?;
        for ((kind, security, flag), count) in outbound {
            let labels =
                [("destination", kind), ("connection_security_policy", security), ("response_flags", flag)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }

        let sum = |count: fn(&Totals) -> &Count| {
            shards.iter().map(|shard| count(&shard.totals).value()).sum::<u64>()
        };
        let opened = sum(|totals| &totals.opened);
        let closed = sum(|totals| &totals.closed);
        let dropped = self.access_log.as_ref().map_or(0, AccessLogSink::dropped);
        for (name, help, unit, value) in [
            ("tidegate_tcp_connections_opened", "Client connections that were accepted", None, opened),
            ("tidegate_tcp_connections_closed", "Client connections that ended", None, closed),
            ("tidegate_received", "Payload from clients", Some(Unit::Bytes), sum(|totals| &totals.received)),
            ("tidegate_sent", "Payload to clients", Some(Unit::Bytes), sum(|totals| &totals.sent)),
            (
                "tidegate_outbound_unknown",
                "Connections of the app's passed through because the controller did not say who is there",
                None,
                sum(|totals| &totals.outbound_unknown),
            ),
            (
                "tidegate_outbound_sent",
                "Bytes from the app on its own connections",
                Some(Unit::Bytes),
                sum(|totals| &totals.outbound_sent),
            ),
            (
                "tidegate_outbound_received",
                "Bytes to the app on its own connections",
                Some(Unit::Bytes),
                sum(|totals| &totals.outbound_received),
            ),
            ("tidegate_tls_handshakes", "TLS handshakes completed", None, sum(|totals| &totals.handshakes)),
            (
                "tidegate_tls_handshakes_failed",
                "TLS handshakes failed",
                None,
                sum(|totals| &totals.handshakes_failed),
            ),
            (
                "tidegate_access_log_dropped_lines",
                "Access log lines lost to a slow or full target",
                None,
                dropped,
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        let help = "Connections that a limit has ended: for want of a place for a client's or for one of the app's \
                    own, to make room for another client's, for want of room for an unfinished head, handshake or TLS record";
        let mut family =
            encoder.encode_descriptor("tidegate_connections_limited", help, None, MetricType::Counter)?;
        for (limit, value) in [
            ("connections", sum(|totals| &totals.no_place)),
            ("outbound_connections", sum(|totals| &totals.outbound_no_place)),
            ("share", sum(|totals| &totals.made_room)),
            ("unfinished_bytes", sum(|totals| &totals.unfinished)),
        ] {
            family.encode_family(&[("limit", limit)])?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        let help = "Client connections that are open";
        let mut metric =
            encoder.encode_descriptor("tidegate_tcp_connections_open", help, None, MetricType::Gauge)?;
        metric.encode_gauge(&i64::try_from(opened.saturating_sub(closed)).unwrap_or(i64::MAX))?;
        let open =
            sum(|totals| &totals.outbound_opened).saturating_sub(sum(|totals| &totals.outbound_closed));
        let help = "Connections of the app's that are open";
        let mut metric =
            encoder.encode_descriptor("tidegate_outbound_connections_open", help, None, MetricType::Gauge)?;
        metric.encode_gauge(&i64::try_from(open).unwrap_or(i64::MAX))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use tidegate_core::policy::{Denial, Reason};

    use super::*;

    fn page(metrics: DataPlaneMetrics) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics));
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn the_page_adds_the_workers_up() {
        let metrics = DataPlaneMetrics::new(None);
        let workers = [metrics.worker(), metrics.worker()];
        let denied = Decision::Deny(Denial::new(Reason::PrincipalNotAllowed));
        for worker in &workers {
            let duration = Duration::from_millis(7);
            worker.record(&Record {
                protocol: "HTTP/1.1",
                status: 200,
                duration,
                sent: 5,
                ..Record::default()
            });
            worker.record(&Record {
                protocol: "HTTP/2",
                status: 403,
                decision: Some(&denied),
                ..Record::default()
            });
        }
        let page = page(metrics);
        for line in [
            "tidegate_http_requests_total{request_protocol=\"http1\",response_code=\"200\",response_flags=\"-\",\
             connection_security_policy=\"unknown\"} 2",
            "tidegate_http_request_duration_seconds_bucket{le=\"0.01\",request_protocol=\"http1\",\
             connection_security_policy=\"unknown\"} 2",
            "tidegate_http_request_duration_seconds_bucket{le=\"+Inf\",request_protocol=\"http1\",\
             connection_security_policy=\"unknown\"} 2",
            "tidegate_refused_total{reason=\"principal_not_allowed\"} 2",
            "tidegate_sent_bytes_total 10",
            "tidegate_tcp_connections_open 0",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn a_million_paths_and_hosts_make_one_series() {
        let metrics = DataPlaneMetrics::new(None);
        let worker = metrics.worker();
        for i in 0..1_000_000u32 {
            let path = i.to_string();
            let status = 200 + u16::try_from(i % 3).unwrap();
            let path = path.as_bytes();
            worker.record(&Record {
                protocol: "HTTP/1.1",
                path,
                authority: path,
                status,
                ..Record::default()
            });
        }
        assert_eq!(
            page(metrics).lines().filter(|line| line.starts_with("tidegate_http_requests_total")).count(),
            3
        );
    }
}
