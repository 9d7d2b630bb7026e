use std::collections::BTreeMap;

use super::metrics::{ExtendedMetric, Metric, Quantile, Transfer, median};
use super::*;
use crate::load::{Latency, LoadMeasurement};
use crate::targets::Target;
use crate::topology::ProxyTopology;

/// A round in which a target answered `requests` in one second and used `cpu` seconds for them.
fn measures(requests: u64, cpu: Option<f64>) -> Measures {
    let report = LoadMeasurement {
        requests,
        seconds: 1.0,
        body_bytes: 500_000_000,
        latency: Latency { p50: 100.0, p90: 200.0, p99: 300.0, p999: 400.0, max: 500.0 },
        proxy_cpu_seconds: cpu,
        proxy_kib_before: cpu.map(|_| 10_000),
        proxy_kib_after: cpu.map(|_| 18_000),
        ..LoadMeasurement::default()
    };
    Measures {
        refusal: None,
        foreign_refusal: None,
        fresh_kib: cpu.map(|_| 9_000),
        idle: report.clone(),
        closed: BTreeMap::from([(64, report.clone())]),
        open: BTreeMap::from([(1000, report.clone())]),
        handshakes: report.clone(),
        upload: Some(report.clone()),
        http2_download: cpu.map(|_| report.clone()),
        http2_upload: cpu.map(|_| report.clone()),
        download: report,
        extended: None,
    }
}

fn results(rounds: Vec<BTreeMap<Target, Measures>>) -> Results {
    Results {
        finished: 0,
        machine: Machine { processor: "2 × P".to_owned(), kernel: "Linux 6".to_owned() },
        versions: BTreeMap::new(),
        settings: RunSettings {
            topology: ProxyTopology::Ingress,
            seconds: 1.0,
            connections: vec![64],
            rates: vec![1000],
            idle: 1000,
            extended: None,
        },
        rounds,
    }
}

fn pair(rounds: Vec<BTreeMap<Target, Measures>>) -> Results {
    let mut results = results(rounds);
    results.settings.topology = ProxyTopology::Pair;
    results
}

const THROUGHPUT: Metric = Metric::Throughput { connections: 64 };

#[test]
fn a_median_is_the_middle_figure_or_the_mean_of_the_two_in_the_middle() {
    assert_eq!(median(vec![]), None);
    assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
}

#[test]
fn a_ratio_is_taken_within_each_round_before_the_median() {
    // The machine is slow in the second round and fast in the third: the ratio of the medians would be 100 / 50.
    let rounds = [(100, 50), (25, 12), (400, 150)].map(|(ours, nginx)| {
        BTreeMap::from([
            (Target::Tidegate, measures(ours, Some(1.0))),
            (Target::Nginx, measures(nginx, Some(1.0))),
        ])
    });
    let results = results(rounds.to_vec());
    let ratio = THROUGHPUT.ratio(&results, Target::Tidegate, Target::Nginx).unwrap();
    assert!((ratio - 25.0 / 12.0).abs() < 1e-9, "{ratio}");
    assert_eq!(THROUGHPUT.median(&results, Target::Nginx), Some(50.0));
}

#[test]
fn each_figure_has_the_unit_that_its_label_says() {
    let measures = measures(20_000, Some(0.8));
    let settings = results(vec![]).settings;
    let of = |metric: Metric| metric.of(&measures, &settings).unwrap();
    assert_eq!(of(THROUGHPUT), 20_000.0);
    assert!((of(Metric::CpuClosed { connections: 64 }) - 0.4).abs() < 1e-9);
    assert!((of(Metric::CpuMillisPerHandshake) - 0.04).abs() < 1e-9);
    assert_eq!(of(Metric::LatencyMicros { rate: 1000, quantile: Quantile::P999 }), 400.0);
    assert!((of(Metric::FreshMegabytes) - 9.216).abs() < 1e-9);
    assert_eq!(of(Metric::KibPerIdleConnection), 8.0);
    for transfer in [Transfer::Download, Transfer::Upload, Transfer::Http2Download, Transfer::Http2Upload] {
        assert_eq!(of(Metric::Megabytes(transfer)), 500.0);
        assert!((of(Metric::CpuPerGigabyte(transfer)) - 1.6).abs() < 1e-9);
    }
}

/// An extended run of Tidegate, and of nginx without HTTP/2.
fn extended() -> Results {
    let mut tidegate = measures(20_000, Some(0.95));
    let load = |requests, kib_after| LoadMeasurement {
        requests,
        proxy_kib_after: Some(kib_after),
        ..tidegate.download.clone()
    };
    let mut nginx = measures(10_000, Some(0.95));
    let extended = ExtendedMeasures {
        fresh_kib: Some(9_000),
        idle: BTreeMap::from([(500, load(500, 13_000)), (5000, load(5000, 49_000))]),
        bodies: BTreeMap::from([(0, load(30_000, 0)), (1_000_000, load(900, 0))]),
        http2: Some(load(40_000, 0)),
        grpc: Some(load(35_000, 0)),
    };
    nginx.extended = Some(ExtendedMeasures { http2: None, grpc: None, ..extended.clone() });
    tidegate.extended = Some(extended);
    let mut log = measures(19_000, Some(0.95));
    log.extended = None;
    let mut results = pair(vec![BTreeMap::from([
        (Target::Tidegate, tidegate),
        (Target::TidegateLog, log),
        (Target::Nginx, nginx),
    ])]);
    results.settings.extended = Some(ExtendedSettings { bodies: vec![0, 1_000_000], idle: vec![500, 5000] });
    results
}

#[test]
fn an_extended_run_has_rows_of_its_own_in_the_table() {
    let results = extended();
    let table = table::render(&results);
    for row in [
        "| | Tidegate | Tidegate log | nginx |",
        "| requests/s, bodies of 0 B | 30,000 | – | 30,000 |",
        "| requests/s, bodies of 1,000,000 B | 900 | – | 900 |",
        "| requests/s, 64 streams of HTTP/2 | 40,000 | – | – |",
        "| requests/s, 64 gRPC calls at a time | 35,000 | – | – |",
        "| CPU s per 10 k requests, bodies of 0 B | 0.32 | – | 0.32 |",
        "| RSS MB of the client's side, 5000 idle connections | 50.2 | – | 50.2 |",
        "| KiB per idle connection of the client's side, 500 of them | 8.0 | – | 8.0 |",
        "| KiB per idle connection of the client's side, 5000 of them | 8.0 | – | 8.0 |",
    ] {
        assert!(table.contains(row), "{row} is not in {table}");
    }
    let json = serde_json::to_string(&results).unwrap();
    assert_eq!(serde_json::from_str::<Results>(&json).unwrap(), results);
}

#[test]
fn a_run_that_is_not_extended_has_none_of_its_rows() {
    let results = pair(vec![BTreeMap::from([(Target::Tidegate, measures(10, Some(0.1)))])]);
    let is_extended = |metric: &Metric| matches!(metric, Metric::Extended(_));
    assert!(!Metric::all(&results.settings).iter().any(is_extended));
    let Metric::Extended(row) = Metric::all(&extended().settings).pop().unwrap() else { panic!() };
    assert_eq!(row, ExtendedMetric::KibPerIdleConnection(5000));
}

#[test]
fn failed_requests_of_an_extended_run_are_named() {
    let mut results = extended();
    let tidegate = results.rounds[0].get_mut(&Target::Tidegate).unwrap();
    let extended = tidegate.extended.as_mut().unwrap();
    extended.grpc.as_mut().unwrap().errors = 2;
    extended.bodies.get_mut(&0).unwrap().errors = 1;
    assert_eq!(
        results.errors(),
        ["Tidegate, round 1, bodies of 0 B: 1 (unknown)", "Tidegate, round 1, gRPC: 2 (unknown)"]
    );
}

#[test]
fn a_target_without_a_proxy_has_no_cpu_and_no_memory() {
    let results = results(vec![BTreeMap::from([(Target::Direct, measures(10, None))])]);
    assert_eq!(Metric::CpuClosed { connections: 64 }.median(&results, Target::Direct), None);
    assert_eq!(Metric::FreshMegabytes.median(&results, Target::Direct), None);
    assert_eq!(Metric::Megabytes(Transfer::Http2Upload).median(&results, Target::Direct), None);
    assert!(table::render(&results).contains("| RSS MB, fresh | – |"));
}

#[test]
fn the_table_marks_a_proxy_that_waited_for_the_load() {
    let round = BTreeMap::from([
        (Target::Direct, measures(90_000, None)),
        (Target::Tidegate, measures(30_000, Some(0.5))),
        (Target::Nginx, measures(12_345, Some(0.99))),
    ]);
    let table = table::render(&results(vec![round]));
    assert!(table.contains("| | direct | Tidegate | nginx |\n|---|---:|---:|---:|\n"), "{table}");
    assert!(table.contains("| requests/s, 64 connections | 90,000 | 30,000 ‡ | 12,345 |\n"), "{table}");
    assert!(table.contains("‡ the proxy used less than 90 % of its core: client, app or"), "{table}");
}

#[test]
fn goals_are_reached_not_reached_or_not_measured() {
    let round = BTreeMap::from([
        (Target::Tidegate, measures(20_000, Some(0.9))),
        (Target::Nginx, measures(10_000, Some(0.6))),
    ]);
    let goals = goals::render(&results(vec![round]));
    assert!(goals.contains("| requests/s at 64 connections | ≥ 1.4 × nginx's | 2.00 | reached |"), "{goals}");
    assert!(
        goals.contains("| CPU per request at 64 connections | ≤ 0.7 × nginx's | 0.75 | **not reached** |"),
        "{goals}"
    );
    assert!(goals.contains("| new mTLS connections/s | ≥ 1 × Envoy's | – | not measured |"), "{goals}");
    assert!(goals.contains("| RSS, fresh | ≤ 10 MB | 9.22 | reached |"), "{goals}");
    assert!(goals.contains("| memory per idle mTLS connection | ≤ 12 KiB | 8.00 | reached |"), "{goals}");
}

#[test]
fn a_pair_has_rows_and_goals_of_its_own() {
    let mut slow = measures(10_000, Some(0.9));
    slow.open.get_mut(&1000).unwrap().latency.p99 = 250.0;
    let round = BTreeMap::from([
        (Target::Tidegate, measures(23_000, Some(0.9))),
        (Target::TidegateTcp, measures(25_000, Some(0.9))),
        (Target::Nginx, measures(10_000, Some(0.9))),
        (Target::Haproxy, slow),
        (Target::EnvoyTcp, measures(5_000, Some(0.9))),
    ]);
    let mut results = pair(vec![round]);
    results.versions = [(Target::Tidegate, "Tidegate 0.1.0"), (Target::TidegateTcp, "Tidegate 0.1.0")]
        .map(|(target, version)| (target, version.to_owned()))
        .into();
    let table = table::render(&results);
    assert!(table.contains("1 round of 1 s. Tidegate 0.1.0.\n"), "one program, named once: {table}");
    assert!(table.contains("| | Tidegate | Tidegate TCP | nginx | HAProxy | Envoy TCP |\n"), "{table}");
    for row in ["| new connections/s |", "| RSS MB of the client's side, fresh |", "| 100 MB upload, MB/s |"]
    {
        assert!(table.contains(row), "{row}: {table}");
    }
    assert!(!table.contains("HTTP/2"), "{table}");
    let goals = goals::render(&results);
    for row in [
        "| requests/s at 64 connections | ≥ 2.2 × nginx's | 2.30 | reached |",
        "| requests/s at 64 connections | ≥ 6 × Envoy's | – | not measured |",
        "| requests/s at 64 connections | ≥ 0.9 × its own for opaque TCP | 0.92 | reached |",
        "| CPU per request at 64 connections | ≤ 0.45 × nginx's | 0.43 | reached |",
        "| p99 at 1000/s | ≤ 1 × the best peer's | 1.20 | **not reached** |",
        "| 100 MB download, opaque TCP | ≥ 1 × Envoy TCP's | 1.00 | reached |",
    ] {
        assert!(goals.contains(row), "{row}: {goals}");
    }
    assert_eq!(serde_json::to_value(&results).unwrap()["settings"]["topology"], "pair");
}

#[test]
fn the_report_of_each_topology_has_files_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    for results in [results(vec![]), pair(vec![])] {
        write(&results, folder.path(), false).unwrap();
    }
    let mut files: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["pair.json", "pair.md", "pair.svg", "results.json", "results.md", "results.svg"]);
}

#[test]
fn failed_requests_are_named_with_target_round_and_load() {
    let mut failing = measures(10, Some(0.1));
    failing.handshakes.errors = 3;
    failing.handshakes.first_error = Some("connection closed".to_owned());
    let results = results(vec![BTreeMap::from([(Target::Envoy, failing)])]);
    assert_eq!(results.errors(), ["Envoy, round 1, handshakes: 3 (connection closed)"]);
    assert!(table::render(&results).contains("**Failed requests:** Envoy, round 1"));
}

#[test]
fn results_survive_the_way_through_json() {
    let results = results(vec![BTreeMap::from([(Target::Haproxy, measures(10, Some(0.1)))])]);
    let json = serde_json::to_string(&results).unwrap();
    assert_eq!(serde_json::from_str::<Results>(&json).unwrap(), results);
}

#[test]
fn the_chart_has_a_bar_for_each_figure_and_the_longest_fills_the_room() {
    let round = BTreeMap::from([
        (Target::Tidegate, measures(20_000, Some(0.9))),
        (Target::Nginx, measures(10_000, Some(0.9))),
    ]);
    let svg = chart::render(&results(vec![round]));
    assert_eq!(svg.matches("<rect").count(), 1 + 8 * 2);
    assert!(svg.contains("width=\"230.0\"") && svg.contains("width=\"115.0\""), "{svg}");
    assert!(svg.ends_with("</svg>\n"));
}

#[test]
fn large_numbers_are_grouped_by_thousands() {
    assert_eq!(number(1_234_567.0, 0), "1,234,567");
    assert_eq!(number(999.96, 1), "1,000.0");
    assert_eq!(number(-12.5, 1), "−12.5");
    assert_eq!(number(0.0, 2), "0.00");
}
