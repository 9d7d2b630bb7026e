//! Places for connections: limits their number, and shares them among clients.
//!
//! Clients' connections and the app's own are counted separately, so that neither takes the other's places. A client's
//! connection holds one place, and one more for each 4 KiB of unfinished data: a request's head, a handshake, a TLS
//! record. A source is an address, or the identity that a client has proven. While there is room, a source may hold any
//! number of places. When there is none, a new connection is accepted if another source would still hold more than its
//! own: that source makes room with the connections that have been idle longest, and with busy ones only if it holds
//! more than twice as much. So a source that holds many places never gets the last ones, and never keeps others out.

mod source;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::source::{PlaceSource, PlaceSources, SourceShare, share_of};

/// Unfinished bytes that are free, and that each extra place covers.
const PLACE_BYTES: usize = 4 * 1024;

/// File descriptors reserved for everything but connections.
const OTHER_FILES: u64 = 64;

/// How many places exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaceLimits {
    /// Places for clients' connections.
    pub(crate) clients: usize,
    /// Places for the app's own connections.
    pub(crate) outbound: usize,
    /// Places for both together.
    pub(crate) all: usize,
}

/// The places of all workers.
pub(crate) struct ConnectionPlaces {
    limits: PlaceLimits,
    clients: AtomicUsize,
    outbound: AtomicUsize,
    /// Connections per worker.
    loads: Box<[AtomicUsize]>,
    /// Places of connections that are ending.
    ending: AtomicUsize,
    sources: Mutex<PlaceSources>,
}

/// A connection's place; freed when dropped.
pub(crate) struct ConnectionPlace {
    places: Arc<ConnectionPlaces>,
    worker: usize,
    /// The source that holds it; none for the app's own connections.
    held: RefCell<Option<Arc<SourceShare>>>,
    /// Unfinished bytes, by [`UnfinishedPart`].
    unfinished: [Cell<usize>; 2],
    /// Further places, for those bytes.
    extra: Cell<usize>,
}

/// The kind of unfinished data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnfinishedPart {
    /// A request's head, or a message of a TLS handshake.
    Message,
    /// A TLS record after the handshake, and decrypted data that was not read yet.
    Record,
}

/// Connections of a source that must make room.
pub(crate) struct Eviction {
    places: Arc<ConnectionPlaces>,
    from: Arc<SourceShare>,
    /// The worker with most of the source's connections.
    pub(crate) worker: usize,
    pub(crate) count: usize,
    /// Whether busy connections must make room, too.
    pub(crate) also_busy: bool,
}

/// Why no place is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    #[error("too many connections: {held} places are taken, {by_source} of them by its address")]
    Clients { held: usize, by_source: usize },
    #[error("too many connections of the app's own: {held} are open")]
    Outbound { held: usize },
}

impl PlaceLimits {
    /// `limit` of each kind. A connection needs up to two files: the client's, and the one to the app. If fewer files
    /// may be open, an eighth of the possible connections is reserved for either kind.
    pub(crate) fn of(limit: usize, files: Option<u64>) -> Self {
        let possible = files.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES) / 2;
        let all = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
        let each = limit.min(all - all / 8).max(1);
        Self { clients: each, outbound: each, all }
    }

    /// Places beyond the limit that may be taken until those that make room have ended.
    fn overlap(self) -> usize {
        (self.clients / 256).clamp(1, 64)
    }

    /// Places that any source may hold for unfinished bytes, whatever others hold.
    fn guaranteed(self) -> usize {
        (self.clients / 64).max(32)
    }
}

impl ConnectionPlaces {
    /// Free places for this many workers.
    pub(crate) fn new(workers: usize, limits: PlaceLimits) -> Self {
        Self {
            limits,
            clients: AtomicUsize::new(0),
            outbound: AtomicUsize::new(0),
            loads: counts(workers),
            ending: AtomicUsize::new(0),
            sources: Mutex::default(),
        }
    }

    /// Number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    /// Places that clients hold.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Connections per worker.
    #[cfg(test)]
    pub(crate) fn loads(&self) -> impl Iterator<Item = usize> {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed))
    }

    /// A place for a client's connection, and which source must make room for it, if one must. `here` is the calling
    /// worker: it is preferred among equally busy ones, and mandatory if `only_here`.
    pub(crate) fn client(
        self: &Arc<Self>,
        source: IpAddr,
        here: usize,
        only_here: bool,
    ) -> Result<(ConnectionPlace, Option<Eviction>), NoPlace> {
        let mut sources = self.sources();
        let own = sources.addresses.get(&source).map_or(0, |held| held.places());
        let taken = self.clients.load(Ordering::Relaxed);
        let all = taken + self.outbound.load(Ordering::Relaxed);
        let excess =
            (taken + 1).saturating_sub(self.limits.clients).max((all + 1).saturating_sub(self.limits.all));
        let mut eviction = None;
        if excess > 0 {
            let full = NoPlace::Clients { held: taken, by_source: own };
            let heaviest = sources.heaviest().filter(|held| held.places() > own + 1).ok_or(full)?;
            if excess > self.limits.overlap() {
                return Err(full);
            }
            eviction = self.evict(heaviest, own, excess);
        }
        let held = share_of(&mut sources.addresses, source, || {
            SourceShare::new(PlaceSource::Address(source), self.loads.len())
        });
        Ok((self.place(Some(held), here, only_here), eviction))
    }

    /// A place for a connection that the app opens.
    pub(crate) fn outbound(
        self: &Arc<Self>,
        here: usize,
        only_here: bool,
    ) -> Result<ConnectionPlace, NoPlace> {
        let held = self.outbound.load(Ordering::Relaxed);
        let all = held + self.clients.load(Ordering::Relaxed);
        // Places that clients hold beyond their limit are about to be freed.
        if held >= self.limits.outbound || all >= self.limits.all + self.limits.overlap() {
            return Err(NoPlace::Outbound { held });
        }
        Ok(self.place(None, here, only_here))
    }

    /// Makes the source free places, unless enough connections are ending already.
    fn evict(self: &Arc<Self>, from: Arc<SourceShare>, own: usize, excess: usize) -> Option<Eviction> {
        if self.ending.load(Ordering::Relaxed) >= excess {
            return None;
        }
        let places = from.places();
        // More than needed now, so that many new connections do not each cause a search.
        let count = self.limits.overlap().min((places - own) / 2).max(1);
        self.ending.fetch_add(count, Ordering::Relaxed);
        let at = from.connections.iter().enumerate().max_by_key(|(_, count)| count.load(Ordering::Relaxed));
        let worker = at.map_or(0, |(worker, _)| worker);
        Some(Eviction { places: self.clone(), from, worker, count, also_busy: own * 2 < places })
    }

    /// Takes a place at the least busy worker.
    fn place(
        self: &Arc<Self>,
        held: Option<Arc<SourceShare>>,
        here: usize,
        only_here: bool,
    ) -> ConnectionPlace {
        let load = |(index, load): &(usize, &AtomicUsize)| (load.load(Ordering::Relaxed), *index != here);
        let workers = self.loads.iter().enumerate().filter(|(index, _)| !only_here || *index == here);
        let worker = workers.min_by_key(load).map_or(here, |(worker, _)| worker);
        let place = ConnectionPlace {
            places: self.clone(),
            worker,
            held: RefCell::new(held),
            unfinished: Default::default(),
            extra: Cell::new(0),
        };
        add(self.loads.get(worker), 1);
        add(Some(place.kind()), 1);
        if let Some(held) = &*place.held.borrow() {
            held.add(worker, 1);
        }
        place
    }

    /// Locked only when a connection opens, ends, or is identified.
    fn sources(&self) -> MutexGuard<'_, PlaceSources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionPlace {
    /// The worker that the connection belongs to.
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }

    /// Sets the number of unfinished bytes of this part. Returns `false` and changes nothing if there is no room for
    /// them.
    pub(crate) fn hold(&self, part: UnfinishedPart, bytes: usize) -> bool {
        let [unfinished, other] = match (part, &self.unfinished) {
            (UnfinishedPart::Message, [message, record]) => [message, record],
            (UnfinishedPart::Record, [message, record]) => [record, message],
        };
        if unfinished.get() == bytes {
            return true;
        }
        let held = self.held.borrow();
        let Some(held) = &*held else { return true };
        let (before, now) =
            (self.extra.get(), (bytes + other.get()).saturating_sub(PLACE_BYTES).div_ceil(PLACE_BYTES));
        if now > before {
            let more = now - before;
            let limits = self.places.limits;
            let has_room = self.places.clients.load(Ordering::Relaxed) + more <= limits.clients;
            if !has_room && held.places() + more > limits.guaranteed() {
                return false;
            }
            self.places.clients.fetch_add(more, Ordering::Relaxed);
            held.places.fetch_add(more, Ordering::Relaxed);
        } else if now < before {
            self.places.clients.fetch_sub(before - now, Ordering::Relaxed);
            held.places.fetch_sub(before - now, Ordering::Relaxed);
        }
        self.extra.set(now);
        unfinished.set(bytes);
        true
    }

    /// Moves the place from the client's address to its proven identity.
    pub(crate) fn identify(&self, identity: &str) {
        let mut own = self.held.borrow_mut();
        let Some(before) = own.take() else { return };
        let mut sources = self.places.sources();
        let held = match sources.identities.get(identity) {
            Some(held) => held.clone(),
            None => {
                let source = PlaceSource::Identity(identity.into());
                share_of(&mut sources.identities, identity.into(), || {
                    SourceShare::new(source, self.places.loads.len())
                })
            }
        };
        let places = 1 + self.extra.get();
        held.add(self.worker, places);
        before.leave(self.worker, places, &mut sources);
        *own = Some(held);
    }

    /// Whether the place belongs to the source that must make room.
    pub(crate) fn is_of(&self, eviction: &Eviction) -> bool {
        self.held.borrow().as_ref().is_some_and(|held| Arc::ptr_eq(held, &eviction.from))
    }

    /// The counter of clients' or of the app's connections.
    fn kind(&self) -> &AtomicUsize {
        match *self.held.borrow() {
            Some(_) => &self.places.clients,
            None => &self.places.outbound,
        }
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let places = 1 + self.extra.get();
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
    /// The source.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from.source {
            PlaceSource::Address(address) => address.fmt(f),
            PlaceSource::Identity(identity) => f.write_str(identity),
        }
    }
}

impl Drop for Eviction {
    fn drop(&mut self) {
        self.places.ending.fetch_sub(self.count, Ordering::Relaxed);
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
mod tests;
