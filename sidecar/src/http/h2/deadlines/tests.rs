use super::*;
use crate::lifeline::{Cause, Phase, Registry};

fn expired_after(setup: impl FnOnce(&Rc<Deadlines>) -> Option<InFlight>, time: Duration) -> Phase {
    let registry = Registry::new();
    let line = registry.add(Rc::new(()));
    let limits = Limits::default();
    let deadlines =
        Rc::new(Deadlines::new(line.clone(), &limits, Rc::new(Windows::new(&limits, Rc::default()))));
    let _in_flight = setup(&deadlines);
    registry.expire(Instant::now() + time);
    line.phase()
}

#[test]
fn a_client_that_never_greets_is_due_and_one_that_did_may_idle() {
    let limits = Limits::default();
    let silent = expired_after(|_| None, limits.headers);
    assert_eq!(silent, Phase::Closed(Cause::Deadline(Wait::Headers)));
    let greet = |deadlines: &Rc<Deadlines>| {
        deadlines.received(&[0; 33]).unwrap();
        None
    };
    assert_eq!(expired_after(greet, limits.headers), Phase::Open);
    assert_eq!(expired_after(greet, limits.idle), Phase::Closed(Cause::Deadline(Wait::Idle)));
}

#[test]
fn a_head_that_does_not_end_is_due_whatever_else_is_in_flight() {
    let limits = Limits::default();
    let unfinished = |deadlines: &Rc<Deadlines>| {
        let stream = deadlines.begin();
        deadlines.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        deadlines.received(&[0, 0, 1, 0x1, 0, 0, 0, 0, 3, 0x82]).unwrap();
        Some(stream)
    };
    assert_eq!(expired_after(unfinished, limits.headers), Phase::Closed(Cause::Deadline(Wait::Headers)));
    let finished = |deadlines: &Rc<Deadlines>| {
        let stream = unfinished(deadlines);
        deadlines.received(&[0, 0, 0, 0x9, 0x4, 0, 0, 0, 3]).unwrap();
        stream
    };
    assert_eq!(expired_after(finished, limits.headers), Phase::Open);
}

#[test]
fn a_stream_in_flight_may_take_its_time_unless_the_client_stops_reading() {
    let limits = Limits::default();
    let begin = |deadlines: &Rc<Deadlines>| Some(deadlines.begin());
    assert_eq!(expired_after(begin, limits.idle * 2), Phase::Open);
    let blocked = |deadlines: &Rc<Deadlines>| {
        let stream = deadlines.begin();
        deadlines.set_blocked(true);
        Some(stream)
    };
    assert_eq!(expired_after(blocked, limits.body), Phase::Closed(Cause::Deadline(Wait::Body)));
}
