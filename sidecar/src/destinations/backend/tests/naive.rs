//! The choice of an endpoint against its rules, over random sequences of requests and their results.

use std::collections::BTreeSet;

use proptest::arbitrary::any as anything;
use proptest::prelude::{Strategy, TestCaseError, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;

const ENDPOINTS: u8 = 6;

#[derive(Clone, Debug)]
enum Event {
    /// A request begins that does not go to these.
    Begin(BTreeSet<u8>),
    /// One that is open ends like this.
    End(usize, RequestEnd),
    /// The backend gets these endpoints, of which those that were there keep their state.
    Change(BTreeSet<u8>),
}

#[derive(Clone, Copy, Debug)]
enum RequestEnd {
    Succeeded,
    Unreachable,
    Dropped,
}

fn event() -> impl Strategy<Value = Event> {
    let some = || prop::collection::btree_set(1..=ENDPOINTS, 0..usize::from(ENDPOINTS));
    let end = prop::sample::select(vec![RequestEnd::Succeeded, RequestEnd::Unreachable, RequestEnd::Dropped]);
    prop_oneof![
        6 => some().prop_map(Event::Begin),
        4 => (anything::<usize>(), end).prop_map(|(place, end)| Event::End(place, end)),
        1 => some().prop_map(Event::Change),
    ]
}

/// A Service whose hints prefer some of its endpoints, if `hints` is set; the client is on the node of the first.
fn made(numbers: &BTreeSet<u8>, hints: bool, before: Option<&BalancedBackend>) -> BalancedBackend {
    let numbers: Vec<u8> = numbers.iter().copied().collect();
    if hints { hinted(&numbers, "node-1", before) } else { backend(&numbers, before) }
}

/// "The preferred ones first; one that fails comes after all others; nothing that is not wanted."
fn check(backend: &BalancedBackend, tried: &BTreeSet<u8>) -> Result<Option<SocketAddr>, TestCaseError> {
    let is_tried = |address: SocketAddr| tried.iter().any(|number| self::address(*number) == address);
    let good = |now| {
        let good =
            |choice: &&BalancedEndpoint| !is_tried(choice.endpoint.address) && !choice.state.is_ejected(now);
        backend
            .tiers()
            .map(|tier| tier.iter().filter(good).map(|choice| choice.endpoint.address).collect::<Vec<_>>())
    };
    let before = good(Moment::now());
    let chosen = backend.choose(|endpoint| !is_tried(endpoint.address)).map(|choice| choice.endpoint.address);
    // An ejection may end meanwhile.
    if before == good(Moment::now()) {
        let [preferred, others] = before;
        let left: Vec<_> = backend
            .endpoints
            .iter()
            .map(|choice| choice.endpoint.address)
            .filter(|address| !is_tried(*address))
            .collect();
        let allowed = [preferred, others, left].into_iter().find(|tier| !tier.is_empty());
        let is_allowed = match (&allowed, chosen) {
            (Some(tier), Some(chosen)) => tier.contains(&chosen),
            (None, None) => true,
            _ => false,
        };
        prop_assert!(is_allowed, "{chosen:?} of {allowed:?}");
    }
    Ok(chosen)
}

proptest! {
    #[test]
    fn an_endpoint_is_chosen_as_the_rules_say_and_what_is_open_is_counted(
        hints in anything::<bool>(),
        first in prop::collection::btree_set(1..=ENDPOINTS, 0..usize::from(ENDPOINTS)),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut backend = made(&first, hints, None);
        let mut open: Vec<(SocketAddr, LoadSlot)> = Vec::new();
        for event in events {
            match event {
                Event::Begin(tried) => {
                    if let Some(address) = check(&backend, &tried)? {
                        let choice = backend.endpoints.iter().find(|choice| choice.endpoint.address == address).unwrap();
                        open.push((address, choice.hold()));
                    }
                }
                Event::End(place, end) if !open.is_empty() => {
                    let (_, slot) = open.swap_remove(place % open.len());
                    match end {
                        RequestEnd::Succeeded => slot.succeeded(),
                        RequestEnd::Unreachable => slot.unreachable(),
                        RequestEnd::Dropped => {}
                    }
                }
                Event::End(..) => {}
                Event::Change(numbers) => {
                    // One that leaves and comes back is a new one.
                    open.retain(|(address, _)| numbers.iter().any(|number| self::address(*number) == *address));
                    backend = made(&numbers, hints, Some(&backend));
                }
            }
            for choice in &backend.endpoints {
                let expected = open.iter().filter(|(address, _)| *address == choice.endpoint.address).count();
                prop_assert_eq!(choice.open(), expected, "{}", choice.endpoint.address);
            }
        }
    }

    #[test]
    fn of_two_equal_endpoints_the_one_with_fewer_requests_gets_the_next(ends in prop::collection::vec(anything::<prop::sample::Index>(), 0..60)) {
        let backend = backend(&[1, 2], None);
        let mut open = Vec::new();
        for end in ends {
            let counts = [0, 1].map(|place: usize| backend.endpoints[place].open());
            let chosen = backend.choose(any).unwrap();
            prop_assert_eq!(chosen.open(), counts.into_iter().min().unwrap());
            open.push(chosen.hold());
            if end.index(3) == 0 {
                open.swap_remove(end.index(open.len()));
            }
        }
    }
}
