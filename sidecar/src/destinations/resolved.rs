//! A destination as connections to it see it: its endpoints, how busy each is, and which one comes next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidegate_core::Destination;
use tidegate_core::destination::Endpoint;

/// An endpoint that could not be reached is the last choice for so long.
const EJECTED_FOR: Duration = Duration::from_secs(5);

/// Where connections to an address go.
#[derive(Debug)]
pub(crate) struct ResolvedDestination {
    /// `<namespace>/<name>` of the Service or Pod; `None`: nobody of the mesh.
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

impl ResolvedDestination {
    /// For what was dialled; endpoints that were there before keep their counts.
    pub(crate) fn new(dialled: SocketAddr, destination: &Destination, before: Option<&Self>) -> Self {
        let (name, endpoints) = match destination {
            Destination::Passthrough => (None, vec![Endpoint { address: dialled, identity: None }]),
            Destination::Service(service) => (Some(service.name.clone()), service.endpoints.clone()),
        };
        let state = |endpoint: &Endpoint| {
            let before = before.into_iter().flat_map(|before| &before.endpoints);
            let mut same = before.filter(|choice| choice.endpoint.address == endpoint.address);
            same.next().map(|choice| choice.state.clone()).unwrap_or_default()
        };
        let choice = |endpoint: Endpoint| BalancedEndpoint { state: state(&endpoint), endpoint };
        Self { name, endpoints: endpoints.into_iter().map(choice).collect() }
    }

    /// Nobody of the mesh, as far as anybody knows.
    pub(crate) fn unknown(dialled: SocketAddr) -> Self {
        Self::new(dialled, &Destination::Passthrough, None)
    }

    /// The next endpoint to try: of two that are drawn, the one with fewer connections. One that was tried is out, and
    /// one that could not be reached lately comes after all others.
    pub(crate) fn choose(&self, tried: &[SocketAddr]) -> Option<&BalancedEndpoint> {
        let now = clock();
        let is_left = |choice: &&BalancedEndpoint| !tried.contains(&choice.endpoint.address);
        let good: Vec<_> =
            self.endpoints.iter().filter(is_left).filter(|choice| !choice.is_ejected(now)).collect();
        let candidates = match good.is_empty() {
            true => self.endpoints.iter().filter(is_left).collect(),
            false => good,
        };
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

/// Milliseconds since the first call; starts at one.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

fn random_below(count: usize) -> Option<usize> {
    rand::random::<u32>().try_into().ok().and_then(|number: usize| number.checked_rem(count))
}

#[cfg(test)]
mod tests {
    use tidegate_core::destination::MeshService;

    use super::*;

    fn endpoint(number: u8) -> Endpoint {
        Endpoint { address: ([10, 0, 0, number], 80).into(), identity: None }
    }

    fn service(numbers: &[u8]) -> Destination {
        let endpoints = numbers.iter().map(|number| endpoint(*number)).collect();
        Destination::Service(MeshService { name: "a/b".into(), endpoints })
    }

    fn target(numbers: &[u8], before: Option<&ResolvedDestination>) -> ResolvedDestination {
        ResolvedDestination::new("10.96.0.1:80".parse().unwrap(), &service(numbers), before)
    }

    #[test]
    fn connections_spread_over_the_endpoints_by_how_busy_they_are() {
        let target = target(&[1, 2, 3, 4], None);
        let _held: Vec<_> = (0..400).map(|_| target.choose(&[]).unwrap().hold()).collect();
        for choice in &target.endpoints {
            assert!((90..=110).contains(&choice.open()), "{}", choice.open());
        }
    }

    #[test]
    fn what_was_tried_is_not_tried_again_and_what_failed_lately_comes_last() {
        let target = target(&[1, 2], None);
        let [first, second] = [endpoint(1).address, endpoint(2).address];
        assert_eq!(target.choose(&[first]).unwrap().endpoint.address, second);
        assert!(target.choose(&[first, second]).is_none());
        target.endpoints[0].eject();
        for _ in 0..50 {
            assert_eq!(target.choose(&[]).unwrap().endpoint.address, second);
        }
        assert_eq!(target.choose(&[second]).unwrap().endpoint.address, first);
    }

    #[test]
    fn a_service_without_endpoints_has_none_to_choose() {
        assert!(target(&[], None).choose(&[]).is_none());
    }

    #[test]
    fn counts_outlive_a_change_of_the_endpoints() {
        let before = target(&[1, 2], None);
        let held = before.endpoints[1].hold();
        let now = target(&[2, 3], Some(&before));
        assert_eq!((now.endpoints[0].open(), now.endpoints[1].open()), (1, 0));
        drop(held);
        assert_eq!(now.endpoints[0].open(), 0);
    }
}
