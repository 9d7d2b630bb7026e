use std::collections::BTreeMap;

use tidegate_core::ObjectRef;
use tidegate_core::backend::{Backend, BackendProtocol, BackendRef, Endpoint, Transport};
use tidegate_core::route::filter::{Filter, HeaderEdits};
use tidegate_core::route::matching::PathMatch;
use tidegate_core::route::{
    Action, BackendTarget, DirectResponse, Route, RouteMatch, RouteRule, RouteTable, RoutesName,
    WeightedBackend,
};

use super::super::caller::ClientWorkload;
use super::super::routes::ActiveRoutes;
use super::*;

fn name(number: u16) -> BackendRef {
    BackendRef { object: ObjectRef::new("Service", "a", "b"), port: number }
}

fn backend(addresses: &[&str]) -> Arc<BalancedBackend> {
    let endpoint = |text: &&str| Endpoint::new(text.parse().unwrap(), Transport::Plain);
    let backend = Backend::new(name(80), BackendProtocol::Tcp, addresses.iter().map(endpoint).collect());
    Arc::new(BalancedBackend::new(&backend, &ClientWorkload::default(), None))
}

fn dialled() -> SocketAddr {
    "10.96.0.1:80".parse().unwrap()
}

/// A destination with one rule for these shares, each with an endpoint whose last number is its place plus one.
fn split(change: impl FnOnce(&mut RouteRule), shares: Vec<(u32, BackendTarget)>) -> ResolvedDestination {
    let share = |(weight, target)| WeightedBackend::new(weight, target);
    let mut rule = RouteRule::new(Action::Forward(shares.into_iter().map(share).collect()));
    change(&mut rule);
    let origin = ObjectRef::new("TrafficSplit", "a", "b");
    let route = Route { origin, created: 0, hosts: vec![], rules: vec![rule] };
    let active = Arc::new(ActiveRoutes::new(RouteTable::new(vec![route]).unwrap()));
    let backends =
        active.backends().iter().map(|name| backend(&[&format!("10.0.0.{}:80", name.port)])).collect();
    let name = RoutesName::parse("Service/a/b:80").unwrap();
    ResolvedDestination::routed(dialled(), ResolvedRoutes::new(name, active, backends))
}

fn to(number: u16) -> BackendTarget {
    BackendTarget::Backend(name(number))
}

/// How many of `count` connections go to each endpoint, by the last number of its address; 0: to none.
fn counts(target: &ResolvedDestination, count: usize) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let number = match target.choose_for_connection(None) {
            Ok(choice) => choice.endpoint.address.to_string().as_bytes()[7] - b'0',
            Err(reason) => {
                assert_eq!(reason, NoEndpoint::NoRoute);
                0
            }
        };
        *counts.entry(number).or_default() += 1;
    }
    counts
}

#[test]
fn each_family_of_an_address_leads_to_its_own_endpoints() {
    let backend = backend(&["10.0.0.1:80", "[fd00::1]:80"]);
    for (dialled, endpoint) in [("10.96.0.1:80", "10.0.0.1:80"), ("[fd00:96::1]:80", "[fd00::1]:80")] {
        let target = ResolvedDestination::to(dialled.parse().unwrap(), backend.clone());
        for _ in 0..20 {
            let choice = target.choose_for_connection(None).unwrap();
            assert_eq!(choice.endpoint.address.to_string(), endpoint);
        }
        assert_eq!(target.endpoints().count(), 1);
        assert!(!target.choose_for_connection(None).unwrap().turn(), "the other family's is not tried");
    }
}

#[test]
fn connections_are_split_exactly_and_those_without_weight_get_none() {
    let target = split(|_| {}, vec![(0, to(1)), (90, to(2)), (10, to(3))]);
    assert_eq!(counts(&target, 1000), [(2, 900), (3, 100)].into());
    assert_eq!(counts(&split(|_| {}, vec![(0, to(1)), (0, to(2))]), 10), [(0, 10)].into());
}

#[test]
fn the_share_of_a_reference_that_cannot_be_resolved_is_refused_and_not_given_to_others() {
    let invalid = BackendTarget::Invalid(DirectResponse { status: 500, reason: "gone".into() });
    let target = split(|_| {}, vec![(1, to(1)), (1, invalid)]);
    assert_eq!(counts(&target, 100), [(0, 50), (1, 50)].into());
}

#[test]
fn another_endpoint_is_tried_within_the_drawn_backend_only() {
    let target = split(|_| {}, vec![(1, to(1)), (1, to(2))]);
    for _ in 0..10 {
        assert!(!target.choose_for_connection(None).unwrap().turn());
    }
}

#[test]
fn bytes_that_are_not_parsed_get_only_a_rule_for_every_request_without_filters() {
    let matching = RouteMatch::new(Some(PathMatch::prefix("/a").unwrap()), vec![], vec![], vec![]);
    let some = split(|rule| rule.matches = vec![matching], vec![(1, to(1))]);
    assert_eq!(counts(&some, 3), [(0, 3)].into());
    let edits = HeaderEdits::new(&[("a", "b")], &[], &[]).unwrap();
    let edited = split(|rule| rule.filters = vec![Filter::RequestHeaders(edits)], vec![(1, to(1))]);
    assert_eq!(counts(&edited, 3), [(0, 3)].into());
}

#[test]
fn a_blocked_destination_has_no_endpoints_and_a_reason() {
    let blocked = ResolvedDestination::blocked(dialled(), "no policy".into());
    assert_eq!(blocked.choose_for_connection(None).err(), Some(NoEndpoint::Blocked));
    assert_eq!(blocked.name(), None);
    assert_eq!(blocked.block_reason().map(|reason| &**reason), Some("no policy"));
}
