//! Places for connections: how many there are, who holds them, and who makes room.
//!
//! Clients' connections and the app's own are counted apart, so that neither takes the other's places. A client's
//! connection holds one place, and one more for each 4 KiB of what is not complete: a request's head, a handshake, a
//! TLS record. A source is an address, or the identity that a client has proven. While there is room, a source may hold all of it.
//! Where there is none, a newcomer is let in if another source holds more than its own will: that one makes room by the
//! connections of it that have been idle longest, and only if it holds more than twice as much by others. So a
//! source that holds many never gets the last places, and never keeps others out.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are not complete for which no further place is needed, and those that each further place is good for.
const BYTES: usize = 4 * 1024;

/// File descriptors that are left for what is no connection.
const OTHER_FILES: u64 = 64;

/// Which source holds the most is looked up this often at most: there may be as many sources as connections.
const SEARCH_EVERY: Duration = Duration::from_millis(10);

/// How many places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaceLimits {
    /// For clients' connections.
    pub(crate) clients: usize,
    /// For the app's own connections.
    pub(crate) outbound: usize,
    /// For both together.
    pub(crate) all: usize,
}

/// The places of all workers.
pub(crate) struct Places {
    limits: PlaceLimits,
    clients: AtomicUsize,
    outbound: AtomicUsize,
    /// Connections of each worker.
    loads: Box<[AtomicUsize]>,
    /// Places of connections that were told to end and have not yet.
    awaited: AtomicUsize,
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    addresses: HashMap<IpAddr, Arc<SourceShare>>,
    identities: HashMap<Box<str>, Arc<SourceShare>>,
    /// The one that held the most when it was looked up last.
    heaviest: Option<(Instant, Arc<SourceShare>)>,
}

/// What one source holds.
pub(crate) struct SourceShare {
    source: Source,
    places: AtomicUsize,
    /// Its connections at each worker.
    connections: Box<[AtomicUsize]>,
}

enum Source {
    Address(IpAddr),
    Identity(Box<str>),
}

/// A connection's place; free again when dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    worker: usize,
    /// Whose it is; none if it is the app's own.
    held: RefCell<Option<Arc<SourceShare>>>,
    /// Bytes of what is not complete, by [`Part`].
    unfinished: [Cell<usize>; 2],
    /// Further places, for those bytes.
    further: Cell<usize>,
}

/// What a connection holds bytes of until it is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A request's head, or a message of a TLS handshake.
    Message,
    /// A TLS record after the handshake, and what was decrypted of it and not read.
    Record,
}

/// Connections of a source that are to make room.
pub(crate) struct Eviction {
    places: Arc<Places>,
    from: Arc<SourceShare>,
    /// The worker that has most of them.
    pub(crate) worker: usize,
    pub(crate) count: usize,
    /// Whether those that are not idle do, too.
    pub(crate) also_busy: bool,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("too many connections: {held} places are taken, {by_source} of them by its address")]
    Clients { held: usize, by_source: usize },
    #[error("too many connections of the app's own: {held} are open")]
    Outbound { held: usize },
}

impl PlaceLimits {
    /// `limit` of each kind. If as many files cannot be open, an eighth of what is possible is kept for either kind: a
    /// connection takes up to two, the client's and one to the app.
    pub(crate) fn of(limit: usize, files: Option<u64>) -> Self {
        let possible = files.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES) / 2;
        let all = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
        let each = limit.min(all - all / 8).max(1);
        Self { clients: each, outbound: each, all }
    }

    /// Places beyond the limit that may be taken while those that make room for them have not ended yet.
    fn overlap(self) -> usize {
        (self.clients / 256).clamp(1, 64)
    }

    /// What any source may hold for bytes, whatever others hold.
    fn modest(self) -> usize {
        (self.clients / 64).max(32)
    }
}

impl Places {
    pub(crate) fn new(workers: usize, limits: PlaceLimits) -> Self {
        Self {
            limits,
            clients: AtomicUsize::new(0),
            outbound: AtomicUsize::new(0),
            loads: counts(workers),
            awaited: AtomicUsize::new(0),
            sources: Mutex::default(),
        }
    }

    /// Connections at this moment.
    pub(crate) fn connections(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    /// What clients hold.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Connections of each worker.
    #[cfg(test)]
    pub(crate) fn loads(&self) -> impl Iterator<Item = usize> {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed))
    }

    /// A place for a client's connection, and who makes room for it if that is necessary. `here` is the worker that
    /// asks: it is chosen among equals, or anyway if `only_here`.
    pub(crate) fn client(
        self: &Arc<Self>,
        source: IpAddr,
        here: usize,
        only_here: bool,
    ) -> Result<(Place, Option<Eviction>), Full> {
        let mut sources = self.sources();
        let own = sources.addresses.get(&source).map_or(0, |held| held.places());
        let taken = self.clients.load(Ordering::Relaxed);
        let all = taken + self.outbound.load(Ordering::Relaxed);
        let excess =
            (taken + 1).saturating_sub(self.limits.clients).max((all + 1).saturating_sub(self.limits.all));
        let mut eviction = None;
        if excess > 0 {
            let full = Full::Clients { held: taken, by_source: own };
            let heaviest = sources.heaviest().filter(|held| held.places() > own + 1).ok_or(full)?;
            if excess > self.limits.overlap() {
                return Err(full);
            }
            eviction = self.evict(heaviest, own, excess);
        }
        let held = take(&mut sources.addresses, source, || {
            SourceShare::new(Source::Address(source), self.loads.len())
        });
        Ok((self.place(Some(held), here, only_here), eviction))
    }

    /// A place for a connection of the app's own.
    pub(crate) fn outbound(self: &Arc<Self>, here: usize, only_here: bool) -> Result<Place, Full> {
        let held = self.outbound.load(Ordering::Relaxed);
        let all = held + self.clients.load(Ordering::Relaxed);
        // What clients hold beyond their limit is about to end.
        if held >= self.limits.outbound || all >= self.limits.all + self.limits.overlap() {
            return Err(Full::Outbound { held });
        }
        Ok(self.place(None, here, only_here))
    }

    /// Has the source make room, unless as much is awaited already.
    fn evict(self: &Arc<Self>, from: Arc<SourceShare>, own: usize, excess: usize) -> Option<Eviction> {
        if self.awaited.load(Ordering::Relaxed) >= excess {
            return None;
        }
        let places = from.places();
        // Some more than are needed now, so that a crowd of newcomers does not have the connections searched for each.
        let count = self.limits.overlap().min((places - own) / 2).max(1);
        self.awaited.fetch_add(count, Ordering::Relaxed);
        let at = from.connections.iter().enumerate().max_by_key(|(_, count)| count.load(Ordering::Relaxed));
        let worker = at.map_or(0, |(worker, _)| worker);
        Some(Eviction { places: self.clone(), from, worker, count, also_busy: own * 2 < places })
    }

    fn place(self: &Arc<Self>, held: Option<Arc<SourceShare>>, here: usize, only_here: bool) -> Place {
        let load = |(index, load): &(usize, &AtomicUsize)| (load.load(Ordering::Relaxed), *index != here);
        let workers = self.loads.iter().enumerate().filter(|(index, _)| !only_here || *index == here);
        let worker = workers.min_by_key(load).map_or(here, |(worker, _)| worker);
        let place = Place {
            places: self.clone(),
            worker,
            held: RefCell::new(held),
            unfinished: Default::default(),
            further: Cell::new(0),
        };
        add(self.loads.get(worker), 1);
        add(Some(place.kind()), 1);
        if let Some(held) = &*place.held.borrow() {
            held.add(worker, 1);
        }
        place
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Which worker's connection it is.
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }

    /// The client's connection holds so many bytes of this part, instead of those before. `false` if there is no place
    /// for them; nothing has changed then.
    pub(crate) fn hold(&self, part: Part, bytes: usize) -> bool {
        let [unfinished, other] = match (part, &self.unfinished) {
            (Part::Message, [message, record]) => [message, record],
            (Part::Record, [message, record]) => [record, message],
        };
        if unfinished.get() == bytes {
            return true;
        }
        let held = self.held.borrow();
        let Some(held) = &*held else { return true };
        let (before, now) = (self.further.get(), (bytes + other.get()).saturating_sub(BYTES).div_ceil(BYTES));
        if now > before {
            let more = now - before;
            let limits = self.places.limits;
            let has_room = self.places.clients.load(Ordering::Relaxed) + more <= limits.clients;
            if !has_room && held.places() + more > limits.modest() {
                return false;
            }
            self.places.clients.fetch_add(more, Ordering::Relaxed);
            held.places.fetch_add(more, Ordering::Relaxed);
        } else if now < before {
            self.places.clients.fetch_sub(before - now, Ordering::Relaxed);
            held.places.fetch_sub(before - now, Ordering::Relaxed);
        }
        self.further.set(now);
        unfinished.set(bytes);
        true
    }

    /// The client has proven who it is: the place is that identity's from now on.
    pub(crate) fn identify(&self, identity: &str) {
        let mut own = self.held.borrow_mut();
        let Some(before) = own.take() else { return };
        let mut sources = self.places.sources();
        let held = match sources.identities.get(identity) {
            Some(held) => held.clone(),
            None => {
                let source = Source::Identity(identity.into());
                take(&mut sources.identities, identity.into(), || {
                    SourceShare::new(source, self.places.loads.len())
                })
            }
        };
        let places = 1 + self.further.get();
        held.add(self.worker, places);
        before.leave(self.worker, places, &mut sources);
        *own = Some(held);
    }

    /// Whether it is of those that are to make room.
    pub(crate) fn is_of(&self, eviction: &Eviction) -> bool {
        self.held.borrow().as_ref().is_some_and(|held| Arc::ptr_eq(held, &eviction.from))
    }

    fn kind(&self) -> &AtomicUsize {
        match *self.held.borrow() {
            Some(_) => &self.places.clients,
            None => &self.places.outbound,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = 1 + self.further.get();
        self.kind().fetch_sub(places, Ordering::Relaxed);
        if let Some(load) = self.places.loads.get(self.worker) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(held) = self.held.take() {
            held.leave(self.worker, places, &mut self.places.sources());
        }
    }
}

impl fmt::Display for Eviction {
    /// Whose connections they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from.source {
            Source::Address(address) => address.fmt(f),
            Source::Identity(identity) => f.write_str(identity),
        }
    }
}

impl Drop for Eviction {
    fn drop(&mut self) {
        self.places.awaited.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl Sources {
    fn heaviest(&mut self) -> Option<Arc<SourceShare>> {
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
    fn new(source: Source, workers: usize) -> Self {
        Self { source, places: AtomicUsize::new(0), connections: counts(workers) }
    }

    fn places(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    fn add(&self, worker: usize, places: usize) {
        self.places.fetch_add(places, Ordering::Relaxed);
        add(self.connections.get(worker), 1);
    }

    /// A connection with so many places is not of this source any more. Nothing is remembered of a source that holds
    /// none.
    fn leave(&self, worker: usize, places: usize, sources: &mut Sources) {
        if let Some(connections) = self.connections.get(worker) {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
        if self.places.fetch_sub(places, Ordering::Relaxed) == places {
            match &self.source {
                Source::Address(address) => drop(sources.addresses.remove(address)),
                Source::Identity(identity) => drop(sources.identities.remove(identity)),
            }
        }
    }
}

fn take<K: Eq + Hash>(
    held: &mut HashMap<K, Arc<SourceShare>>,
    key: K,
    new: impl FnOnce() -> SourceShare,
) -> Arc<SourceShare> {
    match held.entry(key) {
        Entry::Occupied(entry) => entry.get().clone(),
        Entry::Vacant(entry) => entry.insert(Arc::new(new())).clone(),
    }
}

fn counts(workers: usize) -> Box<[AtomicUsize]> {
    (0..workers).map(|_| AtomicUsize::new(0)).collect()
}

fn add(count: Option<&AtomicUsize>, by: usize) {
    if let Some(count) = count {
        count.fetch_add(by, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn places(clients: usize) -> Arc<Places> {
        Arc::new(Places::new(1, PlaceLimits::of(clients, None)))
    }

    fn fill(places: &Arc<Places>, source: IpAddr) -> Vec<Place> {
        std::iter::from_fn(|| {
            places.client(source, 0, false).ok().map(|(place, eviction)| {
                assert!(eviction.is_none());
                place
            })
        })
        .collect()
    }

    #[test]
    fn a_source_may_hold_everything_and_makes_room_for_others_until_they_hold_as_much() {
        let places = places(100);
        let mut crowd = fill(&places, address(1));
        assert_eq!(crowd.len(), 100);
        let full = places.client(address(1), 0, false).err();
        assert_eq!(full, Some(Full::Clients { held: 100, by_source: 100 }));
        let mut others = Vec::new();
        for _ in 0..50 {
            let (place, eviction) = places.client(address(2), 0, false).unwrap();
            others.push(place);
            let eviction = eviction.unwrap();
            assert!(crowd[0].is_of(&eviction) && !others[0].is_of(&eviction));
            assert_eq!((eviction.count, eviction.also_busy), (1, (others.len() - 1) * 2 < crowd.len()));
            crowd.pop();
        }
        let full = places.client(address(2), 0, false).err();
        assert_eq!(full, Some(Full::Clients { held: 100, by_source: 50 }));
        assert!(places.client(address(1), 0, false).is_err());
        assert!(places.client(address(3), 0, false).is_ok());
    }

    #[test]
    fn places_that_are_awaited_are_given_away_beforehand_within_bounds() {
        let places = places(1024);
        let mut crowd = fill(&places, address(1));
        let (first, eviction) = places.client(address(2), 0, false).unwrap();
        let eviction = eviction.unwrap();
        assert_eq!(eviction.count, 4);
        let rest: Vec<_> = (3..6).map(|last| places.client(address(last), 0, false).unwrap()).collect();
        assert!(rest.iter().all(|(_, eviction)| eviction.is_none()));
        assert!(places.client(address(7), 0, false).is_err());
        crowd.truncate(1020);
        drop(eviction);
        assert!(places.client(address(7), 0, false).unwrap().1.is_some());
        drop((first, rest));
    }

    #[test]
    fn the_apps_own_connections_have_places_of_their_own_also_where_files_are_few() {
        let places = Arc::new(Places::new(1, PlaceLimits::of(1000, Some(64 + 2 * 80))));
        assert_eq!(places.limits, PlaceLimits { clients: 70, outbound: 70, all: 80 });
        let crowd = fill(&places, address(1));
        assert_eq!(crowd.len(), 70);
        let own: Vec<_> = (0..10).map(|_| places.outbound(0, false).unwrap()).collect();
        drop(crowd);
        let more: Vec<_> = (0..60).map(|_| places.outbound(0, false).unwrap()).collect();
        assert_eq!(places.outbound(0, false).err(), Some(Full::Outbound { held: 70 }));
        assert_eq!(fill(&places, address(1)).len(), 10);
        drop((own, more));
        assert_eq!(places.connections(), 0);
    }

    #[test]
    fn what_is_not_complete_takes_places_by_its_bytes() {
        let places = places(100);
        let mut crowd: Vec<_> = (0..10).map(|_| places.client(address(1), 0, false).unwrap().0).collect();
        assert!(crowd.iter().all(|place| place.hold(Part::Message, 4096)));
        assert_eq!(places.clients.load(Ordering::Relaxed), 10);
        // 9 for each of ten, and no more.
        assert!(crowd.iter().all(|place| place.hold(Part::Message, 40_000)));
        assert!(!crowd[0].hold(Part::Message, 65_536));
        let (other, eviction) = places.client(address(2), 0, false).unwrap();
        assert!(crowd[0].is_of(&eviction.unwrap()));
        // A source that holds little may still complete what it sends.
        assert!(other.hold(Part::Message, 65_536));
        assert!(other.hold(Part::Message, 0));
        // A head that comes in records holds the bytes of both.
        let before = places.taken();
        assert!(other.hold(Part::Record, 16 * 1024) && other.hold(Part::Message, 8 * 1024));
        assert_eq!(places.taken() - before, 5);
        assert!(other.hold(Part::Record, 0) && other.hold(Part::Message, 0));
        assert_eq!(places.taken(), before);
        crowd.pop();
        assert_eq!(places.clients.load(Ordering::Relaxed), 91);
        crowd.clear();
        drop(other);
        assert_eq!(places.clients.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_identity_is_a_source_whatever_its_addresses_and_nothing_is_remembered_of_who_is_gone() {
        let places = places(10);
        let crowd: Vec<_> = (0..9).map(|last| places.client(address(last), 0, false).unwrap().0).collect();
        for place in &crowd {
            assert!(place.hold(Part::Message, 2 * BYTES) || places.clients.load(Ordering::Relaxed) >= 10);
            place.identify("DNS:a.b.cluster.local");
            assert!(place.hold(Part::Message, 0));
        }
        assert_eq!(places.sources().addresses.len(), 0);
        let (other, none) = places.client(address(1), 0, false).unwrap();
        assert!(none.is_none());
        let (another, eviction) = places.client(address(2), 0, false).unwrap();
        let eviction = eviction.unwrap();
        assert!(crowd[0].is_of(&eviction) && eviction.also_busy);
        drop((crowd, other, another, eviction));
        let mut sources = places.sources();
        sources.heaviest = None;
        assert!(sources.addresses.is_empty() && sources.identities.is_empty());
    }

    #[test]
    fn places_are_spread_over_the_workers() {
        let places = Arc::new(Places::new(3, PlaceLimits::of(100, None)));
        let spread: Vec<_> = (0..9).map(|_| places.client(address(1), 1, false).unwrap().0).collect();
        assert_eq!(spread[0].worker(), 1);
        assert!(places.loads.iter().all(|load| load.load(Ordering::Relaxed) == 3));
        assert_eq!(places.client(address(1), 2, true).unwrap().0.worker(), 2);
    }
}
