use proptest::prelude::*;

use super::*;
use crate::backend::Transport;

const PLACES: [&str; 3] = ["a", "b", "c"];

fn endpoint(number: usize) -> Endpoint {
    let port = 80 + u16::try_from(number).unwrap();
    let ip = if number.is_multiple_of(2) { "10.0.0.1" } else { "fd00::1" };
    Endpoint::new(SocketAddr::new(ip.parse().unwrap(), port), Transport::Plain)
}

fn locality(node: &str, zone: &str) -> Locality {
    let place = |place: &str| (!place.is_empty()).then(|| place.into());
    Locality { node: place(node), zone: place(zone) }
}

/// The numbers of the preferred endpoints, and of the others.
fn numbers(topology: &Topology, count: usize, client: Option<&Locality>) -> (Vec<usize>, Vec<usize>) {
    let endpoints: Vec<_> = (0..count).map(endpoint).collect();
    let usable = topology.usable(&endpoints, client);
    let numbers = |list: Vec<&Endpoint>| {
        list.into_iter().map(|endpoint| usize::from(endpoint.address.port() - 80)).collect()
    };
    (numbers(usable.preferred), numbers(usable.others))
}

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

/// Of the endpoints in this order: nodes, then zones.
fn hints(of: &[(&[&str], &[&str])]) -> Topology {
    let hints = of.iter().enumerate().map(|(number, (nodes, zones))| {
        (endpoint(number).address, TopologyHints { nodes: names(nodes), zones: names(zones) })
    });
    Topology::Hints(hints.collect())
}

#[test]
fn without_a_rule_every_endpoint_is_used() {
    for client in [None, Some(&Locality::default()), Some(&locality("a", "a"))] {
        assert_eq!(numbers(&Topology::Any, 3, client), (vec![0, 1, 2], vec![]));
    }
    assert_eq!(Topology::Any.rule(), None);
}

#[test]
fn a_local_service_is_its_endpoints_on_the_client_s_node_and_nothing_else() {
    let nodes = [(0, "a"), (1, "b"), (2, "a")].map(|(number, node)| (endpoint(number).address, node.into()));
    let topology = Topology::SameNode(nodes.into());
    let used = |client: Option<Locality>| numbers(&topology, 4, client.as_ref());
    assert_eq!(used(Some(locality("a", ""))), (vec![0, 2], vec![]));
    assert_eq!(used(Some(locality("c", ""))), (vec![], vec![]), "none on its node: refused, no fallback");
    assert_eq!(used(None), (vec![], vec![]), "until the client's node is known");
    assert_eq!(used(Some(locality("", ""))), (vec![3], vec![]), "without nodes, all are in one place");
}

#[test]
fn hints_for_nodes_come_before_those_for_zones_and_others_are_left_for_when_none_can_be_reached() {
    let both = hints(&[(&["a"], &["x"]), (&["a"], &["x"]), (&["b"], &["x"]), (&["b"], &["y"])]);
    assert_eq!(numbers(&both, 4, Some(&locality("a", "x"))), (vec![0, 1], vec![2, 3]));
    // No endpoint for this node: those of its zone, each family by itself.
    assert_eq!(numbers(&both, 4, Some(&locality("c", "x"))), (vec![0, 1, 2], vec![3]));
    assert_eq!(numbers(&both, 4, Some(&locality("c", "y"))), (vec![0, 2, 3], vec![1]));
    assert_eq!(numbers(&both, 4, Some(&locality("c", "z"))), (vec![0, 1, 2, 3], vec![]));
    assert_eq!(numbers(&both, 4, Some(&locality("c", ""))), (vec![0, 1, 2, 3], vec![]));
    assert_eq!(numbers(&both, 4, None), (vec![0, 1, 2, 3], vec![]));
}

#[test]
fn hints_that_an_endpoint_of_the_family_lacks_decide_nothing() {
    let lacking = hints(&[(&[], &["x"]), (&[], &["x"]), (&[], &["y"]), (&[], &[])]);
    assert_eq!(numbers(&lacking, 4, Some(&locality("a", "x"))), (vec![0, 1, 3], vec![2]));
    let one_more = numbers(&lacking, 5, Some(&locality("a", "x")));
    assert_eq!(one_more, (vec![0, 1, 2, 3, 4], vec![]), "the fifth has none at all");
}

/// kube-proxy's `topologyModeFromHints` and `availableForTopology`, for ready endpoints of one family.
fn naive(endpoints: &[&TopologyHints], node: &str, zone: &str) -> Vec<bool> {
    let has = |places: &[Arc<str>], place: &str| places.iter().any(|name| **name == *place);
    let (mut for_node, mut all_nodes, mut for_zone, mut all_zones) = (false, true, false, true);
    for endpoint in endpoints {
        if endpoint.nodes.is_empty() {
            all_nodes = false;
        } else if has(&endpoint.nodes, node) {
            for_node = true;
        }
        if endpoint.zones.is_empty() {
            all_zones = false;
        } else if has(&endpoint.zones, zone) {
            for_zone = true;
        }
    }
    let mode = match () {
        () if all_nodes && for_node => "PreferSameNode",
        () if all_zones && for_zone => "PreferSameZone",
        () => "",
    };
    let is_available = |endpoint: &&TopologyHints| match mode {
        "PreferSameNode" => has(&endpoint.nodes, node),
        "PreferSameZone" => has(&endpoint.zones, zone),
        _ => true,
    };
    endpoints.iter().map(is_available).collect()
}

fn some_places() -> impl Strategy<Value = Vec<Arc<str>>> {
    let place = prop::sample::select(PLACES.to_vec()).prop_map(Arc::from);
    prop::collection::vec(place, 0..3)
}

proptest! {
    #[test]
    fn hints_prefer_what_kube_proxy_uses(
        hints in prop::collection::vec((some_places(), some_places()), 0..8),
        node in prop::sample::select(PLACES.to_vec()),
        zone in prop::sample::select(vec!["", "a", "b", "c"]),
    ) {
        let hints: Vec<_> =
            hints.into_iter().map(|(nodes, zones)| TopologyHints { nodes, zones }).collect();
        let by_address = hints.iter().cloned().enumerate().map(|(i, hints)| (endpoint(i).address, hints));
        let (preferred, others) =
            numbers(&Topology::Hints(by_address.collect()), hints.len(), Some(&locality(node, zone)));
        for family in [0, 1] {
            let of_family: Vec<_> = (0..hints.len()).filter(|number| number % 2 == family).collect();
            let listed: Vec<_> = of_family.iter().map(|number| &hints[*number]).collect();
            for (number, is_used) in of_family.into_iter().zip(naive(&listed, node, zone)) {
                prop_assert_eq!(preferred.contains(&number), is_used);
                prop_assert_eq!(others.contains(&number), !is_used);
            }
        }
    }
}
