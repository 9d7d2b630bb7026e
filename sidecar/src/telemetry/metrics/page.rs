//! The metrics page: the sums of all workers' counts.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::family::counter;
use super::remote_page::RemotePage;
use super::{BOUNDS, Count, DataPlaneMetrics, Shard, Totals};
use crate::telemetry::access_log::AccessLogSink;
use crate::telemetry::trace::SpanCounts;

/// Counts by the value of their only label.
type Labelled = Mutex<Vec<(&'static str, Arc<Count>)>>;

/// Unit of a total.
enum TotalUnit {
    One,
    Bytes,
}

/// Where a total is counted.
type TotalCount = fn(&Totals) -> &Count;

/// Counts without labels: name, help, unit, and where they are counted.
const TOTALS: [(&str, &str, TotalUnit, TotalCount); 11] = [
    ("tidegate_tcp_connections_opened", "Client connections that were accepted", TotalUnit::One, |totals| {
        &totals.opened
    }),
    ("tidegate_tcp_connections_closed", "Client connections that ended", TotalUnit::One, |totals| {
        &totals.closed
    }),
    ("tidegate_received", "Payload from clients", TotalUnit::Bytes, |totals| &totals.received),
    ("tidegate_sent", "Payload to clients", TotalUnit::Bytes, |totals| &totals.sent),
    (
        "tidegate_outbound_unknown",
        "Connections of the app for which the controller did not resolve the destination",
        TotalUnit::One,
        |totals| &totals.outbound_unknown,
    ),
    ("tidegate_outbound_sent", "Bytes from the app on its own connections", TotalUnit::Bytes, |totals| {
        &totals.outbound_sent
    }),
    ("tidegate_outbound_received", "Bytes to the app on its own connections", TotalUnit::Bytes, |totals| {
        &totals.outbound_received
    }),
    ("tidegate_tls_handshakes", "TLS handshakes completed", TotalUnit::One, |totals| &totals.handshakes),
    ("tidegate_tls_handshakes_failed", "TLS handshakes failed", TotalUnit::One, |totals| {
        &totals.handshakes_failed
    }),
    (
        "tidegate_retries",
        "Attempts of requests after their first one, by rules of routes and Retries",
        TotalUnit::One,
        |totals| &totals.retries,
    ),
    (
        "tidegate_mirrored_requests",
        "Copies of requests that were sent, by rules of routes",
        TotalUnit::One,
        |totals| &totals.mirrored,
    ),
];

/// The shards of all workers at the time of a scrape.
struct MetricsPage {
    shards: Vec<Arc<Shard>>,
    dropped_lines: u64,
}

/// The families of requests in one direction.
struct RequestFamilies {
    is_outbound: bool,
    requests: &'static str,
    help: &'static str,
    durations: &'static str,
}

/// Of clients to the app.
const INBOUND: RequestFamilies = RequestFamilies {
    is_outbound: false,
    requests: "tidegate_http_requests",
    help: "Requests that were answered, by the app or by the sidecar itself",
    durations: "tidegate_http_request_duration",
};

/// Of the app to others.
const OUTBOUND: RequestFamilies = RequestFamilies {
    is_outbound: true,
    requests: "tidegate_outbound_http_requests",
    help: "Requests of the app that were answered, by their destination or by the sidecar itself",
    durations: "tidegate_outbound_http_request_duration",
};

/// Sums of one series of requests.
#[derive(Default)]
struct RequestSums {
    count: u64,
    seconds: f64,
    buckets: [u64; BOUNDS.len() + 1],
}

impl Collector for DataPlaneMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let page = MetricsPage {
            shards: self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            dropped_lines: self.access_log.as_ref().map_or(0, AccessLogSink::dropped),
        };
        page.requests(&mut encoder, &INBOUND)?;
        page.requests(&mut encoder, &OUTBOUND)?;
        page.labelled(
            &mut encoder,
            ("tidegate_refused", "Connections and requests that the policy refused"),
            ("reason", |shard| &shard.refused),
        )?;
        page.labelled(
            &mut encoder,
            (
                "tidegate_audit_refusals",
                "Connections and requests that the policy would refuse if it were not in audit mode",
            ),
            ("reason", |shard| &shard.audited),
        )?;
        page.labelled(
            &mut encoder,
            (
                "tidegate_requests_limited",
                "Requests that reached a limit of the sidecar, and HTTP/2 connections that were ended because of a flood",
            ),
            ("limit", |shard| &shard.limited),
        )?;
        page.labelled(
            &mut encoder,
            (
                "tidegate_external_authorizations",
                "Checks of requests by the server of the external authorization",
            ),
            ("result", |shard| &shard.checked),
        )?;
        page.labelled(
            &mut encoder,
            (
                "tidegate_rate_limit_checks",
                "Connections and requests that a rate limit service was called for",
            ),
            ("result", |shard| &shard.rate_limit_checked),
        )?;
        page.labelled(
            &mut encoder,
            (
                "tidegate_forward_proxy_failures",
                "Connections and requests that a forward proxy did not take further",
            ),
            ("reason", |shard| &shard.forward_proxy_failures),
        )?;
        page.outbound(&mut encoder)?;
        if let Some(spans) = &self.spans {
            span_counts(&mut encoder, spans)?;
        }
        let shards = page.shards.iter().map(|shard| &*shard.remote).collect();
        RemotePage { shards, remotes: &self.remotes }.encode(&mut encoder)?;
        page.totals(&mut encoder)?;
        page.limits(&mut encoder)?;
        page.open(&mut encoder)
    }
}

impl MetricsPage {
    /// Requests by all labels, then their durations by protocol and security.
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>, families: &RequestFamilies) -> Result<(), Error> {
        let mut requests: BTreeMap<_, RequestSums> = BTreeMap::new();
        for shard in &self.shards {
            let of_shard = shard.requests.lock().unwrap_or_else(PoisonError::into_inner);
            let of_direction = of_shard.iter().filter(|(key, _)| key.is_outbound == families.is_outbound);
            for (key, slot) in of_direction {
                let seconds = Duration::from_micros(slot.sum_micros.value()).as_secs_f64();
                requests
                    .entry((key.protocol, key.code, key.flag.code(), key.security.as_str()))
                    .or_default()
                    .add(slot.count.value(), seconds, slot.buckets.iter().map(Count::value));
            }
        }
        let mut family = counter(encoder, families.requests, families.help)?;
        for ((protocol, code, flag, security), sums) in &requests {
            let code = code.to_string();
            let labels = [
                ("request_protocol", *protocol),
                ("response_code", code.as_str()),
                ("response_flags", *flag),
                ("connection_security_policy", *security),
            ];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&sums.count, None)?;
        }
        durations(
            encoder,
            families.durations,
            requests.into_iter().map(|((protocol, _, _, security), sums)| ((protocol, security), sums)),
        )
    }

    /// One family with a single label.
    fn labelled(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        (label, of): (&str, fn(&Shard) -> &Labelled),
    ) -> Result<(), Error> {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for shard in &self.shards {
            for (value, count) in of(shard).lock().unwrap_or_else(PoisonError::into_inner).iter() {
                *counts.entry(value).or_default() += count.value();
            }
        }
        let mut family = counter(encoder, name, help)?;
        for (value, count) in counts {
            family.encode_family(&[(label, value)])?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    /// Outbound connections by destination, security and outcome.
    fn outbound(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut outbound: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
        for shard in &self.shards {
            for ((kind, security, flag), count) in
                shard.outbound.lock().unwrap_or_else(PoisonError::into_inner).iter()
            {
                *outbound.entry((kind, security.as_str(), flag.code())).or_default() += count.value();
            }
        }
        let help = "Connections of the app that carried opaque bytes and ended, by destination";
        let mut family = counter(encoder, "tidegate_outbound_connections", help)?;
        for ((kind, security, flag), count) in outbound {
            let labels =
                [("destination", kind), ("connection_security_policy", security), ("response_flags", flag)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    /// Counts without labels.
    fn totals(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        for (name, help, unit, of) in TOTALS {
            let unit = matches!(unit, TotalUnit::Bytes).then_some(&Unit::Bytes);
            let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, f64>(&self.sum(of), None)?;
        }
        let help = "Access log lines lost to a slow or full target";
        counter(encoder, "tidegate_access_log_dropped_lines", help)?
            .encode_counter::<NoLabelSet, _, f64>(&self.dropped_lines, None)
    }

    /// Connections by the limit that ended them.
    fn limits(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "Connections that a limit has ended: no free place for a client or for the app, room for another \
                    client, or too much unfinished data (heads, handshakes, TLS records)";
        let mut family = counter(encoder, "tidegate_connections_limited", help)?;
        for (limit, value) in [
            ("connections", self.sum(|totals| &totals.no_place)),
            ("outbound_connections", self.sum(|totals| &totals.outbound_no_place)),
            ("share", self.sum(|totals| &totals.made_room)),
            ("unfinished_bytes", self.sum(|totals| &totals.unfinished)),
        ] {
            family.encode_family(&[("limit", limit)])?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    /// Gauges of open connections.
    fn open(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        for (name, help, opened, closed) in [
            (
                "tidegate_tcp_connections_open",
                "Client connections that are open",
                self.sum(|totals| &totals.opened),
                self.sum(|totals| &totals.closed),
            ),
            (
                "tidegate_outbound_connections_open",
                "Connections of the app that are open",
                self.sum(|totals| &totals.outbound_opened),
                self.sum(|totals| &totals.outbound_closed),
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode_gauge(&i64::try_from(opened.saturating_sub(closed)).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }

    /// The sum of one total over all workers.
    fn sum(&self, of: fn(&Totals) -> &Count) -> u64 {
        self.shards.iter().map(|shard| of(&shard.totals).value()).sum()
    }
}

impl RequestSums {
    /// Adds the counts of one worker. `seconds`: the sum of all durations.
    fn add(&mut self, count: u64, seconds: f64, buckets: impl IntoIterator<Item = u64>) {
        self.count += count;
        self.seconds += seconds;
        for (total, bucket) in self.buckets.iter_mut().zip(buckets) {
            *total += bucket;
        }
    }
}

/// Durations of requests as a histogram by protocol and security.
fn durations(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    requests: impl Iterator<Item = ((&'static str, &'static str), RequestSums)>,
) -> Result<(), Error> {
    let mut durations: BTreeMap<_, RequestSums> = BTreeMap::new();
    for (labels, sums) in requests {
        durations.entry(labels).or_default().add(sums.count, sums.seconds, sums.buckets);
    }
    let help = "From a request's first byte to the last byte of its response";
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for ((protocol, security), RequestSums { count, seconds, buckets }) in durations {
        let labels = [("request_protocol", protocol), ("connection_security_policy", security)];
        let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(buckets).collect();
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
    }
    Ok(())
}

/// How many spans were exported, and how many lost.
fn span_counts(encoder: &mut DescriptorEncoder<'_>, spans: &SpanCounts) -> Result<(), Error> {
    for (name, help, count) in [
        ("tidegate_spans_exported", "Spans that the collector has taken", &spans.exported),
        (
            "tidegate_spans_dropped",
            "Spans that were lost: the collector was slow or away, or has rejected them",
            &spans.dropped,
        ),
    ] {
        let count = count.load(Ordering::Relaxed);
        counter(encoder, name, help)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
    }
    Ok(())
}
