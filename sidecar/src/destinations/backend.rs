//! A backend as connections to it see it: its endpoints, and which of them the next connection or request goes to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::backend::{Backend, BackendProtocol, BackendRef, Endpoint, Transport};

use super::endpoint::{EndpointState, LoadSlot, Moment, Peers};

/// How many pairs are drawn before all endpoints are looked at.
const DRAWS: usize = 4;

/// The endpoints behind a name. All addresses and routes that lead to the backend share it.
#[derive(Debug)]
pub(crate) struct BalancedBackend {
    /// `<namespace>/<name>` of the object; `None`: outside the mesh.
    pub(crate) name: Option<Arc<str>>,
    /// What the endpoints speak.
    pub(crate) protocol: BackendProtocol,
    pub(crate) endpoints: Vec<BalancedEndpoint>,
}

/// An endpoint.
#[derive(Debug)]
pub(crate) struct BalancedEndpoint {
    pub(crate) endpoint: Arc<Endpoint>,
    state: Arc<EndpointState>,
    peers: Peers,
}

impl BalancedBackend {
    /// A backend; endpoints that were there before keep their state.
    pub(crate) fn new(backend: &Backend, before: Option<&Self>) -> Self {
        let known = before.into_iter().flat_map(|before| &before.endpoints);
        let known: HashMap<_, _> = known.map(|known| (known.endpoint.address, &known.state)).collect();
        let now = Moment::now();
        let state = |endpoint: &Endpoint| match known.get(&endpoint.address) {
            Some(state) => Arc::clone(state),
            None if known.is_empty() => Arc::default(),
            None => Arc::new(EndpointState::added(now)),
        };
        let peers: Peers = backend.endpoints.iter().map(state).collect();
        let balanced = |(endpoint, state): (&Endpoint, &Arc<EndpointState>)| BalancedEndpoint {
            endpoint: Arc::new(endpoint.clone()),
            state: state.clone(),
            peers: peers.clone(),
        };
        Self {
            name: Some(name_of(&backend.name)),
            protocol: backend.protocol,
            endpoints: backend.endpoints.iter().zip(&*peers).map(balanced).collect(),
        }
    }

    /// A backend that has no endpoints.
    pub(crate) fn empty(name: &BackendRef) -> Self {
        Self { name: Some(name_of(name)), ..Self::nothing() }
    }

    /// Nothing at all.
    pub(super) fn nothing() -> Self {
        Self { name: None, protocol: BackendProtocol::Tcp, endpoints: Vec::new() }
    }

    /// Outside the mesh: the address that was dialled.
    pub(crate) fn outside(dialled: SocketAddr) -> Self {
        let endpoint = Arc::new(Endpoint::new(dialled, Transport::Plain));
        let state = Arc::<EndpointState>::default();
        let peers = Arc::from([state.clone()]);
        let endpoints = vec![BalancedEndpoint { endpoint, state, peers }];
        Self { name: None, protocol: BackendProtocol::Http, endpoints }
    }

    /// The next endpoint to try of those that are `wanted`: of two that are drawn, the one that is expected to respond
    /// first (power of two choices). One that fails comes after all others.
    pub(super) fn choose(&self, wanted: impl Fn(&Endpoint) -> bool) -> Option<&BalancedEndpoint> {
        let now = Moment::now();
        let is_good = |choice: &&BalancedEndpoint| wanted(&choice.endpoint) && !choice.state.is_ejected(now);
        for _ in 0..DRAWS {
            let (first, second) = self.draw_two()?;
            let choices = [first, second].into_iter().filter(is_good);
            if let Some(choice) = cheapest(choices, now) {
                return Some(choice);
            }
        }
        cheapest(self.endpoints.iter().filter(is_good), now).or_else(|| {
            let left = self.endpoints.iter().filter(|choice| wanted(&choice.endpoint));
            left.min_by_key(|choice| choice.state.ejected_until())
        })
    }

    /// Two different endpoints, or the only one twice.
    fn draw_two(&self) -> Option<(&BalancedEndpoint, &BalancedEndpoint)> {
        let first = random_below(self.endpoints.len())?;
        let step = random_below(self.endpoints.len() - 1).map_or(0, |step| step + 1);
        let second = (first + step) % self.endpoints.len();
        self.endpoints.get(first).zip(self.endpoints.get(second))
    }
}

fn cheapest<'b>(
    choices: impl Iterator<Item = &'b BalancedEndpoint>,
    now: Moment,
) -> Option<&'b BalancedEndpoint> {
    choices
        .map(|choice| (choice.state.cost(now), choice))
        .min_by(|(first, _), (second, _)| first.total_cmp(second))
        .map(|(_, choice)| choice)
}

impl BalancedEndpoint {
    /// Connections and requests that are open.
    pub(crate) fn open(&self) -> usize {
        self.state.open()
    }

    /// Counts one more connection or request for as long as what is returned lives. It takes the result.
    pub(crate) fn hold(&self) -> LoadSlot {
        LoadSlot::new(&self.state, &self.peers)
    }
}

fn name_of(backend: &BackendRef) -> Arc<str> {
    format!("{}/{}", backend.object.namespace, backend.object.name).into()
}

pub(super) fn random_below(count: usize) -> Option<usize> {
    rand::random::<u32>().try_into().ok().and_then(|number: usize| number.checked_rem(count))
}

#[cfg(test)]
mod tests {
    use tidegate_core::ObjectRef;

    use super::*;

    fn address(number: u8) -> SocketAddr {
        ([10, 0, 0, number], 80).into()
    }

    fn backend(numbers: &[u8], before: Option<&BalancedBackend>) -> BalancedBackend {
        let endpoint = |number: &u8| Endpoint::new(address(*number), Transport::Plain);
        let backend = Backend {
            name: BackendRef { object: ObjectRef::new("Service", "a", "b"), port: 80 },
            protocol: BackendProtocol::Tcp,
            endpoints: numbers.iter().map(endpoint).collect(),
        };
        BalancedBackend::new(&backend, before)
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
            backend
                .choose(|endpoint| !tried.contains(&endpoint.address))
                .map(|choice| choice.endpoint.address)
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
}
