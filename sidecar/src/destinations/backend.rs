//! A backend as connections to it see it: its endpoints, how busy each is, and which one comes next.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tidegate_core::backend::{Backend, BackendRef, Endpoint, Transport};

/// An endpoint that could not be reached is the last choice for so long.
const EJECTED_FOR: Duration = Duration::from_secs(5);

/// The endpoints behind a name. All addresses that lead to the backend share it.
#[derive(Debug)]
pub(crate) struct BalancedBackend {
    /// `<namespace>/<name>` of the object; `None`: outside the mesh.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) endpoints: Vec<BalancedEndpoint>,
}

/// An endpoint.
#[derive(Debug)]
pub(crate) struct BalancedEndpoint {
    pub(crate) endpoint: Endpoint,
    state: Arc<EndpointState>,
}

/// What all connections of this process to an endpoint know.
#[derive(Debug, Default)]
struct EndpointState {
    open: AtomicUsize,
    /// Milliseconds on [`clock`] until which it is ejected.
    ejected_until: AtomicU64,
}

/// A connection's place in the count of its endpoint.
pub(crate) struct LoadSlot(Arc<EndpointState>);

impl BalancedBackend {
    /// A backend; endpoints that were there before keep their counts.
    pub(crate) fn new(backend: &Backend, before: Option<&Self>) -> Self {
        let before = before.into_iter().flat_map(|before| &before.endpoints);
        let before: HashMap<_, _> = before.map(|known| (known.endpoint.address, &known.state)).collect();
        let balanced = |endpoint: &Endpoint| BalancedEndpoint {
            state: before.get(&endpoint.address).map(|state| Arc::clone(state)).unwrap_or_default(),
            endpoint: endpoint.clone(),
        };
        Self {
            name: Some(name_of(&backend.name)),
            endpoints: backend.endpoints.iter().map(balanced).collect(),
        }
    }

    /// A backend that has no endpoints.
    pub(crate) fn empty(name: &BackendRef) -> Self {
        Self { name: Some(name_of(name)), endpoints: Vec::new() }
    }

    /// Outside the mesh: the address that was dialled.
    pub(crate) fn outside(dialled: SocketAddr) -> Self {
        let endpoint = Endpoint::new(dialled, Transport::Plain);
        Self { name: None, endpoints: vec![BalancedEndpoint { endpoint, state: Arc::default() }] }
    }

    /// The next endpoint to try of those that are `wanted`: of two that are drawn, the one with fewer connections. One
    /// that could not be reached lately comes after all others.
    pub(super) fn choose(&self, wanted: impl Fn(&Endpoint) -> bool) -> Option<&BalancedEndpoint> {
        let now = clock();
        let is_left = |choice: &&BalancedEndpoint| wanted(&choice.endpoint);
        let good: Vec<_> =
            self.endpoints.iter().filter(is_left).filter(|choice| !choice.is_ejected(now)).collect();
        let candidates = if good.is_empty() { self.endpoints.iter().filter(is_left).collect() } else { good };
        let first = *candidates.get(random_below(candidates.len())?)?;
        let second = *candidates.get(random_below(candidates.len())?)?;
        Some(if second.open() < first.open() { second } else { first })
    }
}

impl BalancedEndpoint {
    /// Connections to it that are open.
    pub(crate) fn open(&self) -> usize {
        self.state.open.load(Ordering::Relaxed)
    }

    /// Counts one more connection for as long as what is returned lives.
    pub(crate) fn hold(&self) -> LoadSlot {
        self.state.open.fetch_add(1, Ordering::Relaxed);
        LoadSlot(self.state.clone())
    }

    /// It could not be reached.
    pub(crate) fn eject(&self) {
        let until = clock() + u64::try_from(EJECTED_FOR.as_millis()).unwrap_or(u64::MAX);
        self.state.ejected_until.store(until, Ordering::Relaxed);
    }

    fn is_ejected(&self, now: u64) -> bool {
        self.state.ejected_until.load(Ordering::Relaxed) > now
    }
}

impl Drop for LoadSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn name_of(backend: &BackendRef) -> Arc<str> {
    format!("{}/{}", backend.object.namespace, backend.object.name).into()
}

/// Milliseconds since the first call; starts at one.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

pub(super) fn random_below(count: usize) -> Option<usize> {
    rand::random::<u32>().try_into().ok().and_then(|number: usize| number.checked_rem(count))
}

#[cfg(test)]
mod tests {
    use tidegate_core::ObjectRef;
    use tidegate_core::backend::BackendProtocol;

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
        backend.endpoints[0].eject();
        for _ in 0..50 {
            assert_eq!(chosen(&[]), Some(second));
        }
        assert_eq!(chosen(&[second]), Some(first));
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
