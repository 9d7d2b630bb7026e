//! `sessionAffinity: ClientIP`: a client keeps its endpoint.
//!
//! The client of a sidecar is one pod, so kube-proxy's table of clients is one entry here, and one for each address
//! family. The endpoint is chosen by rendezvous hashing: workers that choose at the same moment agree, clients spread over
//! the endpoints, and a sidecar that restarts comes back to the same one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::caller::ClientWorkload;
use super::endpoint::Moment;

/// A use is noted at most this often, in milliseconds: a store for each request would take the cache line from the other
/// workers.
const NOTED_EVERY: u64 = 1000;

/// The endpoints that the client keeps, as places in the list of its backend.
#[derive(Debug)]
pub(super) struct Affinity {
    /// An endpoint that was not used for this long is chosen again, in milliseconds.
    timeout: u64,
    /// The hash of the client.
    client: u64,
    /// Of IPv4 and of IPv6.
    kept: [KeptEndpoint; 2],
}

#[derive(Debug, Default)]
struct KeptEndpoint {
    /// Its place plus one; zero: none.
    number: AtomicUsize,
    /// [`Moment`] in milliseconds of its last use.
    used: AtomicU64,
}

impl Affinity {
    /// The affinity of this client, without an endpoint yet.
    pub(super) fn new(timeout: Duration, caller: &ClientWorkload) -> Self {
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        Self { timeout, client: hash(&caller.workload), kept: Default::default() }
    }

    /// Goes on with the endpoints of an earlier version of the backend, each at its `place` in the new one, if it has one.
    pub(super) fn resume(&self, before: &Self, place: impl Fn(usize) -> Option<usize>) {
        for (kept, before) in self.kept.iter().zip(&before.kept) {
            let number = before.place().and_then(&place).map_or(0, |place| place + 1);
            kept.number.store(number, Ordering::Relaxed);
            kept.used.store(before.used.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// The place of the endpoint of a family that the client still keeps.
    pub(super) fn kept(&self, is_ipv4: bool, now: Moment) -> Option<usize> {
        let kept = self.of(is_ipv4);
        let idle = now.millis().saturating_sub(kept.used.load(Ordering::Relaxed));
        kept.place().filter(|_| idle <= self.timeout)
    }

    /// From now on the client keeps the endpoint at this place.
    pub(super) fn keep(&self, is_ipv4: bool, place: usize, now: Moment) {
        let kept = self.of(is_ipv4);
        if kept.place() != Some(place) {
            kept.number.store(place + 1, Ordering::Relaxed);
        }
        if now.millis().saturating_sub(kept.used.load(Ordering::Relaxed)) >= NOTED_EVERY {
            kept.used.store(now.millis(), Ordering::Relaxed);
        }
    }

    /// How well an endpoint suits the client: of several, the one with the highest rank is chosen.
    pub(super) fn rank(&self, endpoint: SocketAddr) -> u64 {
        hash(&(self.client, endpoint))
    }

    fn of(&self, is_ipv4: bool) -> &KeptEndpoint {
        let [ipv4, ipv6] = &self.kept;
        if is_ipv4 { ipv4 } else { ipv6 }
    }
}

impl KeptEndpoint {
    fn place(&self) -> Option<usize> {
        self.number.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// The same in every process.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affinity(workload: &str, seconds: u64) -> Affinity {
        let caller = ClientWorkload { workload: workload.into(), ..ClientWorkload::default() };
        Affinity::new(Duration::from_secs(seconds), &caller)
    }

    #[test]
    fn an_endpoint_is_kept_for_the_timeout_after_its_last_use() {
        let (affinity, at) = (affinity("shop/a", 60), Moment::at_seconds);
        assert_eq!(affinity.kept(true, at(100)), None);
        affinity.keep(true, 3, at(100));
        assert_eq!(affinity.kept(true, at(160)), Some(3));
        assert_eq!(affinity.kept(false, at(100)), None, "each family has its own");
        affinity.keep(true, 3, at(160));
        assert_eq!(affinity.kept(true, at(220)), Some(3));
        assert_eq!(affinity.kept(true, at(221)), None);
    }

    #[test]
    fn an_endpoint_is_kept_through_a_change_of_the_backend_unless_it_is_gone() {
        let (before, now) = (affinity("shop/a", 60), Moment::at_seconds(100));
        before.keep(true, 3, now);
        before.keep(false, 5, now);
        let after = affinity("shop/a", 60);
        after.resume(&before, |place| (place == 3).then_some(0));
        assert_eq!((after.kept(true, now), after.kept(false, now)), (Some(0), None));
    }

    #[test]
    fn clients_spread_over_the_endpoints() {
        let endpoints: Vec<SocketAddr> = (1..=4).map(|number| ([10, 0, 0, number], 80).into()).collect();
        let mut counts = [0; 4];
        for client in 0..400 {
            let affinity = affinity(&format!("shop/client-{client}"), 60);
            let chosen = endpoints.iter().enumerate().max_by_key(|(_, address)| affinity.rank(**address));
            counts[chosen.unwrap().0] += 1;
        }
        assert!(counts.iter().all(|count| (70..=130).contains(count)), "{counts:?}");
    }
}
