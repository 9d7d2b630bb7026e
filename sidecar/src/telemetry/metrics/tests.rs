use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tidegate_core::policy::{Denial, Reason};

use super::*;
use crate::connection_info::AddressOwner;
use crate::detect::server::SpokenProtocol;
use crate::remotes::{RemoteLabels, WorkloadLabels};
use crate::telemetry::{DialledEndpoint, GrpcOutcome, OutboundRecord};

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
    let audited = Decision::Allow(Grant::Audit(Denial::new(Reason::PeerNotAllowed)));
    for worker in &workers {
        let duration = Duration::from_millis(7);
        worker.record(&Record { protocol: "HTTP/1.1", status: 200, duration, sent: 5, ..Record::default() });
        worker.record(&Record {
            protocol: "HTTP/2",
            status: 403,
            decision: Some(&denied),
            ..Record::default()
        });
        worker.record(&Record { decision: Some(&audited), ..Record::default() });
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
        "tidegate_audit_refusals_total{reason=\"peer_not_allowed\"} 2",
        "tidegate_sent_bytes_total 10",
        "tidegate_tcp_connections_open 0",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[test]
fn requests_of_the_app_have_series_of_their_own() {
    let metrics = DataPlaneMetrics::new(None);
    let worker = metrics.worker();
    let outbound = OutboundRecord { endpoint: None, ..opened_to(endpoint(RemoteId::UNKNOWN)) };
    let connection = || Record { outbound: Some(outbound), received: 3, sent: 5, ..Record::default() };
    worker.record(&connection());
    worker.record(&Record { protocol: "HTTP/1.1", status: 200, ..connection() });
    worker.record(&Record { protocol: "HTTP/2", status: 503, ..connection() });
    let page = page(metrics);
    for line in [
        "tidegate_outbound_http_requests_total{request_protocol=\"http1\",response_code=\"200\",\
         response_flags=\"-\",connection_security_policy=\"none\"} 1",
        "tidegate_outbound_http_request_duration_seconds_count{request_protocol=\"http2\",\
         connection_security_policy=\"none\"} 1",
        "tidegate_outbound_connections_total{destination=\"mesh\",connection_security_policy=\"none\",\
         response_flags=\"-\"} 1",
        "tidegate_outbound_sent_bytes_total 9",
        "tidegate_outbound_received_bytes_total 15",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("tidegate_http_requests_total{"), "{page}");
}

#[test]
fn a_million_paths_and_hosts_make_one_series() {
    let metrics = DataPlaneMetrics::new(None);
    let worker = metrics.worker();
    for i in 0..1_000_000u32 {
        let path = i.to_string();
        let status = 200 + u16::try_from(i % 3).unwrap();
        let path = path.as_bytes();
        worker.record(&Record { protocol: "HTTP/1.1", path, authority: path, status, ..Record::default() });
    }
    assert_eq!(
        page(metrics).lines().filter(|line| line.starts_with("tidegate_http_requests_total")).count(),
        3
    );
}

fn opened_to(endpoint: DialledEndpoint) -> OutboundRecord<'static> {
    OutboundRecord {
        peer: "10.0.0.1:4444".parse().unwrap(),
        dialled: "10.96.0.1:80".parse().unwrap(),
        service: Some("shop/cart"),
        destination: RemoteId::UNKNOWN,
        endpoint: Some(endpoint),
        owner: &AddressOwner::Cluster,
        spoken: SpokenProtocol::Tcp,
        hosts: None,
        local: None,
        server_name: None,
    }
}

fn endpoint(remote: RemoteId) -> DialledEndpoint {
    DialledEndpoint {
        address: "10.0.0.2:80".parse().unwrap(),
        is_mutual_tls: true,
        is_http_proxy: false,
        remote,
    }
}

fn cart() -> RemoteLabels {
    let workload = WorkloadLabels {
        name: Some("cart-v1".into()),
        namespace: Some("shop".into()),
        principal: Some("spiffe://cluster.local/ns/shop/sa/cart".into()),
    };
    RemoteLabels { workload, service: Some("shop/cart".into()), egress_proxy: None }
}

/// The lines of remote workloads, without comments.
fn remote_lines(page: &str) -> impl Iterator<Item = &str> {
    page.lines().filter(|line| line.starts_with("istio_"))
}

#[test]
fn requests_are_shown_by_both_workloads_with_istios_names() {
    let metrics = DataPlaneMetrics::new(None);
    let remote = metrics.remotes().id(cart());
    for worker in [metrics.worker(), metrics.worker()] {
        worker.record(&Record {
            outbound: Some(opened_to(endpoint(remote))),
            protocol: "HTTP/2",
            status: 200,
            grpc: Some(GrpcOutcome::Status(5)),
            duration: Duration::from_millis(30),
            received: 10,
            sent: 20_000,
            ..Record::default()
        });
        drop(worker.tcp(true, remote, ConnectionSecurity::MutualTls));
    }
    let page = page(metrics);
    let pair = "reporter=\"source\",source_workload=\"unknown\",source_workload_namespace=\"unknown\",\
                source_principal=\"unknown\",destination_workload=\"cart-v1\",destination_workload_namespace=\"shop\",\
                destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",\
                destination_service=\"cart.shop.svc.cluster.local\",destination_service_name=\"cart\",\
                destination_service_namespace=\"shop\"";
    let grpc = "request_protocol=\"grpc\",connection_security_policy=\"mutual_tls\"";
    let tcp = "request_protocol=\"tcp\",connection_security_policy=\"mutual_tls\"";
    for line in [
        &format!(
            "istio_requests_total{{{pair},{grpc},response_code=\"200\",response_flags=\"-\",\
             grpc_response_status=\"5\"}} 2"
        ),
        &format!("istio_request_duration_milliseconds_bucket{{le=\"25.0\",{pair},{grpc}}} 0"),
        &format!("istio_request_duration_milliseconds_bucket{{le=\"50.0\",{pair},{grpc}}} 2"),
        &format!("istio_request_duration_milliseconds_sum{{{pair},{grpc}}} 60.0"),
        &format!("istio_request_bytes_sum{{{pair},{grpc}}} 20.0"),
        &format!("istio_response_bytes_bucket{{le=\"100000.0\",{pair},{grpc}}} 2"),
        &format!("istio_tcp_connections_opened_total{{{pair},{tcp}}} 2"),
        &format!("istio_tcp_connections_closed_total{{{pair},{tcp}}} 2"),
        "tidegate_metrics_folded_total 0",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[test]
fn the_workload_of_the_sidecar_is_the_other_end() {
    let metrics = DataPlaneMetrics::new(None);
    metrics.remotes().name_own(WorkloadLabels { name: Some("web".into()), ..WorkloadLabels::default() });
    let worker = metrics.worker();
    worker.record(&Record { protocol: "HTTP/1.1", status: 200, ..Record::default() });
    let outside = Some(opened_to(endpoint(RemoteId::OUTSIDE)));
    worker.record(&Record { protocol: "HTTP/1.1", status: 200, outbound: outside, ..Record::default() });
    let page = page(metrics);
    for part in [
        "istio_requests_total{reporter=\"destination\",source_workload=\"unknown\"",
        "destination_workload=\"web\"",
        "istio_requests_total{reporter=\"source\",source_workload=\"web\"",
        "destination_service=\"PassthroughCluster\"",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
}

#[test]
fn what_leaves_through_forward_proxies_counts_under_the_object_that_lists_them() {
    let metrics = DataPlaneMetrics::new(None);
    let egress_proxy = Some("EgressProxy/shop/squid".into());
    let remote = metrics.remotes().id(RemoteLabels { egress_proxy, ..RemoteLabels::default() });
    let outbound = Some(opened_to(endpoint(remote)));
    metrics.worker().record(&Record { protocol: "HTTP/1.1", status: 200, outbound, ..Record::default() });
    let labels = "destination_service=\"EgressProxy/shop/squid\",destination_service_name=\"squid\",\
                  destination_service_namespace=\"shop\"";
    assert!(page(metrics).contains(labels));
}

#[test]
fn the_series_of_many_workloads_are_bounded_and_the_rest_counts_as_other() {
    let metrics = DataPlaneMetrics::new(None);
    let workers = [metrics.worker(), metrics.worker()];
    let (mut requests, mut connections) = (0, 0);
    for i in 0..2000u16 {
        let service = Some(format!("shop/service-{i}").into());
        let remote = metrics.remotes().id(RemoteLabels { service, ..RemoteLabels::default() });
        for worker in &workers {
            drop(worker.tcp(true, remote, ConnectionSecurity::None));
            connections += 1;
            for status in [200, 404, 503, 100 + i % 500] {
                let outbound = Some(opened_to(endpoint(remote)));
                worker.record(&Record { outbound, protocol: "HTTP/1.1", status, ..Record::default() });
                worker.record(&Record { protocol: "HTTP/1.1", status, ..Record::default() });
                requests += 2;
            }
        }
    }
    let page = page(metrics);
    let lines = remote_lines(&page).count();
    assert!((540..=600).contains(&lines), "{lines} lines of\n{page}");
    let sum = |start: &str| -> u64 {
        let lines = remote_lines(&page).filter(|line| line.starts_with(start));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(sum("istio_requests_total{"), requests);
    assert_eq!(sum("istio_request_duration_milliseconds_count{"), requests);
    assert_eq!(sum("istio_tcp_connections_closed_total{"), connections);
    let other = "destination_workload=\"other\",destination_workload_namespace=\"other\"";
    let folded = "request_protocol=\"other\",connection_security_policy=\"unknown\",response_code=\"5xx\"";
    assert!(page.lines().any(|line| line.contains(other) && line.contains(folded)), "{page}");
    assert!(!page.contains("tidegate_metrics_folded_total 0"), "{page}");
}
