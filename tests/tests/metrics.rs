//! The metrics pages, read by the official parsers and a real Prometheus.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tidegate_tests::app::App;
use tidegate_tests::client::RequestOutcome;
use tidegate_tests::mesh::{Mesh, PORT};
use tidegate_tests::objects::{backend, gateway, policy};
use tidegate_tests::prometheus::{Prometheus, check_page, value};
use tidegate_tests::wait::{self, SOON};

#[test]
fn every_page_passes_its_official_reader_and_a_prometheus_computes_quantiles_from_it() {
    let mut mesh = Mesh::start();
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", PORT, "http")], &[gateway()])]);
    let _app = App::echo(mesh.app_address());
    let daemons = [&mesh.sidecar, &mesh.controller, &mesh.ca].map(|daemon| daemon.admin_address());
    let prometheus = Prometheus::start(mesh.path(), mesh.block().at(98, 9090), &daemons);

    for _ in 0..20 {
        assert_eq!(mesh.client().get("/get"), RequestOutcome::Status(200));
    }
    assert_ne!(mesh.client().from(mesh.stranger()).get("/get"), RequestOutcome::Status(200));
    let families = daemons.map(check_page);
    for (families, expected) in families.iter().zip([
        "tidegate_http_request_duration_seconds",
        "tidegate_controller_discovery_streams",
        "tidegate_certificates_issued",
    ]) {
        assert!(families.iter().any(|name| name == expected), "no {expected} in {families:?}");
    }

    wait::until_true(
        "Prometheus has scraped every daemon twice, the sidecar's requests included",
        SOON,
        || {
            prometheus.query("count_over_time(up[1m]) > 1").len() == daemons.len()
                && prometheus
                    .query("sum(tidegate_http_request_duration_seconds_count) >= 20")
                    .first()
                    .is_some_and(|count| value(count) == 20.0)
        },
    );
    assert_eq!(prometheus.query("up == 1").len(), daemons.len());
    let named = "sum(istio_requests_total{reporter=\"destination\", destination_workload=\"httpbin\", \
                 destination_service=\"httpbin.httpbin.svc.cluster.local\", response_code=\"200\"})";
    assert_eq!(value(&prometheus.query(named)[0]), 20.0);
    let quantile = "histogram_quantile(0.99, sum by (le) (tidegate_http_request_duration_seconds_bucket))";
    let quantile = value(&prometheus.query(quantile)[0]);
    assert!(quantile > 0.0 && quantile <= 10.0, "{quantile}");
}
