use std::time::Duration;

use tidegate_core::ObjectRef;
use tidegate_core::backend::{BackendProtocol, Locality, TopologyHints};

use super::*;

mod naive;

fn address(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 80).into()
}

fn compiled(numbers: &[u8]) -> Backend {
    let endpoint = |number: &u8| Endpoint::new(address(*number), Transport::Plain);
    let name = BackendRef { object: ObjectRef::new("Service", "a", "b"), port: 80 };
    Backend::new(name, BackendProtocol::Tcp, numbers.iter().map(endpoint).collect())
}

fn backend(numbers: &[u8], before: Option<&BalancedBackend>) -> BalancedBackend {
    BalancedBackend::new(&compiled(numbers), &ClientWorkload::default(), before)
}

fn any(_: &Endpoint) -> bool {
    true
}

#[test]
fn connections_spread_over_the_endpoints_by_how_busy_they_are() {
    let backend = backend(&[1, 2, 3, 4], None);
    let _held: Vec<_> = (0..400).map(|_| backend.choose(any).unwrap().hold()).collect();
    for choice in &backend.endpoints {
        assert!((90..=110).contains(&choice.open()), "{}", choice.open());
    }
}

#[test]
fn what_is_not_wanted_is_not_tried_and_what_failed_lately_comes_last() {
    let backend = backend(&[1, 2], None);
    let [first, second] = [address(1), address(2)];
    let chosen = |tried: &[SocketAddr]| {
        backend.choose(|endpoint| !tried.contains(&endpoint.address)).map(|choice| choice.endpoint.address)
    };
    assert_eq!(chosen(&[first]), Some(second));
    assert_eq!(chosen(&[first, second]), None);
    backend.endpoints[0].hold().unreachable();
    for _ in 0..50 {
        assert_eq!(chosen(&[]), Some(second));
    }
    assert_eq!(chosen(&[second]), Some(first));
}

#[test]
fn a_slow_endpoint_gets_fewer_requests_and_a_few_that_are_good_are_found_among_many() {
    let two = backend(&[1, 2], None);
    two.endpoints.iter().for_each(|choice| choice.hold().succeeded());
    let slow = two.endpoints[0].hold();
    let cost = |index: usize| two.endpoints[index].state.cost(Moment::now());
    while cost(0) < 4.0 * cost(1) {
        slow.succeeded();
    }
    drop(slow);
    assert!((0..100).all(|_| two.choose(any).unwrap().endpoint.address == address(2)));

    let numbers: Vec<u8> = (0..200).collect();
    let many = backend(&numbers, None);
    for choice in many.endpoints.iter().filter(|choice| choice.endpoint.address != address(7)) {
        choice.hold().unreachable();
    }
    assert!((0..100).all(|_| many.choose(any).unwrap().endpoint.address == address(7)));
}

#[test]
fn an_endpoint_that_joins_starts_slowly() {
    let before = backend(&[1, 2, 3], None);
    before.endpoints.iter().for_each(|choice| choice.hold().succeeded());
    let now = backend(&[1, 2, 3, 4], Some(&before));
    let first = now.choose(|endpoint| endpoint.address == address(4)).unwrap().hold();
    first.succeeded();
    drop(first);
    let held: Vec<_> = (0..300).map(|_| now.choose(any).unwrap().hold()).collect();
    let [.., old, new] = now.endpoints.as_slice() else { panic!() };
    assert!(new.open() * 3 < old.open(), "{} of {}", new.open(), held.len());
}

/// Endpoints with these numbers, each on a node and in a zone of its own: `node-1` in `zone-1`.
fn hinted(numbers: &[u8], node: &str, before: Option<&BalancedBackend>) -> BalancedBackend {
    let hints = |number: &u8| TopologyHints {
        nodes: vec![format!("node-{number}").into()],
        zones: vec![format!("zone-{number}").into()],
    };
    let hints = numbers.iter().map(|number| (address(*number), hints(number))).collect();
    placed(numbers, Topology::Hints(hints), node, before)
}

fn local(numbers: &[u8], node: &str, before: Option<&BalancedBackend>) -> BalancedBackend {
    let node_of = |number: &u8| (address(*number), format!("node-{number}").into());
    placed(numbers, Topology::SameNode(numbers.iter().map(node_of).collect()), node, before)
}

fn placed(
    numbers: &[u8],
    topology: Topology,
    node: &str,
    before: Option<&BalancedBackend>,
) -> BalancedBackend {
    BalancedBackend::new(&Backend { topology, ..compiled(numbers) }, &on(node), before)
}

fn on(node: &str) -> ClientWorkload {
    let locality = Locality { node: Some(node.into()), zone: None };
    ClientWorkload { locality: Some(locality), ..ClientWorkload::default() }
}

fn chosen(backend: &BalancedBackend) -> Option<SocketAddr> {
    backend.choose(any).map(|choice| choice.endpoint.address)
}

#[test]
fn a_local_service_leads_to_the_endpoints_on_this_node_and_never_to_others() {
    let backend = local(&[1, 2, 3], "node-2", None);
    assert!((0..50).all(|_| chosen(&backend) == Some(address(2))));
    backend.endpoints[0].hold().unreachable();
    assert!((0..50).all(|_| chosen(&backend) == Some(address(2))), "no fallback");
    assert_eq!(backend.choose(|endpoint| endpoint.address != address(2)).map(BalancedEndpoint::open), None);
    assert_eq!(chosen(&local(&[1, 3], "node-2", None)), None);
    let view = backend.topology(true).unwrap();
    assert_eq!((view.rule, view.unused), ("internalTrafficPolicy: Local", vec![address(1), address(3)]));
    assert_eq!(backend.topology(false).unwrap().unused, []);
}

#[test]
fn endpoints_whose_hints_are_for_others_are_used_only_while_no_preferred_one_can_be_reached() {
    let backend = hinted(&[1, 2, 3], "node-2", None);
    assert!((0..50).all(|_| chosen(&backend) == Some(address(2))));
    assert_eq!(backend.topology(true).unwrap().fallback, [address(1), address(3)]);
    backend.endpoints[0].hold().unreachable();
    assert!((0..50).all(|_| chosen(&backend).is_some_and(|chosen| chosen != address(2))));
    backend.endpoints[0].hold().succeeded();
    assert_eq!(chosen(&backend), Some(address(2)));
    let without_hints = hinted(&[1, 3], "node-2", None);
    let seen: HashSet<_> = (0..50).filter_map(|_| chosen(&without_hints)).collect();
    assert_eq!(seen.len(), 2, "no hint is for this node: all");
}

#[test]
fn a_workload_whose_place_becomes_known_is_balanced_again_and_endpoints_keep_their_state() {
    let nowhere = BalancedBackend::new(
        &Backend {
            topology: Topology::SameNode([(address(2), "node-2".into())].into()),
            ..compiled(&[1, 2])
        },
        &ClientWorkload::default(),
        None,
    );
    assert_eq!(chosen(&nowhere), None);
    let here = nowhere.moved(&on("node-2")).unwrap();
    assert_eq!(chosen(&here), Some(address(2)));
    let hinted = hinted(&[1, 2], "node-1", None);
    let held = hinted.endpoints[1].hold();
    let moved = hinted.moved(&on("node-2")).unwrap();
    assert_eq!((moved.endpoints[0].endpoint.address, moved.endpoints[0].open()), (address(2), 1));
    drop(held);
    assert!(backend(&[1, 2], None).moved(&on("node-1")).is_none(), "it makes no difference");
}

fn sticky(numbers: &[u8], workload: &str, before: Option<&BalancedBackend>) -> BalancedBackend {
    let caller = ClientWorkload { workload: workload.into(), ..ClientWorkload::default() };
    let affinity = Some(Duration::from_secs(10_800));
    BalancedBackend::new(&Backend { affinity, ..compiled(numbers) }, &caller, before)
}

#[test]
fn a_client_keeps_its_endpoint_until_it_is_gone_or_fails_however_many_others_join() {
    let numbers: Vec<u8> = (1..=20).collect();
    let workloads = (0..40).map(|number| format!("shop/client-{number}"));
    let mut first = HashSet::new();
    for workload in workloads {
        let backend = sticky(&numbers[..5], &workload, None);
        let kept = chosen(&backend).unwrap();
        first.insert(kept);
        let _busy: Vec<_> = backend.endpoints.iter().map(BalancedEndpoint::hold).collect();
        assert!((0..20).all(|_| chosen(&backend) == Some(kept)));
        assert_ne!(backend.choose(|endpoint| endpoint.address != kept).unwrap().endpoint.address, kept);
        assert_eq!(chosen(&backend), Some(kept), "another was tried for one request only");

        let more = sticky(&numbers, &workload, Some(&backend));
        assert!((0..20).all(|_| chosen(&more) == Some(kept)), "fifteen others have joined");
        more.endpoints.iter().find(|choice| choice.endpoint.address == kept).unwrap().hold().unreachable();
        let next = chosen(&more).unwrap();
        assert_ne!(next, kept);
        more.endpoints.iter().find(|choice| choice.endpoint.address == kept).unwrap().hold().succeeded();
        assert!((0..20).all(|_| chosen(&more) == Some(next)), "it does not go back");

        let left: Vec<u8> = numbers.iter().copied().filter(|number| address(*number) != next).collect();
        let less = sticky(&left, &workload, Some(&more));
        let last = chosen(&less).unwrap();
        assert!(last != next && (0..20).all(|_| chosen(&less) == Some(last)));
    }
    assert_eq!(first.len(), 5, "clients spread");
}

#[test]
fn a_client_keeps_an_endpoint_of_each_family() {
    let caller = ClientWorkload { workload: "shop/client".into(), ..ClientWorkload::default() };
    let mut backend = Backend { affinity: Some(Duration::from_secs(60)), ..compiled(&[1, 2, 3]) };
    let ipv6 = ["[fd00::1]:80", "[fd00::2]:80", "[fd00::3]:80"];
    backend.endpoints.extend(ipv6.map(|text| Endpoint::new(text.parse().unwrap(), Transport::Plain)));
    let backend = BalancedBackend::new(&backend, &caller, None);
    let chosen = |is_ipv4| {
        let chosen = backend.choose(|endpoint| endpoint.address.is_ipv4() == is_ipv4);
        chosen.unwrap().endpoint.address
    };
    let kept = [chosen(true), chosen(false)];
    assert!((0..20).all(|_| [chosen(true), chosen(false)] == kept));
}

#[test]
fn a_backend_without_endpoints_has_none_to_choose() {
    assert!(backend(&[], None).choose(any).is_none());
}

#[test]
fn counts_outlive_a_change_of_the_endpoints() {
    let before = backend(&[1, 2], None);
    let held = before.endpoints[1].hold();
    let now = backend(&[2, 3], Some(&before));
    assert_eq!((now.endpoints[0].open(), now.endpoints[1].open()), (1, 0));
    drop(held);
    assert_eq!(now.endpoints[0].open(), 0);
}

#[test]
fn a_backend_of_the_original_destination_has_the_address_that_was_dialled() {
    let at = |port, dialled: &str| {
        let original_destination = Some(OriginalDestination { port });
        let backend = Backend { original_destination, ..compiled(&[]) };
        let backend = Arc::new(BalancedBackend::new(&backend, &ClientWorkload::default(), None));
        let at = backend.at(dialled.parse().unwrap());
        assert_eq!((&at.name, at.protocol), (&backend.name, backend.protocol));
        chosen(&at).unwrap().to_string()
    };
    assert_eq!(at(None, "192.0.2.1:3128"), "192.0.2.1:3128");
    assert_eq!(at(Some(8443), "[fd00::1]:443"), "[fd00::1]:8443");
}

#[test]
fn endpoints_get_the_shares_of_their_weights_whatever_their_load_and_the_others_while_one_is_ejected() {
    let mut compiled = compiled(&[1, 2, 3]);
    compiled.weights = [(address(1), 6), (address(2), 3)].into();
    let backend = BalancedBackend::new(&compiled, &ClientWorkload::default(), None);
    let _busy: Vec<_> = (0..50).map(|_| backend.endpoints[0].hold()).collect();
    let shares = |count: usize| {
        let chosen: Vec<_> = (0..count).map(|_| backend.choose(any).unwrap().endpoint.address).collect();
        [1, 2, 3].map(|number| chosen.iter().filter(|chosen| **chosen == address(number)).count())
    };
    assert_eq!(shares(100), [60, 30, 10]);
    assert_eq!(
        backend.choose(|endpoint| endpoint.address == address(3)).unwrap().endpoint.address,
        address(3)
    );
    backend.endpoints[0].hold().unreachable();
    let [none, most, least] = shares(400);
    assert!(none == 0 && most > 2 * least && least > 0, "{most} and {least}");
}
