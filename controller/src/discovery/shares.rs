//! What the sidecars of one identity may take of a controller, over all of their streams and connections.
//!
//! Who holds the key of a meshed Pod may open as many streams as there are connections for, and name any address. So the
//! streams and destinations of an identity are counted together. Where one share is used up, the stream that has the most
//! gives way to one that has less: a second sidecar of an identity, or an attacker with its key, does not starve the
//! first, nor does one identity starve another.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_core::Identity;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;
use tracing::warn;

use crate::metrics::ControllerMetrics;
use crate::object::ObjectName;

/// How often one limit is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Limits of each source, and of all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShareLimits {
    /// Streams for one workload: the current one, and older ones that have not noticed that they ended.
    pub(crate) streams_of_workload: usize,
    /// Streams of one identity for workloads that have no policy, such as names that were made up.
    pub(crate) waiting_streams: usize,
    /// Destinations, backends and routes of one identity, over all of its streams.
    pub(crate) destinations_of_identity: usize,
    /// The same of all identities, counted for each stream that wants them.
    pub(crate) destinations: usize,
}

/// Which limit it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ShareLimit {
    StreamsOfWorkload,
    WaitingStreams,
    DestinationsOfIdentity,
    Destinations,
}

/// What is taken. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    limits: ShareLimits,
    metrics: ControllerMetrics,
    taken: Arc<Mutex<Taken>>,
}

/// What all streams hold.
#[derive(Debug, Default)]
struct Taken {
    identities: BTreeMap<Identity, TakenByIdentity>,
    destinations: usize,
    logged: BTreeMap<ShareLimit, Instant>,
}

/// What the streams of a service account hold.
#[derive(Debug)]
struct TakenByIdentity {
    streams: BTreeMap<u64, TakenByStream>,
    destinations: usize,
    /// One permit: see [`StreamShare::turn`].
    turns: Arc<Semaphore>,
}

/// What a stream holds.
#[derive(Debug)]
struct TakenByStream {
    workload: ObjectName,
    /// Whether it waits for a policy that is not there.
    is_waiting: bool,
    destinations: usize,
    ended: watch::Sender<Option<ShareLimit>>,
}

/// What one stream has taken. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct StreamShare {
    shares: Shares,
    identity: Identity,
    stream: u64,
    turns: Arc<Semaphore>,
    ended: watch::Receiver<Option<ShareLimit>>,
}

/// A stream's turn to work, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct StreamTurn(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Default for TakenByIdentity {
    fn default() -> Self {
        Self { streams: BTreeMap::new(), destinations: 0, turns: Arc::new(Semaphore::new(1)) }
    }
}

impl Default for ShareLimits {
    /// A destination outside the mesh takes at most half a KiB.
    fn default() -> Self {
        Self {
            streams_of_workload: 4,
            waiting_streams: 64,
            destinations_of_identity: 64 * 1024,
            destinations: 512 * 1024,
        }
    }
}

impl ShareLimit {
    /// A stable word for logs and metric labels.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::StreamsOfWorkload => "streams_of_workload",
            Self::WaitingStreams => "waiting_streams_of_identity",
            Self::DestinationsOfIdentity => "destinations_of_identity",
            Self::Destinations => "destinations",
        }
    }
}

impl fmt::Display for ShareLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StreamsOfWorkload => "the workload has newer streams, and no more than a few at a time",
            Self::WaitingStreams => "too many streams of this identity are for workloads that have no policy",
            Self::DestinationsOfIdentity => "the sidecars of this identity want too many destinations",
            Self::Destinations => "all sidecars together want too many destinations",
        })
    }
}

impl From<ShareLimit> for Status {
    fn from(limit: ShareLimit) -> Self {
        Self::resource_exhausted(limit.to_string())
    }
}

impl Shares {
    /// Nothing is taken yet.
    pub(crate) fn new(limits: ShareLimits, metrics: ControllerMetrics) -> Self {
        Self { limits, metrics, taken: Arc::default() }
    }

    /// A stream of an identity for a workload. Of several for one workload the oldest gives way.
    pub(crate) fn enter(
        &self,
        identity: &Identity,
        stream: u64,
        workload: &ObjectName,
        is_waiting: bool,
    ) -> Result<StreamShare, ShareLimit> {
        let mut taken = self.lock();
        let by_identity = taken.identities.entry(identity.clone()).or_default();
        let waiting = by_identity.streams.values().filter(|stream| stream.is_waiting).count();
        if is_waiting && waiting >= self.limits.waiting_streams {
            return Err(self.reached(&mut taken, identity, ShareLimit::WaitingStreams));
        }
        let of_workload: Vec<u64> = by_identity
            .streams
            .iter()
            .filter_map(|(id, stream)| (stream.workload == *workload).then_some(*id))
            .collect();
        let (sender, ended) = watch::channel(None);
        let turns = by_identity.turns.clone();
        by_identity.streams.insert(
            stream,
            TakenByStream { workload: workload.clone(), is_waiting, destinations: 0, ended: sender },
        );
        if let (Some(oldest), true) =
            (of_workload.first(), of_workload.len() >= self.limits.streams_of_workload)
        {
            let limit = self.reached(&mut taken, identity, ShareLimit::StreamsOfWorkload);
            taken.end(identity, *oldest, limit);
        }
        Ok(StreamShare { shares: self.clone(), identity: identity.clone(), stream, turns, ended })
    }

    /// Counts that a limit is reached, and logs it now and then.
    fn reached(&self, taken: &mut Taken, identity: &Identity, limit: ShareLimit) -> ShareLimit {
        self.metrics.limit_reached(limit.code());
        let now = Instant::now();
        let is_due = taken.logged.get(&limit).is_none_or(|last| now.duration_since(*last) >= LOG_INTERVAL);
        if is_due {
            taken.logged.insert(limit, now);
            warn!(%identity, limit = limit.code(), "{limit}");
        }
        limit
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamShare {
    /// Its workload has a policy.
    pub(crate) fn is_known(&self) {
        if let Some(stream) = self.shares.lock().stream(&self.identity, self.stream) {
            stream.is_waiting = false;
        }
    }

    /// Takes room for one more destination, backend or set of routes.
    pub(crate) fn take(&self) -> Result<(), ShareLimit> {
        let Shares { limits, .. } = self.shares;
        let mut taken = self.shares.lock();
        // Ended meanwhile: the stream learns it from `ended`.
        let Some(mine) = taken.stream(&self.identity, self.stream).map(|stream| stream.destinations) else {
            return Ok(());
        };
        let of_identity = |taken: &Taken, identity: &Identity| {
            taken.identities.get(identity).map_or(0, |by_identity| by_identity.destinations)
        };
        let ours = of_identity(&taken, &self.identity);
        if ours >= limits.destinations_of_identity {
            let limit = self.shares.reached(&mut taken, &self.identity, ShareLimit::DestinationsOfIdentity);
            let largest = taken.largest_stream(&self.identity);
            let Some((largest, _)) = largest.filter(|(_, count)| *count > mine + 1) else {
                return Err(limit);
            };
            taken.end(&self.identity, largest, limit);
        }
        if taken.destinations >= limits.destinations {
            let limit = self.shares.reached(&mut taken, &self.identity, ShareLimit::Destinations);
            let largest = taken.identities.iter().max_by_key(|(_, by_identity)| by_identity.destinations);
            let largest = largest.map(|(identity, _)| identity.clone());
            let ours = of_identity(&taken, &self.identity);
            let larger = largest.filter(|identity| of_identity(&taken, identity) > ours + 1);
            let victim = larger.and_then(|identity| Some((taken.largest_stream(&identity)?.0, identity)));
            let Some((stream, identity)) = victim else { return Err(limit) };
            taken.end(&identity, stream, limit);
        }
        taken.add(&self.identity, self.stream);
        Ok(())
    }

    /// Gives one back.
    pub(crate) fn give_back(&self) {
        let mut taken = self.shares.lock();
        let Some(stream) = taken.stream(&self.identity, self.stream) else { return };
        stream.destinations -= 1;
        if let Some(by_identity) = taken.identities.get_mut(&self.identity) {
            by_identity.destinations -= 1;
        }
        taken.destinations -= 1;
    }

    /// Waits for the stream's turn to do a piece of work. The streams of an identity take turns, so that however many it
    /// opens, those of others wait for one piece.
    pub(crate) async fn turn(&self) -> StreamTurn {
        // The semaphore is never closed.
        StreamTurn(self.turns.clone().acquire_owned().await.ok())
    }

    /// Waits until the stream has to give way.
    pub(crate) async fn ended(&mut self) -> ShareLimit {
        match self.ended.wait_for(Option::is_some).await.map(|limit| *limit) {
            Ok(Some(limit)) => limit,
            _ => std::future::pending().await,
        }
    }
}

impl Taken {
    /// What a stream holds; `None` if it has ended.
    fn stream(&mut self, identity: &Identity, stream: u64) -> Option<&mut TakenByStream> {
        self.identities.get_mut(identity)?.streams.get_mut(&stream)
    }

    /// The stream of an account that holds the most.
    fn largest_stream(&self, identity: &Identity) -> Option<(u64, usize)> {
        let streams = self.identities.get(identity)?.streams.iter();
        streams.map(|(id, stream)| (*id, stream.destinations)).max_by_key(|(_, count)| *count)
    }

    fn add(&mut self, identity: &Identity, stream: u64) {
        let Some(by_identity) = self.identities.get_mut(identity) else { return };
        let Some(stream) = by_identity.streams.get_mut(&stream) else { return };
        stream.destinations += 1;
        by_identity.destinations += 1;
        self.destinations += 1;
    }

    /// Forgets a stream and what it had.
    fn forget(&mut self, identity: &Identity, stream: u64) -> Option<TakenByStream> {
        let by_identity = self.identities.get_mut(identity)?;
        let stream = by_identity.streams.remove(&stream)?;
        by_identity.destinations -= stream.destinations;
        self.destinations -= stream.destinations;
        if by_identity.streams.is_empty() {
            self.identities.remove(identity);
        }
        Some(stream)
    }

    fn end(&mut self, identity: &Identity, stream: u64, limit: ShareLimit) {
        if let Some(stream) = self.forget(identity, stream) {
            stream.ended.send_replace(Some(limit));
        }
    }
}

impl Drop for StreamShare {
    fn drop(&mut self) {
        self.shares.lock().forget(&self.identity, self.stream);
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::TrustDomain;

    use super::*;

    const LIMITS: ShareLimits = ShareLimits {
        streams_of_workload: 2,
        waiting_streams: 3,
        destinations_of_identity: 100,
        destinations: 250,
    };

    fn identity(account: &str) -> Identity {
        Identity::new(TrustDomain::default(), "ns", account).unwrap()
    }

    fn shares() -> Shares {
        Shares::new(LIMITS, ControllerMetrics::default())
    }

    fn enter(shares: &Shares, account: &str, stream: u64, workload: &str) -> StreamShare {
        shares.enter(&identity(account), stream, &ObjectName::new("ns", workload), false).unwrap()
    }

    fn is_ended(share: &StreamShare) -> Option<ShareLimit> {
        *share.ended.borrow()
    }

    #[test]
    fn an_identity_s_second_sidecar_takes_nothing_from_the_first_that_has_less() {
        let shares = shares();
        let greedy = enter(&shares, "a", 1, "greedy");
        while greedy.take().is_ok() {}
        assert_eq!(shares.lock().destinations, 100);
        let modest = enter(&shares, "a", 2, "modest");
        modest.take().unwrap();
        assert_eq!(is_ended(&greedy), Some(ShareLimit::DestinationsOfIdentity));
        assert_eq!((is_ended(&modest), shares.lock().destinations), (None, 1));
        drop(greedy);
        assert_eq!(shares.lock().destinations, 1);
        modest.give_back();
        drop(modest);
        assert!(shares.lock().identities.is_empty() && shares.lock().destinations == 0);
    }

    #[test]
    fn a_greedy_stream_is_refused_itself_if_no_other_has_more() {
        let shares = shares();
        let (first, second) = (enter(&shares, "a", 1, "x"), enter(&shares, "a", 2, "y"));
        for _ in 0..50 {
            first.take().unwrap();
            second.take().unwrap();
        }
        assert_eq!(second.take(), Err(ShareLimit::DestinationsOfIdentity));
        assert_eq!((is_ended(&first), is_ended(&second)), (None, None));
    }

    #[test]
    fn many_identities_share_what_there_is_and_the_one_with_the_most_gives_way() {
        let shares = shares();
        let greedy: Vec<_> = (0..3).map(|i| enter(&shares, &format!("g{i}"), i, "x")).collect();
        for share in &greedy {
            while share.take().is_ok() {}
        }
        let before = shares.lock().destinations;
        assert!((200..=250).contains(&before), "{before}");
        let modest = enter(&shares, "modest", 9, "x");
        for _ in 0..20 {
            modest.take().unwrap();
        }
        assert_eq!(is_ended(&modest), None);
        assert!(shares.lock().destinations <= 250);
    }

    #[test]
    fn the_oldest_of_a_workload_s_streams_gives_way_and_names_that_are_made_up_are_few() {
        let shares = shares();
        let streams: Vec<_> = (0..3).map(|i| enter(&shares, "a", i, "x")).collect();
        assert_eq!(is_ended(&streams[0]), Some(ShareLimit::StreamsOfWorkload));
        assert_eq!((is_ended(&streams[1]), is_ended(&streams[2])), (None, None));
        let waiting = |stream, name: String| {
            shares
                .enter(&identity("a"), stream, &ObjectName::new("ns", name), true)
                .map_err(|limit| limit.code())
        };
        let made_up: Vec<_> = (10..13).map(|i| waiting(i, format!("m{i}")).unwrap()).collect();
        assert_eq!(waiting(20, "m20".into()).unwrap_err(), "waiting_streams_of_identity");
        made_up[0].is_known();
        waiting(21, "m21".into()).unwrap();
    }
}
