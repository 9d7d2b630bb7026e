use tidegate_core::ObjectRef;
use tidegate_core::backend::{BackendProtocol, BackendRef, Endpoint, Topology, Transport};
use tidegate_core::destination::DestinationTarget;
use tidegate_core::policy::AppProtocol;
use tidegate_core::route::{Action, BackendTarget, Route, RouteRule, RoutesName, WeightedBackend};

use super::*;

fn address(number: u16) -> SocketAddr {
    ([10, 0, (number >> 8) as u8, number as u8], 80).into()
}

fn name(number: u16) -> ResourceName {
    ResourceName::Destination(address(number).into())
}

fn cart(port: u16) -> BackendRef {
    BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port }
}

fn backend(port: u16, endpoints: &[u16]) -> Resource {
    let endpoint = |number: &u16| Endpoint::new(address(*number), Transport::Plain);
    let endpoints = endpoints.iter().map(endpoint).collect();
    Resource::Backend(Backend::new(cart(port), BackendProtocol::Tcp, endpoints))
}

fn routes_name() -> RoutesName {
    RoutesName::parse("Service/shop/cart:80").unwrap()
}

fn routes(backends: &[(u32, u16)]) -> Resource {
    let backend =
        |(weight, port): &(u32, u16)| WeightedBackend::new(*weight, BackendTarget::Backend(cart(*port)));
    let rule = RouteRule::new(Action::Forward(backends.iter().map(backend).collect()));
    let origin = ObjectRef::new("TrafficSplit", "shop", "cart");
    let route = Route { origin, created: 0, hosts: vec![], rules: vec![rule] };
    Resource::Routes(RouteTable::new(vec![route]).unwrap())
}

fn routed() -> Resource {
    let target = DestinationTarget::Routes(routes_name());
    Resource::Destination(Destination::Routed { protocol: AppProtocol::Tcp, target })
}

fn passthrough() -> Resource {
    Resource::Destination(Destination::Passthrough)
}

fn to_cart(port: u16) -> Resource {
    Resource::Destination(Destination::opaque(cart(port)))
}

/// A response with these resources.
fn respond(destinations: &Destinations, resources: Vec<(ResourceName, Resource)>) {
    for (name, resource) in resources {
        destinations.set(&name, "v1".into(), resource, 100).unwrap();
    }
    destinations.settle(true);
}

fn known(destinations: &Destinations, number: u16) -> Option<Arc<ResolvedDestination>> {
    match destinations.look_up(&address(number).into()) {
        Lookup::Known(target) => Some(target),
        _ => None,
    }
}

fn is_known(destinations: &Destinations, number: u16) -> bool {
    known(destinations, number).is_some()
}

fn endpoints(destinations: &Destinations, number: u16) -> Vec<SocketAddr> {
    let target = known(destinations, number).expect("it is known");
    target.endpoints().map(|choice| choice.endpoint.address).collect()
}

fn subscriptions(wanted: &[ResourceName], unwanted: &[ResourceName]) -> SubscriptionChanges {
    SubscriptionChanges { wanted: wanted.to_vec(), unwanted: unwanted.to_vec() }
}

#[test]
fn an_address_is_asked_for_once_and_known_from_the_answer_on() {
    let destinations = Destinations::default();
    assert!(destinations.connect().is_empty());
    let Lookup::Asked(mut answer) = destinations.look_up(&address(1).into()) else { panic!() };
    assert!(matches!(destinations.look_up(&address(1).into()), Lookup::Asked(_)));
    assert_eq!(destinations.take_subscriptions(), subscriptions(&[name(1)], &[]));
    assert_eq!(destinations.take_subscriptions(), SubscriptionChanges::default());
    respond(&destinations, vec![(name(1), passthrough()), (name(2), passthrough())]);
    assert!(answer.borrow_and_update().is_some() && is_known(&destinations, 1));
    assert_eq!(destinations.view().len(), 1, "what was not subscribed to is not kept");
    assert_eq!(destinations.connect(), [name(1)]);
}

#[test]
fn without_a_stream_only_the_first_one_waits_and_nothing_known_is_lost() {
    let destinations = Destinations::default();
    destinations.connect();
    destinations.look_up(&address(1).into());
    respond(&destinations, vec![(name(1), passthrough())]);
    destinations.disconnect();
    assert!(matches!(destinations.look_up(&address(2).into()), Lookup::Asked(_)));
    destinations.give_up(&address(2).into());
    assert!(matches!(destinations.look_up(&address(2).into()), Lookup::OutOfReach));
    assert!(is_known(&destinations, 1));
    assert_eq!(destinations.connect().len(), 2);
    assert!(
        matches!(destinations.look_up(&address(2).into()), Lookup::Asked(_)),
        "a controller is there again"
    );
    destinations.give_up(&address(2).into());
    assert!(matches!(destinations.look_up(&address(2).into()), Lookup::Asked(_)));
}

#[test]
fn what_is_not_used_is_forgotten_and_the_table_is_bounded() {
    let destinations = Destinations::default();
    destinations.connect();
    destinations.look_up(&address(1).into());
    destinations.take_subscriptions();
    destinations.sweep(Instant::now() + UNUSED_AFTER / 2);
    assert_eq!(destinations.take_subscriptions(), SubscriptionChanges::default());
    destinations.sweep(Instant::now() + UNUSED_AFTER * 2);
    assert_eq!(destinations.take_subscriptions(), subscriptions(&[], &[name(1)]));
    for number in 0..5000 {
        destinations.look_up(&address(number).into());
    }
    assert_eq!(destinations.view().len(), MOST);
}

#[test]
fn a_backend_is_held_once_for_all_its_addresses_and_dropped_with_the_last_of_them() {
    let destinations = Destinations::default();
    destinations.connect();
    let backend_name = ResourceName::Backend(cart(80));
    for number in [1, 2] {
        destinations.look_up(&address(number).into());
    }
    destinations.take_subscriptions();
    let response =
        vec![(name(1), to_cart(80)), (name(2), to_cart(80)), (backend_name.clone(), backend(80, &[9]))];
    respond(&destinations, response);
    assert_eq!(
        destinations.take_subscriptions(),
        SubscriptionChanges::default(),
        "the controller has added it itself"
    );
    let held = known(&destinations, 1).unwrap().choose_for_connection(None).unwrap();
    let open = known(&destinations, 2).unwrap().endpoints().next().unwrap().open();
    assert_eq!(open, 1, "both count the same");
    drop(held);

    // Endpoints change without the destinations.
    respond(&destinations, vec![(backend_name.clone(), backend(80, &[8, 9]))]);
    assert_eq!(endpoints(&destinations, 1), [address(8), address(9)]);
    assert_eq!(endpoints(&destinations, 2), [address(8), address(9)]);
    respond(&destinations, vec![(name(1), passthrough())]);
    assert_eq!(destinations.take_subscriptions(), SubscriptionChanges::default());
    respond(&destinations, vec![(name(2), passthrough())]);
    assert_eq!(destinations.take_subscriptions(), subscriptions(&[], &[backend_name]));
    assert_eq!(destinations.view_references().len(), 0);
}

#[test]
fn what_is_referred_to_and_not_there_is_asked_for_once_all_of_a_response_is_there() {
    let destinations = Destinations::default();
    destinations.connect();
    destinations.look_up(&address(1).into());
    destinations.take_subscriptions();
    destinations.set(&name(1), "v1".into(), to_cart(80), 100).unwrap();
    destinations.settle(false);
    assert_eq!(destinations.take_subscriptions(), SubscriptionChanges::default(), "it may be on its way");
    destinations.settle(true);
    let backend_name = ResourceName::Backend(cart(80));
    assert_eq!(destinations.take_subscriptions(), subscriptions(std::slice::from_ref(&backend_name), &[]));
    assert!(!is_known(&destinations, 1));
    // A new stream begins with references, so that the controller need not add them.
    assert_eq!(destinations.connect(), [backend_name.clone(), name(1)]);
    respond(&destinations, vec![(backend_name.clone(), backend(80, &[9]))]);
    assert_eq!(endpoints(&destinations, 1), [address(9)]);
    let versions = destinations.versions();
    assert_eq!(versions, [(name(1), "v1".to_owned()), (backend_name, "v1".to_owned())]);
    // What nothing refers to is not kept.
    let other = ResourceName::Backend(cart(81));
    respond(&destinations, vec![(other.clone(), backend(81, &[9]))]);
    assert_eq!(destinations.take_subscriptions(), subscriptions(&[], &[other]));
}

#[test]
fn routes_lead_to_their_backends_and_change_without_them() {
    let destinations = Destinations::default();
    destinations.connect();
    destinations.look_up(&address(1).into());
    destinations.take_subscriptions();
    let [first, second] = [80, 81].map(|port| ResourceName::Backend(cart(port)));
    let routes_name = ResourceName::Routes(routes_name());
    destinations.set(&name(1), "v1".into(), routed(), 100).unwrap();
    destinations.set(&routes_name, "v1".into(), routes(&[(1, 80), (1, 81)]), 100).unwrap();
    destinations.set(&first, "v1".into(), backend(80, &[8]), 100).unwrap();
    destinations.settle(false);
    assert!(!is_known(&destinations, 1), "a backend is not there yet");
    respond(&destinations, vec![(second, backend(81, &[9]))]);
    assert_eq!(endpoints(&destinations, 1), [address(8), address(9)]);
    assert_eq!(destinations.take_subscriptions(), SubscriptionChanges::default());

    respond(&destinations, vec![(routes_name.clone(), routes(&[(1, 81)]))]);
    assert_eq!(endpoints(&destinations, 1), [address(9)]);
    assert_eq!(destinations.take_subscriptions(), subscriptions(&[], &[first]));
    destinations.remove(&routes_name);
    destinations.settle(true);
    assert_eq!(endpoints(&destinations, 1), [address(9)], "the destination may change next");
    respond(&destinations, vec![(name(1), to_cart(81))]);
    assert_eq!(endpoints(&destinations, 1), [address(9)]);
    assert_eq!(destinations.take_subscriptions(), subscriptions(&[], &[routes_name]));
}

#[test]
fn routes_that_do_not_exist_lead_nowhere() {
    let destinations = Destinations::default();
    destinations.connect();
    destinations.look_up(&address(1).into());
    destinations.set(&name(1), "v1".into(), routed(), 100).unwrap();
    destinations.remove(&ResourceName::Routes(routes_name()));
    destinations.settle(true);
    assert!(is_known(&destinations, 1) && endpoints(&destinations, 1).is_empty());
}

#[test]
fn what_is_refused_or_does_not_exist_leads_nowhere_rather_than_round_the_mesh() {
    let destinations = Destinations::default();
    destinations.connect();
    for number in 1..=3 {
        destinations.look_up(&address(number).into());
    }
    let [refused, absent] = [80, 81].map(|port| ResourceName::Backend(cart(port)));
    respond(&destinations, vec![(name(1), to_cart(80)), (name(2), to_cart(81))]);
    destinations.take_subscriptions();
    destinations.refuse(&refused, "odd");
    destinations.refuse(&name(3), "odd");
    destinations.remove(&absent);
    destinations.settle(true);
    for number in 1..=3 {
        assert!(endpoints(&destinations, number).is_empty(), "{number}");
    }
    assert_eq!(known(&destinations, 3).unwrap().block_reason().map(|reason| &**reason), Some("odd"));
    // An earlier value stays in force.
    respond(&destinations, vec![(refused.clone(), backend(80, &[9])), (name(3), passthrough())]);
    destinations.refuse(&refused, "odd");
    destinations.refuse(&name(3), "odd");
    destinations.settle(true);
    assert_eq!(endpoints(&destinations, 1), [address(9)]);
    assert_eq!(endpoints(&destinations, 3), [address(3)]);
}

#[test]
fn backends_and_routes_are_bounded_in_number_and_in_bytes() {
    let destinations = Destinations::default();
    destinations.connect();
    let set = |port: u16, bytes| {
        destinations.set(&ResourceName::Backend(cart(port)), "v1".into(), backend(port, &[]), bytes)
    };
    let half = 16 * 1024 * 1024;
    set(1, half).unwrap();
    set(2, half).unwrap();
    assert_eq!(
        set(3, 1).unwrap_err().to_string(),
        "the backends and routes of this sidecar would take more than 32 MiB"
    );
    set(2, half - 1).unwrap();
    set(3, 1).unwrap();
    // What nothing refers to gives its room back.
    destinations.settle(true);
    destinations.take_subscriptions();
    for port in 1..=8192 {
        set(port, 1).unwrap();
    }
    assert_eq!(
        set(9000, 1).unwrap_err().to_string(),
        "this sidecar holds 8192 backends, and may hold no more"
    );
}

#[test]
fn where_the_workload_runs_decides_once_it_is_known_and_what_does_not_depend_on_it_stays() {
    let destinations = Destinations::of_workload("shop/client", Remotes::default());
    destinations.connect();
    destinations.look_up(&address(1).into());
    destinations.look_up(&address(2).into());
    let Resource::Backend(local) = backend(80, &[11, 12]) else { panic!() };
    let nodes = [(address(11), "a".into()), (address(12), "b".into())];
    let local = Backend { topology: Topology::SameNode(nodes.into()), ..local };
    respond(
        &destinations,
        vec![
            (name(1), to_cart(80)),
            (name(2), to_cart(81)),
            (ResourceName::Backend(cart(80)), Resource::Backend(local)),
            (ResourceName::Backend(cart(81)), backend(81, &[13])),
        ],
    );
    let known = |number| match destinations.look_up(&address(number).into()) {
        Lookup::Known(target) => target,
        Lookup::Asked(_) | Lookup::OutOfReach => panic!("not known"),
    };
    let endpoints = |target: Arc<ResolvedDestination>| {
        target.endpoints().map(|choice| choice.endpoint.address).collect::<Vec<_>>()
    };
    assert_eq!(endpoints(known(1)), []);
    assert_eq!(known(1).choose_for_connection(None).err(), Some(NoEndpoint::NotLocal));
    let other = known(2);
    let on = |node: &str| Some(Locality { node: Some(node.into()), zone: None });
    for (node, number) in [("a", 11), ("b", 12)] {
        destinations.locate(on(node));
        destinations.settle(true);
        assert_eq!(endpoints(known(1)), [address(number)]);
    }
    assert!(Arc::ptr_eq(&other, &known(2)));
}

#[test]
fn requests_to_a_service_are_retried_as_its_clients_object_says_from_the_next_one_on() {
    use std::time::Duration;

    use tidegate_core::ServiceRetry;
    use tidegate_core::route::{RetryPolicy, Timeouts};

    let retry = |service: &str| {
        Arc::new(ServiceRetry {
            origin: ObjectRef::new("Retry", "web", "again"),
            service: service.into(),
            timeouts: Timeouts::new(None, Some(Duration::from_secs(1))).unwrap(),
            policy: RetryPolicy::unprocessed(),
        })
    };
    let destinations = Destinations::default();
    destinations.connect();
    let limits = |number| match destinations.look_up(&address(number).into()) {
        Lookup::Known(target) => target.attempts().map(|limits| limits.timeouts.backend_request()),
        _ => panic!("unknown"),
    };
    for number in [1, 2] {
        destinations.look_up(&address(number).into());
    }
    let of_routes = ResourceName::Routes(routes_name());
    respond(&destinations, vec![(name(1), to_cart(80)), (name(2), routed())]);
    let cart80 = (ResourceName::Backend(cart(80)), backend(80, &[5]));
    respond(&destinations, vec![cart80, (of_routes, routes(&[(1, 80)]))]);
    assert_eq!((limits(1), limits(2)), (None, None));
    destinations.set_retries(&[retry("shop/other"), retry("shop/cart")]);
    destinations.settle(true);
    let second = Some(Some(Duration::from_secs(1)));
    assert_eq!((limits(1), limits(2)), (second, second));
    destinations.set_retries(&[retry("shop/other")]);
    destinations.settle(true);
    assert_eq!((limits(1), limits(2)), (None, None));
}
