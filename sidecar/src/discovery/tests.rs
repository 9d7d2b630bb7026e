use std::net::SocketAddr;

use rustls_pki_types::ServerName;
use tidegate_core::backend::{BackendProtocol, BackendRef, Endpoint, Transport};
use tidegate_core::{Destination, EgressMode, Identity, ObjectRef, TrustDomain};
use tidegate_runtime::readiness::Readiness;

use super::*;
use crate::destinations::Lookup;
use crate::snapshot::{Snapshots, channel};
use crate::test_pki::Authority;

const LISTENER: &str = "listener/shop/client";
const CART: &str = "backend/Service/shop/cart:80";
const ADDRESS: &str = "10.96.0.10:80";

/// The sidecar of workload `shop/client`, which dials [`ADDRESS`].
struct Sidecar {
    discovery: Discovery,
    snapshots: Snapshots,
    readiness: Readiness,
    nonce: u64,
}

impl Sidecar {
    fn new() -> Self {
        let root = Authority::root("root");
        let (publisher, snapshots) = channel();
        let readiness = Readiness::new();
        let config = DiscoveryClientConfig {
            address: "https://127.0.0.1:1".parse().unwrap(),
            proxy: ControlPlaneProxyOptions::default(),
            server_name: ServerName::try_from("controller").unwrap(),
            workload: "shop/client".to_owned(),
            instance: "i".to_owned(),
        };
        let (_, credentials) = watch::channel(Some(root.workload("shop", "client").credentials()));
        let (_, bundle) = watch::channel(root.bundle());
        let destinations = Arc::new(Destinations::default());
        destinations.connect();
        destinations.look_up(&ADDRESS.parse::<SocketAddr>().unwrap().into());
        let waiting = readiness.block("policy");
        let discovery =
            Discovery::new(config, credentials, bundle, Arc::new(publisher), destinations, waiting);
        Self { discovery, snapshots, readiness, nonce: 0 }
    }

    /// What it answers to these resources: the name and the reason of each rejection.
    fn take(&mut self, resources: Vec<(&str, Option<Body>)>) -> Vec<(String, String)> {
        self.nonce += 1;
        let resource = |(name, body): (&str, Option<Body>)| wire::Resource {
            name: name.to_owned(),
            version: format!("v{}", self.nonce),
            body,
        };
        let resources = resources.into_iter().map(resource).collect();
        let response = wire::DiscoveryResponse { nonce: self.nonce, resources, ..Default::default() };
        let ack = self.discovery.take_over(response);
        assert_eq!(ack.nonce, self.nonce);
        ack.rejections.into_iter().map(|rejection| (rejection.name, rejection.reason)).collect()
    }

    fn endpoints(&self) -> Option<Vec<SocketAddr>> {
        match self.discovery.destinations.look_up(&ADDRESS.parse::<SocketAddr>().unwrap().into()) {
            Lookup::Known(target) => Some(target.endpoints().map(|choice| choice.endpoint.address).collect()),
            _ => None,
        }
    }

    fn has_policy(&self) -> bool {
        self.snapshots.current().policy.is_some()
    }
}

fn listener(account: &str) -> Option<Body> {
    let identity = Identity::new(TrustDomain::default(), "shop", account).unwrap();
    let (workload, ports) = ("shop/client".into(), Default::default());
    let policy = InboundPolicy {
        workload,
        identity,
        locality: None,
        telemetry: Default::default(),
        external_authorization: None,
        egress: EgressMode::AllowAny,
        retries: Vec::new(),
        egress_proxies: Vec::new(),
        ports,
    };
    Some(Body::Listener((&policy).into()))
}

fn name() -> BackendRef {
    BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 }
}

fn to_cart() -> Option<Body> {
    Some(Body::Destination((&Destination::opaque(name())).into()))
}

fn cart(endpoints: Vec<Endpoint>) -> Option<Body> {
    Some(Body::Backend((&Backend::new(name(), BackendProtocol::Tcp, endpoints)).into()))
}

fn plain(address: &str) -> Endpoint {
    Endpoint::new(address.parse().unwrap(), Transport::Plain)
}

fn destination() -> String {
    format!("destination/{ADDRESS}")
}

#[test]
fn a_resource_that_only_a_newer_controller_has_is_rejected_by_its_name_and_the_others_are_taken_over() {
    let mut sidecar = Sidecar::new();
    let unknown = "this sidecar knows no resources of this name; it may be older than the controller";
    let empty = "the resource has no body that this sidecar knows; it may be older than the controller";
    let rejections = sidecar.take(vec![
        ("secret/shop/key", None),
        (LISTENER, listener("client")),
        ("routes/new", None),
        (&destination(), to_cart()),
        (CART, cart(vec![plain("10.0.0.1:80")])),
        ("secret/shop/other", to_cart()),
    ]);
    let expected = [("secret/shop/key", unknown), ("routes/new", empty), ("secret/shop/other", unknown)];
    assert_eq!(rejections, expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())));
    assert!(sidecar.has_policy() && sidecar.readiness.is_ready());
    assert_eq!(sidecar.endpoints().unwrap(), ["10.0.0.1:80".parse().unwrap()]);
}

#[test]
fn each_resource_is_refused_on_its_own_and_its_earlier_version_stays() {
    let mut sidecar = Sidecar::new();
    let first = vec![
        (LISTENER, listener("client")),
        (&*destination(), to_cart()),
        (CART, cart(vec![plain("10.0.0.1:80")])),
    ]
    .into_iter()
    .map(|(name, body)| (name.to_owned(), body))
    .collect::<Vec<_>>();
    let first = first.iter().map(|(name, body)| (name.as_str(), body.clone())).collect();
    assert!(sidecar.take(first).is_empty());

    let bad_destination = Some(Body::Destination(wire::Destination { kind: None }));
    let other = format!("{}x", &CART[..CART.len() - 3]);
    for (resource, body, reason) in [
        (LISTENER, listener("other"), "the policy is for identity other.shop.cluster.local"),
        ("listener/shop/other", listener("client"), "the listener is not that of workload shop/client"),
        (&destination(), bad_destination, "kind: missing"),
        (&format!("{other}:80"), cart(vec![]), "the resource holds another backend: Service shop/cart:80"),
        (CART, to_cart(), "the resource has no body that this sidecar knows"),
    ] {
        let rejections = sidecar.take(vec![(resource, body)]);
        let [(name, why)] = rejections.as_slice() else { panic!("{resource}: {rejections:?}") };
        assert!(name == resource && why.starts_with(reason), "{name}: {why}");
        assert!(sidecar.has_policy());
        assert_eq!(sidecar.endpoints().unwrap(), ["10.0.0.1:80".parse().unwrap()]);
    }
    let known = sidecar.discovery.known_versions();
    for name in [LISTENER, &destination(), CART] {
        assert_eq!(known[name], "v1", "what is in force is what is said to be held");
    }
}

#[test]
fn what_is_removed_refuses_everything() {
    let mut sidecar = Sidecar::new();
    sidecar.take(vec![(LISTENER, listener("client"))]);
    sidecar.take(vec![(&destination(), to_cart()), (CART, cart(vec![plain("10.0.0.1:80")]))]);
    let removed = vec![LISTENER.to_owned(), CART.to_owned(), "secret/shop/key".to_owned()];
    sidecar.discovery.take_over(wire::DiscoveryResponse { nonce: 3, removed, ..Default::default() });
    assert!(!sidecar.has_policy());
    assert_eq!(sidecar.endpoints().unwrap(), []);
}
