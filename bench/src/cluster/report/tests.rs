use super::*;
use crate::cluster::results::{
    ClusterSettings, ConnectionEnds, MeshMemory, PolicyChangeFigures, RouteChangeFigures, RouteFigures,
    RouteLoadFigures,
};
use crate::report::Machine;

fn figures(all: &[f64]) -> Figures {
    Figures(all.to_vec())
}

fn creation_of(is_injected: bool, has_probe: bool, call: f64, ready: f64) -> Creation {
    Creation { is_injected, has_probe, call: figures(&[call]), ready: figures(&[ready]) }
}

fn results() -> ClusterResults {
    let small = Population { pods: 4, synthetic: 0 };
    let large = Population { pods: 200, synthetic: 2000 };
    let changes = |change, seconds: &[f64]| PolicyChangeFigures {
        change,
        from_return: figures(seconds),
        from_start: figures(seconds),
        probes: 100,
        stale: 0,
        odd: 0,
    };
    let memory = |controller: f64| MeshMemory {
        controller: controller * 1024.0,
        cert_manager: 20_480.0,
        injector: 20_480.0,
        sidecars: figures(&[9_216.0, 10_240.0, 12_288.0]),
        sidecars_proportional: figures(&[4_096.0]),
    };
    ClusterResults {
        finished: 0,
        seconds: 700,
        machine: Machine { processor: "2 × P".to_owned(), kernel: "Linux 6".to_owned() },
        settings: ClusterSettings {
            version: "0.1.0".to_owned(),
            is_debug: false,
            changes: 3,
            connections: 20,
            creations: 20,
        },
        changes: vec![
            (small, changes(PolicyChange::Address, &[0.02, 0.03, 0.6])),
            (small, changes(PolicyChange::Principal, &[0.05, 0.04, 0.06])),
            (large, changes(PolicyChange::Address, &[0.02])),
        ],
        connections: vec![(
            small,
            ConnectionEnds {
                change: PolicyChange::Address,
                ended: figures(&[0.4, 0.7]),
                still_open: 0,
                late_answers: 0,
            },
        )],
        memory: vec![(small, memory(30.0)), (large, memory(80.0))],
        creation: vec![
            creation_of(false, false, 0.010, 1.0),
            creation_of(true, false, 0.015, 2.5),
            creation_of(false, true, 0.010, 1.0),
            creation_of(true, true, 0.022, 1.9),
        ],
        routes: Vec::new(),
        failures: Vec::new(),
    }
}

/// Changes among 10 and 5,000 routes; the slowest of all takes `slowest` seconds.
fn routes(slowest: f64, wrong: usize) -> Vec<RouteFigures> {
    let changes = |seconds: &[f64], wrong| RouteChangeFigures {
        from_return: figures(seconds),
        from_start: figures(seconds),
        probes: 400,
        wrong,
    };
    let at = |routes, services, mebibytes: f64, cpu| RouteFigures {
        routes,
        services,
        quiet: changes(&[0.004, 0.006, 0.008], 0),
        loaded: changes(&[0.012, 0.016, slowest], wrong),
        policies: vec![(PolicyChange::Address, changes(&[0.005, 0.017, 0.018], wrong))],
        load: RouteLoadFigures { requests: 5000, wrong: 0, seconds: 10.0, p99: 0.0031 },
        sidecar_kib: mebibytes * 1024.0,
        sidecar_proportional_kib: mebibytes * 512.0,
        cpu_of_changes_elsewhere: cpu,
    };
    vec![at(10, 2, 12.0, 0.0005), at(5000, 1000, 32.0, 0.0012)]
}

#[track_caller]
fn assert_line(text: &str, line: &str) {
    assert!(text.lines().any(|given| given == line), "{line}\nis not in\n{text}");
}

#[test]
fn goals_take_the_slower_change_and_the_larger_difference() {
    let text = render(&results());
    assert_line(
        &text,
        "| policy change → effect at 4 pods, p50 | ≤ 0.02 s | 0.05 | **not reached** | 2.04 |",
    );
    assert_line(&text, "| policy change → effect at 4 pods, p99 | ≤ 0.1 s | 0.60 | **not reached** | 2.08 |");
    assert_line(
        &text,
        "| policy change → effect at 200 and 2000 synthetic pods, p50 | ≤ 0.02 s | 0.02 | reached | – |",
    );
    assert_line(&text, "| controller's memory at 4 pods | ≤ 60 MiB | 30.00 | reached | 76.6 |");
    assert_line(&text, "| a sidecar's memory, p50 | ≤ 10 MiB | 10.00 | reached | 60 |");
    assert_line(
        &text,
        "| injection adds to the create call, difference of medians | ≤ 10 ms | 12.00 | **not reached** | 114 |",
    );
    assert_line(
        &text,
        "| injection adds to Ready, difference of medians | ≤ 1 s | 1.50 | **not reached** | 2 |",
    );
}

#[test]
fn changes_among_routes_have_a_table_and_the_slowest_of_quiet_loaded_and_policies_counts() {
    let mut results = results();
    assert!(!render(&results).contains("change among routes"), "no routes were measured");
    results.routes = routes(0.2, 0);
    let text = render(&results);
    for line in [
        "| route or policy change → effect at 10 routes, without and under load, p50 | ≤ 0.02 s | 0.02 | reached | – |",
        "| route or policy change → effect at 5,000 routes, without and under load, p99 | ≤ 0.1 s | 0.20 | **not reached** | – |",
        "| wrong answers while routes and policies change | ≤ 0 | 0.00 | reached | – |",
        "| a sidecar's memory with 5,000 routes in use | ≤ 40 MB | 33.55 | reached | – |",
        "| a sidecar's CPU while a route a second changes elsewhere | ≤ 1 % of a core | 0.12 | reached | – |",
        "| a route, without load | 10 (2) | 0.006 / 0.008 / 0.008 / 0.008 | 0.006 / 0.008 | 0 of 400 |",
        "| a route, under 500 requests/s (p99 3.1 ms) | 5,000 (1,000) | 0.016 / 0.200 / 0.200 / 0.200 | 0.016 / 0.200 | 0 of 400 |",
        "| http source address, 200 ↔ reset, under 500 requests/s (p99 3.1 ms) | 10 (2) | 0.017 / 0.018 / 0.018 / 0.018 | 0.017 / 0.018 | 0 of 400 |",
        "| the load's requests, meanwhile | 10 (2) | – | – | 0 of 5,000 |",
        "| 5,000 routes in use | 32.0 | 16.0 | 0.12 |",
    ] {
        assert_line(&text, line);
    }
}

#[test]
fn one_wrong_answer_misses_the_goal() {
    let mut results = results();
    results.routes = routes(0.02, 1);
    results.routes[0].load.wrong = 2;
    let text = render(&results);
    // At both numbers of routes one by the route and one under the policy, and two of the load.
    assert_line(
        &text,
        "| wrong answers while routes and policies change | ≤ 0 | 6.00 | **not reached** | – |",
    );
    let json = serde_json::to_string(&results).unwrap();
    assert_eq!(serde_json::from_str::<ClusterResults>(&json).unwrap(), results);
}

#[test]
fn open_service_mesh_stands_beside_what_was_measured_at_nearly_as_many_pods() {
    let text = render(&results());
    assert_line(
        &text,
        "| http source address, 200 ↔ reset | 4 | 0.030 / 0.600 / 0.600 (0.020) | 0.030 / 0.600 | 0 / 0 of 100 | \
         (4) 2.04 / 2.08 |",
    );
    assert!(osm::change(PolicyChange::Address, 200).is_some_and(|osm| osm.pods == 192));
    assert!(osm::change(PolicyChange::Address, 100).is_none());
    assert!(osm::change(PolicyChange::Principal, 50).is_none());
}

#[test]
fn what_was_not_measured_is_said_and_counts_as_no_goal_reached() {
    let mut results = results();
    results.creation.pop();
    results.memory.clear();
    results.failures.push("memory, 4: 3 sidecars run,\nand 4 pods are meshed".to_owned());
    let text = render(&results);
    assert_line(&text, "| injection adds to Ready, difference of medians | ≤ 1 s | – | not measured | 2 |");
    assert_line(&text, "| controller's memory | ≤ 60 MiB | – | not measured | – |");
    assert_line(&text, "**Not measured:** memory, 4: 3 sidecars run, and 4 pods are meshed");
}

#[test]
fn programs_without_optimisation_are_marked() {
    let mut results = results();
    assert!(!render(&results).contains("without optimisation"));
    results.settings.is_debug = true;
    assert!(render(&results).contains("without optimisation"));
}

#[test]
fn results_survive_the_way_through_json() {
    let json = serde_json::to_string(&results()).unwrap();
    assert_eq!(serde_json::from_str::<ClusterResults>(&json).unwrap(), results());
}
