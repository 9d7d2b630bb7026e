//! Requests and connections by remote workload, with Istio's names and labels.
//!
//! Durations and bytes have no `response_code`, `response_flags` and `grpc_response_status`: their buckets would be shown
//! once for each.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Error;
use std::sync::{Arc, PoisonError};

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::Count;
use super::family::counter;
use super::remote::{HistogramCells, RemoteCells, RemoteShard, TcpCells};
use super::series::{
    BODY_BYTES, MILLISECONDS, RemoteKey, RequestKind, RequestLabels, RequestProtocol, ResponseCode,
};
use crate::remotes::{RemoteId, RemoteLabels, Remotes, WorkloadLabels};
use crate::telemetry::{ConnectionSecurity, GrpcOutcome};

/// Value of a label that is not known.
const UNKNOWN: &str = "unknown";
/// Value of labels of what is not told apart.
const OTHER: &str = "other";
/// What Istio calls destinations outside the mesh.
const OUTSIDE: &str = "PassthroughCluster";

/// One label.
type Label = (&'static str, Cow<'static, str>);

/// One histogram of requests, as it is found in the cells.
struct HistogramFamily {
    name: &'static str,
    help: &'static str,
    unit: Unit,
    bounds: &'static [f64],
    sum: fn(&HistogramCells) -> f64,
    buckets: fn(&HistogramCells) -> &[Count],
}

/// One count of connections: name, help, unit and where it is counted.
type TcpFamily = (&'static str, &'static str, Option<Unit>, fn(&TcpCells) -> &Count);

/// The shards of all workers, and the names of workloads.
pub(super) struct RemotePage<'s> {
    pub(super) shards: Vec<&'s RemoteShard>,
    pub(super) remotes: &'s Remotes,
}

impl RemotePage<'_> {
    /// All families.
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        self.requests(encoder)?;
        for family in histogram_families() {
            self.histogram(encoder, &family)?;
        }
        for family in tcp_families() {
            self.tcp(encoder, &family)?;
        }
        let help = "Requests and connections that are counted as those of other workloads, because the page has no room \
                    for more series";
        let folded: u64 = self.shards.iter().map(|shard| shard.folded.value()).sum();
        counter(encoder, "tidegate_metrics_folded", help)?.encode_counter::<NoLabelSet, _, f64>(&folded, None)
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let sums = sums(&self.shards, |shard| &shard.requests, Count::value);
        let mut family = counter(encoder, "istio_requests", "Requests, by workloads and outcome")?;
        for ((key, labels), count) in sums {
            let mut shown = self.labels(key);
            shown.extend(labels.kind.labels());
            shown.extend(labels.labels());
            family.encode_family(&shown)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    fn histogram(&self, encoder: &mut DescriptorEncoder<'_>, family: &HistogramFamily) -> Result<(), Error> {
        let HistogramFamily { name, help, unit, bounds, sum, buckets } = family;
        let sums = sums(
            &self.shards,
            |shard| &shard.histograms,
            |cells| (sum(cells), buckets(cells).iter().map(Count::value).collect::<Vec<_>>()),
        );
        let mut family = encoder.encode_descriptor(name, help, Some(unit), MetricType::Histogram)?;
        for ((key, kind), (sum, buckets)) in sums {
            let mut shown = self.labels(key);
            shown.extend(kind.labels());
            let count = buckets.iter().sum();
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(buckets).collect();
            family.encode_family(&shown)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn tcp(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit, of): &TcpFamily,
    ) -> Result<(), Error> {
        let sums = sums(&self.shards, |shard| &shard.tcp, |cells| of(cells).value());
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for ((key, security), count) in sums {
            let mut shown = self.labels(key);
            shown.push(("request_protocol", "tcp".into()));
            shown.push(security.label());
            family.encode_family(&shown)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    /// Who has reported, and both ends.
    fn labels(&self, key: RemoteKey) -> Vec<Label> {
        let own = self.remotes.own();
        let (workload, service) = match key.remote {
            RemoteId::OTHER => (None, [OTHER; 3].map(Cow::from)),
            RemoteId::OUTSIDE => {
                (Some(WorkloadLabels::default()), [OUTSIDE, OUTSIDE, UNKNOWN].map(Cow::from))
            }
            id => {
                let RemoteLabels { workload, service, egress_proxy } = self.remotes.labels(id);
                let service = match egress_proxy {
                    Some(object) => of_egress_proxy(&object),
                    None => of_service(service.as_deref()),
                };
                (Some(workload), service)
            }
        };
        let [remote, own] = [workload_values(workload), workload_values(Some(own))];
        let (reporter, source, destination) =
            if key.is_outbound { ("source", own, remote) } else { ("destination", remote, own) };
        let [source_workload, source_namespace, source_principal] = source;
        let [destination_workload, destination_namespace, destination_principal] = destination;
        let [service, service_name, service_namespace] = service;
        vec![
            ("reporter", reporter.into()),
            ("source_workload", source_workload),
            ("source_workload_namespace", source_namespace),
            ("source_principal", source_principal),
            ("destination_workload", destination_workload),
            ("destination_workload_namespace", destination_namespace),
            ("destination_principal", destination_principal),
            ("destination_service", service),
            ("destination_service_name", service_name),
            ("destination_service_namespace", service_namespace),
        ]
    }
}

/// Name, namespace and principal; `None` for workloads that are not told apart.
fn workload_values(workload: Option<WorkloadLabels>) -> [Cow<'static, str>; 3] {
    let Some(WorkloadLabels { name, namespace, principal }) = workload else {
        return [OTHER; 3].map(Cow::from);
    };
    [name, namespace, principal].map(|value| match value {
        Some(value) => Cow::Owned(value.to_string()),
        None => UNKNOWN.into(),
    })
}

/// Host, name and namespace of a Service.
fn of_service(service: Option<&str>) -> [Cow<'static, str>; 3] {
    match service.and_then(|service| service.split_once('/')) {
        Some((namespace, name)) => [
            format!("{name}.{namespace}.svc.cluster.local").into(),
            name.to_owned().into(),
            namespace.to_owned().into(),
        ],
        None => [UNKNOWN; 3].map(Cow::from),
    }
}

/// The same of `EgressProxy/<namespace>/<name>`.
fn of_egress_proxy(object: &str) -> [Cow<'static, str>; 3] {
    let mut parts = object.splitn(3, '/').skip(1);
    let [namespace, name] = [parts.next(), parts.next()].map(Option::unwrap_or_default);
    [object, name, namespace].map(|label| label.to_owned().into())
}

/// The sums of all workers, by workload and further labels.
fn sums<L: Copy + Ord, C, V: Summed>(
    shards: &[&RemoteShard],
    of: impl Fn(&RemoteShard) -> &RemoteCells<L, C>,
    value: impl Fn(&C) -> V,
) -> BTreeMap<(RemoteKey, L), V> {
    let mut sums = BTreeMap::new();
    for shard in shards {
        let cells: Vec<(RemoteKey, L, Arc<C>)> = {
            let listed = of(shard).lock().unwrap_or_else(PoisonError::into_inner);
            listed.iter().map(|(key, labels, cell)| (*key, *labels, cell.clone())).collect()
        };
        for (key, labels, cell) in cells {
            let value = value(&cell);
            match sums.entry((key, labels)) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(mut entry) => entry.get_mut().add_up(value),
            }
        }
    }
    sums
}

/// What workers count apart and the page adds up.
trait Summed {
    fn add_up(&mut self, other: Self);
}

impl Summed for u64 {
    fn add_up(&mut self, other: Self) {
        *self += other;
    }
}

impl Summed for (f64, Vec<u64>) {
    fn add_up(&mut self, (sum, buckets): Self) {
        self.0 += sum;
        self.1.iter_mut().zip(buckets).for_each(|(total, bucket)| *total += bucket);
    }
}

fn histogram_families() -> [HistogramFamily; 3] {
    [
        HistogramFamily {
            name: "istio_request_duration",
            help: "From a request's first byte to the last byte of its response",
            unit: Unit::Other("milliseconds".to_owned()),
            bounds: &MILLISECONDS,
            sum: |cells| cells.micros.value() as f64 / 1e3,
            buckets: |cells| &cells.durations,
        },
        HistogramFamily {
            name: "istio_request",
            help: "Bodies of requests",
            unit: Unit::Bytes,
            bounds: &BODY_BYTES,
            sum: |cells| cells.received.value() as f64,
            buckets: |cells| &cells.received_by_size,
        },
        HistogramFamily {
            name: "istio_response",
            help: "Bodies of responses",
            unit: Unit::Bytes,
            bounds: &BODY_BYTES,
            sum: |cells| cells.sent.value() as f64,
            buckets: |cells| &cells.sent_by_size,
        },
    ]
}

fn tcp_families() -> [TcpFamily; 4] {
    [
        ("istio_tcp_connections_opened", "Connections of opaque bytes", None, |cells| &cells.opened),
        ("istio_tcp_connections_closed", "Connections of opaque bytes that ended", None, |cells| {
            &cells.closed
        }),
        ("istio_tcp_received", "Bytes of clients on ended connections", Some(Unit::Bytes), |cells| {
            &cells.received
        }),
        ("istio_tcp_sent", "Bytes to clients on ended connections", Some(Unit::Bytes), |cells| &cells.sent),
    ]
}

impl RequestKind {
    fn labels(self) -> [Label; 2] {
        let protocol = match self.protocol {
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc => "grpc",
            RequestProtocol::Other => OTHER,
        };
        [("request_protocol", protocol.into()), self.security.label()]
    }
}

impl RequestLabels {
    fn labels(self) -> [Label; 3] {
        let code = match self.code {
            ResponseCode::Exact(code) => code.to_string(),
            ResponseCode::Class(0) => "0".to_owned(),
            ResponseCode::Class(class) => format!("{class}xx"),
        };
        let grpc = match self.grpc {
            Some(GrpcOutcome::Status(status)) => status.to_string(),
            Some(GrpcOutcome::Unfinished) | None => String::new(),
        };
        [
            ("response_code", code.into()),
            ("response_flags", self.flag.code().into()),
            ("grpc_response_status", grpc.into()),
        ]
    }
}

impl ConnectionSecurity {
    fn label(self) -> Label {
        ("connection_security_policy", self.as_str().into())
    }
}
