use std::future::pending;

use super::*;

#[tokio::test]
async fn a_deadline_ends_the_wait_and_names_it() {
    let registry = Registry::new();
    let line = registry.add(Rc::new(()));
    line.within(Duration::from_secs(5), Wait::Headers);
    registry.expire(Instant::now() + Duration::from_secs(4));
    assert_eq!(line.phase(), Phase::Open);
    registry.expire(Instant::now() + Duration::from_secs(6));
    assert_eq!(line.guard(pending::<()>()).await, Err(Ended(Cause::Deadline(Wait::Headers))));
}

#[tokio::test]
async fn a_step_towards_an_upstream_that_takes_too_long_ends_and_the_connection_does_not() {
    let registry = Registry::new();
    let line = registry.add(Rc::new(()));
    let (outcome, ()) = tokio::join!(line.limit(Duration::from_secs(5), pending::<()>()), async {
        registry.expire(Instant::now() + Duration::from_secs(6));
    });
    assert_eq!((outcome, line.phase()), (Ok(None), Phase::Open));
    registry.expire(Instant::now() + Duration::from_secs(60));
    assert_eq!(line.phase(), Phase::Open);
    assert_eq!(line.limit(Duration::from_secs(60), async { 1 }).await, Ok(Some(1)));
    line.close(Cause::Draining);
    assert_eq!(line.limit(Duration::from_secs(60), pending::<()>()).await, Err(Ended(Cause::Draining)));
}

#[tokio::test]
async fn a_connection_is_polled_once_on_the_tick_after_the_time_that_it_asked_for() {
    let registry = Registry::new();
    let line = registry.add(Rc::new(()));
    let polls = Rc::new(Cell::new(0));
    let tasks = tokio::task::LocalSet::new();
    let (waiting, counted) = (line.clone(), polls.clone());
    tasks.spawn_local(async move {
        let wait = poll_fn(|_| {
            counted.set(counted.get() + 1);
            Poll::<()>::Pending
        });
        waiting.guard(wait).await
    });
    let looks = async {
        let start = Instant::now();
        line.look_after(Duration::from_secs(1));
        let mut counts = Vec::new();
        for seconds in [0, 2, 2, 9] {
            tokio::task::yield_now().await;
            registry.expire(start + Duration::from_secs(seconds));
            tokio::task::yield_now().await;
            counts.push(polls.get());
        }
        counts
    };
    assert_eq!(tasks.run_until(looks).await, [1, 2, 2, 2]);
    assert_eq!(line.phase(), Phase::Open);
}

#[tokio::test]
async fn finishing_ends_what_is_idle_at_once_and_what_is_in_flight_after_its_grace() {
    let registry = Registry::new();
    let line = registry.add(Rc::new(()));
    let (idle, ()) = tokio::join!(line.guard_idle(pending::<()>()), async {
        line.finish(Cause::Draining, Duration::from_secs(1));
    });
    assert_eq!(idle, Err(Ended(Cause::Draining)));
    let (busy, ()) = tokio::join!(line.guard(pending::<()>()), async {
        tokio::task::yield_now().await;
        registry.expire(Instant::now() + Duration::from_secs(2));
    });
    assert_eq!(busy, Err(Ended(Cause::Draining)));
}

#[tokio::test]
async fn leaving_lets_idle_connections_wait_and_notifies_protocols_with_a_goodbye_at_once() {
    let registry = Registry::new();
    let line = registry.add(Rc::new(()));
    let leave =
        async { line.close_gracefully(Cause::Draining, Duration::from_secs(1), Duration::from_secs(9)) };
    let (polite, ()) = tokio::join!(line.guard_open(pending::<()>()), leave);
    assert_eq!(polite, Err(Ended(Cause::Draining)));
    assert!(line.is_finishing());
    registry.expire(Instant::now());
    assert_eq!(line.phase(), Phase::Leaving(Cause::Draining));
    assert_eq!(line.guard_idle(async { 7 }).await, Ok(7));
    let (idle, ()) = tokio::join!(line.guard_idle(pending::<()>()), async {
        registry.expire(Instant::now() + Duration::from_secs(2));
    });
    assert_eq!(idle, Err(Ended(Cause::Draining)));
    let (busy, ()) = tokio::join!(line.guard(pending::<()>()), async {
        registry.expire(Instant::now() + Duration::from_secs(8));
        tokio::task::yield_now().await;
        assert_eq!(line.phase(), Phase::Finishing(Cause::Draining));
        registry.expire(Instant::now() + Duration::from_secs(10));
    });
    assert_eq!(busy, Err(Ended(Cause::Draining)));
}

#[test]
fn a_refusal_ends_a_leaving_connection_sooner_and_nothing_makes_it_later() {
    let line = Lifeline::new();
    line.close_gracefully(Cause::CertificateExpired, Duration::from_secs(5), Duration::from_secs(10));
    line.close_gracefully(Cause::Draining, Duration::from_secs(50), Duration::from_secs(60));
    assert_eq!(line.phase(), Phase::Leaving(Cause::CertificateExpired));
    let left = |cell: &Cell<Option<Instant>>| cell.get().unwrap().duration_since(Instant::now());
    assert!(left(&line.state.leave_by) <= Duration::from_secs(5));
    assert!(left(&line.state.finish_by) <= Duration::from_secs(10));
    line.finish(Cause::PolicyChanged, Duration::from_millis(500));
    assert_eq!(line.phase(), Phase::Finishing(Cause::PolicyChanged));
    line.finish(Cause::Draining, Duration::from_secs(60));
    assert_eq!(line.phase(), Phase::Finishing(Cause::PolicyChanged));
    assert!(left(&line.state.finish_by) <= Duration::from_millis(500));
}

#[tokio::test]
async fn what_is_done_is_done_even_when_the_connection_is_to_end() {
    let line = Lifeline::new();
    line.close(Cause::PolicyChanged);
    assert_eq!(line.guard(async { 7 }).await, Ok(7));
}

#[test]
fn a_dropped_connection_leaves_the_registry() {
    let registry = Registry::new();
    drop(registry.add(Rc::new(())));
    registry.expire(Instant::now());
    assert!(registry.is_empty());
}
