use super::*;

fn span(p99: u64) -> TimeSpan {
    TimeSpan { requests: 100, failed: 0, p99: Duration::from_millis(p99) }
}

fn finding() -> AttackFinding {
    let cost = Spent { memory: 0, processor: Duration::ZERO, log: 0 };
    let sent = AttackSent { bytes: 1_000_000, connections: 100, streams: 0, requests: 100 };
    AttackFinding { attack: "", idle: span(1), idle_log: 0, busy: span(20), during: span(30), cost, sent }
}

#[test]
fn an_attack_is_judged_by_what_was_lost_late_and_taken() {
    assert_eq!(finding().faults(), [""; 0]);
    let with = |change: fn(&mut AttackFinding)| {
        let mut finding = finding();
        change(&mut finding);
        finding.faults()
    };
    assert_eq!(with(|finding| finding.during.failed = 1), ["lost"]);
    assert_eq!(with(|finding| finding.during.p99 = Duration::from_millis(41)), ["late"]);
    assert_eq!(with(|finding| finding.cost.log = 1_500_000), ["log"]);
    // Of the healthy client's requests, as before.
    let with_access_log = with(|finding| {
        finding.idle_log = 500_000;
        finding.cost.log = 1_500_000;
    });
    assert_eq!(with_access_log, [""; 0]);
    // 10 MB for a megabyte, 1.6 MB for connections, and noise.
    assert_eq!(with(|finding| finding.cost.memory = 15_000_000), [""; 0]);
    assert_eq!(with(|finding| finding.cost.memory = 16_000_000), ["memory"]);
    // 500 streams allow two megabytes more.
    let with_streams = with(|finding| {
        finding.cost.memory = 16_500_000;
        finding.sent.streams = 500;
    });
    assert_eq!(with_streams, [""; 0]);
}

#[test]
fn a_percentile_below_two_turns_of_the_scheduler_is_not_late() {
    let quick = AttackFinding { busy: span(1), during: span(9), ..finding() };
    assert_eq!(quick.faults(), [""; 0]);
}
