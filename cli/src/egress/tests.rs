use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::get;
use clap::Parser;
use tidegate_controller::Index;
use tidegate_controller::source::folder::FolderSource;
use tidegate_sidecar::detect::server::SpokenProtocol;
use tidegate_sidecar::telemetry::egress::{EgressOutcome, ReachedHost};

use super::*;
use crate::cluster::testing::{TestCluster, meshed_pod};

fn reached(host: Option<&str>, addresses: &[&str], port: u16, protocol: SpokenProtocol) -> ReachedHost {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    ReachedHost {
        protocol,
        host: host.map(ToOwned::to_owned),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        port,
        count: 2,
        refused: 0,
        bytes_sent: 100,
        bytes_received: 5000,
        first_seen: time,
        last_seen: time,
        outcome: EgressOutcome::EnableEgress,
        allowed_by: None,
    }
}

fn report(workload: &str, account: &str, reached: Vec<ReachedHost>) -> EgressReport {
    EgressReport {
        workload: workload.to_owned(),
        service_account: Some(account.to_owned()),
        since: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        unlisted: 0,
        reached,
    }
}

/// The manifests of ServiceEntries with their preface.
fn whole(reports: &[EgressReport]) -> String {
    let hosts = hosts::of(reports);
    manifests::preface(reports, &hosts) + &manifests::text(&hosts).unwrap()
}

/// The specs of the entries in these manifests, after every check of `tidegate validate`.
fn specs(manifests: &str) -> Vec<serde_json::Value> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("learned.yaml"), manifests).unwrap();
    let loaded = FolderSource::new(folder.path()).load();
    assert!(loaded.problems.is_empty(), "{:?}\n{manifests}", loaded.problems);
    let statuses = tidegate_controller::status::all(&Index::of(loaded.changes));
    for status in &statuses {
        assert_eq!(status.current_status, "committed", "{}: {}\n{manifests}", status.name, status.reason);
        // The folder has no MeshConfig that turns egress off.
        let unexpected = |warning: &&String| !warning.contains("enableEgress is not false");
        assert_eq!(status.warnings.iter().find(unexpected), None);
    }
    let documents = manifests.split("---\n").skip(1);
    let values: Vec<serde_json::Value> =
        documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect();
    assert_eq!(values.len(), statuses.len());
    values
}

#[test]
fn what_was_reached_becomes_entries_that_are_valid_and_do_not_compete() {
    let tls = SpokenProtocol::Tls;
    let reports = [
        report(
            "shop/cart-0",
            "cart",
            vec![
                reached(Some("a.example"), &["192.0.2.1", "192.0.2.2"], 443, tls),
                reached(Some("b.example"), &["192.0.2.2"], 443, tls),
                reached(Some("b.example"), &["192.0.2.2"], 80, SpokenProtocol::Http),
                reached(None, &["192.0.2.9"], 5432, SpokenProtocol::Tcp),
                reached(None, &["192.0.2.8"], 3128, SpokenProtocol::HttpProxy),
                reached(None, &["2001:db8::1"], 22, SpokenProtocol::Tcp),
            ],
        ),
        report("shop/web-0", "web", vec![reached(Some("a.example"), &["192.0.2.3"], 443, tls)]),
    ];
    let text = whole(&reports);
    let specs = specs(&text);
    let shown: Vec<_> = specs
        .iter()
        .map(|value| {
            let spec = &value["spec"];
            assert_eq!(spec["exportTo"][0], ".");
            assert_eq!(value["metadata"]["namespace"], "shop");
            let ports = spec["ports"].as_array().unwrap().iter();
            let ports: Vec<_> =
                ports.map(|port| format!("{}/{}", port["number"], port["protocol"])).collect();
            format!(
                "{} {} {} {}",
                value["metadata"]["name"],
                spec["hosts"],
                spec["addresses"],
                ports.join(",")
            )
            .replace('"', "")
        })
        .collect();
    assert_eq!(
        shown,
        [
            "learned-a.example [a.example] [192.0.2.3] 443/TLS",
            "learned-a.example-2 [a.example,b.example] [192.0.2.1,192.0.2.2] 443/TLS",
            "learned-b.example [b.example] [192.0.2.2] 80/HTTP",
            "learned-ip-192-0-2-8.invalid [ip-192-0-2-8.invalid] [192.0.2.8] 3128/TCP",
            "learned-ip-192-0-2-9.invalid [ip-192-0-2-9.invalid] [192.0.2.9] 5432/TCP",
            "learned-ip-2001-db8--1.invalid [ip-2001-db8--1.invalid] [2001:db8::1] 22/TCP",
        ]
    );
    assert!(
        text.contains("# Service accounts: cart\n# a.example:443 (TLS): 2 times, 100 bytes sent"),
        "{text}"
    );
    assert!(text.starts_with("# shop/cart-0 since 2023-11-14T22:13:20Z\n# shop/web-0 since"), "{text}");
}

#[test]
fn egresses_are_for_one_service_account_each_and_allow_hosts_only_at_their_ports() {
    let tls = SpokenProtocol::Tls;
    let web = vec![
        reached(Some("a.example"), &["192.0.2.1"], 443, tls),
        reached(Some("b.example"), &["192.0.2.2"], 443, tls),
        reached(Some("b.example"), &["192.0.2.2"], 8080, SpokenProtocol::Http),
        reached(None, &["192.0.2.3"], 443, tls),
        reached(None, &["2001:db8::1"], 22, SpokenProtocol::Tcp),
    ];
    let cart = vec![reached(Some("a.example"), &["192.0.2.1"], 443, tls)];
    let reports = [report("shop/web-0", "web", web), report("shop/cart-0", "cart", cart)];
    let specs = specs(&policies::text(&hosts::of(&reports)).unwrap());
    let shown: Vec<_> = specs
        .iter()
        .map(|value| {
            let (name, spec) = (&value["metadata"]["name"], &value["spec"]);
            let (source, port) = (&spec["sources"][0]["name"], &spec["ports"][0]);
            let list = |field: &str| spec.get(field).map(ToString::to_string).unwrap_or_default();
            let servers = list("hosts") + &list("ipAddresses");
            format!("{name} {source} {}/{} {servers}", port["number"], port["protocol"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        shown,
        [
            "learned-cart-https-443 cart 443/https [a.example]",
            "learned-web-http-8080 web 8080/http [b.example]",
            "learned-web-https-443-by-address web 443/https [192.0.2.3/32]",
            "learned-web-https-443 web 443/https [a.example,b.example]",
            "learned-web-tcp-22-by-address web 22/tcp [2001:db8::1/128]",
        ]
    );
}

#[test]
fn what_an_entry_allows_and_what_is_refused_gets_no_entry() {
    let mut allowed = reached(Some("a.example"), &["192.0.2.1"], 443, SpokenProtocol::Tls);
    (allowed.outcome, allowed.allowed_by) = (EgressOutcome::Allowed, Some("ServiceEntry shop/a".to_owned()));
    let mut refused = reached(Some("b.example"), &["192.0.2.2"], 443, SpokenProtocol::Tls);
    (refused.outcome, refused.refused) = (EgressOutcome::Refused, 2);
    let reports = [report("shop/cart-0", "cart", vec![allowed, refused])];
    let hosts = hosts::of(&reports);
    let text = whole(&reports);
    assert!(specs(&text).is_empty());
    assert!(text.contains("# a.example:443: allowed by ServiceEntry shop/a (shop/cart)\n"), "{text}");
    assert!(text.contains("# b.example:443: is refused; nothing below allows it (shop/cart)\n"), "{text}");
    let table = hosts::table(&hosts);
    assert!(table.contains("a.example:443   TLS      2       100          5000"), "{table}");
}

#[test]
fn pods_of_one_service_account_add_up_and_others_are_told_apart() {
    let of = |workload: &str, account: &str| {
        report(workload, account, vec![reached(Some("a.example"), &["192.0.2.1"], 443, SpokenProtocol::Tls)])
    };
    let reports = [of("shop/cart-0", "cart"), of("shop/cart-1", "cart"), of("other/cart-0", "cart")];
    let hosts = hosts::of(&reports);
    let shown: Vec<_> = hosts.iter().map(|host| (host.namespace.as_str(), host.reached.count)).collect();
    assert_eq!(shown, [("other", 2), ("shop", 4)]);
    let options = |arguments: &[&str]| {
        let parsed = Test::parse_from([&["test"], arguments].concat());
        parsed.options.wanted(&reports).len()
    };
    assert_eq!(options(&[]), 3);
    assert_eq!(options(&["-n", "shop"]), 2);
    assert_eq!(options(&["-n", "shop", "--service-account", "web"]), 0);
}

/// A command line with the flags alone.
#[derive(Parser)]
struct Test {
    #[command(flatten)]
    options: EgressLearnOptions,
}

#[tokio::test]
async fn every_sidecar_of_a_cluster_is_queried_and_one_that_does_not_answer_is_named() {
    let fake = TestCluster::start(vec![meshed_pod("shop", "a"), meshed_pod("shop", "b")]).await;
    let page =
        report("shop/a", "a", vec![reached(Some("a.example"), &["192.0.2.1"], 443, SpokenProtocol::Tls)]);
    let route = get(move || async move { axum::Json(page) });
    fake.admin("shop/a", Router::new().route(EGRESS_PATH, route)).await;
    let collected = of_cluster(&fake.cluster(), None).await.unwrap();
    assert_eq!(collected.reports.len(), 1);
    assert_eq!(collected.reports[0].reached[0].host.as_deref(), Some("a.example"));
    assert!(collected.missing[0].starts_with("pod shop/b: "), "{:?}", collected.missing);
    let error = of_cluster(&fake.cluster(), Some("empty")).await.unwrap_err();
    assert!(error.to_string().starts_with("no pods with a sidecar in namespace empty"), "{error}");
}
