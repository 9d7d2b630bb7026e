//! Sources of connections, and the places that each holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{add, counts};

/// Minimum time between two searches for the source with the most places: there may be as many sources as connections.
const SEARCH_EVERY: Duration = Duration::from_millis(10);

/// All sources that hold places.
#[derive(Default)]
pub(super) struct PlaceSources {
    pub(super) addresses: HashMap<IpAddr, Arc<SourceShare>>,
    pub(super) identities: HashMap<Box<str>, Arc<SourceShare>>,
    /// The source with the most places, and when it was determined.
    pub(super) heaviest: Option<(Instant, Arc<SourceShare>)>,
}

/// The places of one source.
pub(super) struct SourceShare {
    pub(super) source: PlaceSource,
    pub(super) places: AtomicUsize,
    /// Its connections per worker.
    pub(super) connections: Box<[AtomicUsize]>,
}

/// An address, or a proven identity.
pub(super) enum PlaceSource {
    Address(IpAddr),
    Identity(Box<str>),
}

impl PlaceSources {
    /// The source with the most places, searched for at most every [`SEARCH_EVERY`].
    pub(super) fn heaviest(&mut self) -> Option<Arc<SourceShare>> {
        let now = Instant::now();
        if let Some((at, held)) = &self.heaviest
            && now.saturating_duration_since(*at) < SEARCH_EVERY
        {
            return Some(held.clone());
        }
        let all = self.addresses.values().chain(self.identities.values());
        let heaviest = all.max_by_key(|held| held.places())?.clone();
        self.heaviest = Some((now, heaviest.clone()));
        Some(heaviest)
    }
}

impl SourceShare {
    pub(super) fn new(source: PlaceSource, workers: usize) -> Self {
        Self { source, places: AtomicUsize::new(0), connections: counts(workers) }
    }

    pub(super) fn places(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, worker: usize, places: usize) {
        self.places.fetch_add(places, Ordering::Relaxed);
        add(self.connections.get(worker), 1);
    }

    /// Removes a connection with this many places. A source without places is forgotten.
    pub(super) fn leave(&self, worker: usize, places: usize, sources: &mut PlaceSources) {
        if let Some(connections) = self.connections.get(worker) {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
        if self.places.fetch_sub(places, Ordering::Relaxed) == places {
            match &self.source {
                PlaceSource::Address(address) => drop(sources.addresses.remove(address)),
                PlaceSource::Identity(identity) => drop(sources.identities.remove(identity)),
            }
        }
    }
}

/// The share of the source with this key; `new` if it holds no place yet.
pub(super) fn share_of<K: Eq + Hash>(
    held: &mut HashMap<K, Arc<SourceShare>>,
    key: K,
    new: impl FnOnce() -> SourceShare,
) -> Arc<SourceShare> {
    match held.entry(key) {
        Entry::Occupied(entry) => entry.get().clone(),
        Entry::Vacant(entry) => entry.insert(Arc::new(new())).clone(),
    }
}
