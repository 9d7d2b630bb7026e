//! What stands behind the addresses that this workload dials: asked for when first dialled, kept in step while they are
//! used, forgotten after.
//!
//! The workers look addresses up, the control thread's policy stream fills them in. While there is no stream nothing is
//! forgotten: what was known stays good.

mod resolved;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_core::Destination;
use tokio::sync::{Notify, watch};

pub(crate) use resolved::{BalancedEndpoint, LoadSlot, ResolvedDestination};

/// The most addresses that are kept. More are made room for by what was used longest ago.
const MOST: usize = 4096;

/// An address that nobody has dialled for so long is forgotten.
const UNUSED_AFTER: Duration = Duration::from_secs(600);

/// Every address in use.
#[derive(Default)]
pub struct Destinations {
    state: Mutex<State>,
    news: Notify,
}

/// What is known of an address at this moment.
pub(crate) enum Lookup {
    Known(Arc<ResolvedDestination>),
    /// The controller is being asked.
    Asked(watch::Receiver<Option<Arc<ResolvedDestination>>>),
    /// The controller could not be asked a while ago, and still cannot.
    OutOfReach,
}

/// What the stream is to tell the controller.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscriptions {
    pub(crate) wanted: Vec<SocketAddr>,
    pub(crate) unwanted: Vec<SocketAddr>,
}

#[derive(Default)]
struct State {
    entries: HashMap<SocketAddr, Entry>,
    /// Addresses of which the stream has not told the controller yet.
    pending: BTreeSet<SocketAddr>,
    is_online: bool,
}

struct Entry {
    target: watch::Sender<Option<Arc<ResolvedDestination>>>,
    version: String,
    used: Instant,
    /// Somebody has waited for an answer in vain.
    is_given_up: bool,
}

impl Destinations {
    /// Looks an address up; one that is not there is asked for.
    pub(crate) fn look_up(&self, address: SocketAddr) -> Lookup {
        let now = Instant::now();
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&address) {
            entry.used = now;
            let known = entry.target.borrow().clone();
            return match known {
                Some(target) => Lookup::Known(target),
                None if entry.is_given_up => Lookup::OutOfReach,
                None => Lookup::Asked(entry.target.subscribe()),
            };
        }
        state.make_room();
        let (target, receiver) = watch::channel(None);
        let entry = Entry { target, version: String::new(), used: now, is_given_up: false };
        state.entries.insert(address, entry);
        state.enqueue(address);
        drop(state);
        self.news.notify_one();
        Lookup::Asked(receiver)
    }

    /// Nobody has answered in time: until there is a stream again, others need not wait as well.
    pub(crate) fn give_up(&self, address: SocketAddr) {
        let mut state = self.lock();
        let is_online = state.is_online;
        if let Some(entry) = state.entries.get_mut(&address) {
            entry.is_given_up = !is_online;
        }
    }

    /// There is a stream: what it is to ask for at its beginning.
    pub(crate) fn connect(&self) -> Vec<SocketAddr> {
        let mut state = self.lock();
        state.pending.clear();
        state.is_online = true;
        state.entries.values_mut().for_each(|entry| entry.is_given_up = false);
        state.entries.keys().copied().collect()
    }

    /// The stream is gone.
    pub(crate) fn disconnect(&self) {
        let mut state = self.lock();
        state.is_online = false;
        state.pending.clear();
    }

    /// Waits for something to tell the controller.
    pub(crate) async fn subscriptions(&self) -> Subscriptions {
        loop {
            let subscriptions = self.take_subscriptions();
            if subscriptions != Subscriptions::default() {
                return subscriptions;
            }
            self.news.notified().await;
        }
    }

    fn take_subscriptions(&self) -> Subscriptions {
        let mut state = self.lock();
        let pending = std::mem::take(&mut state.pending);
        let (wanted, unwanted) = pending.into_iter().partition(|address| state.entries.contains_key(address));
        Subscriptions { wanted, unwanted }
    }

    /// Takes over what the controller says. An address that is not wanted any more is passed over.
    pub(crate) fn set(&self, address: SocketAddr, version: String, destination: &Destination) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&address) else { return };
        entry.version = version;
        entry.is_given_up = false;
        entry.target.send_modify(|target| {
            *target = Some(Arc::new(ResolvedDestination::new(address, destination, target.as_deref())));
        });
    }

    /// Forgets what nobody uses. To be called now and then while there is a stream.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut state = self.lock();
        let is_unused = |entry: &Entry| now.saturating_duration_since(entry.used) > UNUSED_AFTER;
        let unused = state.entries.iter().filter(|(_, entry)| is_unused(entry)).map(|(address, _)| *address);
        for address in unused.collect::<Vec<_>>() {
            state.forget(address);
        }
        drop(state);
        self.news.notify_one();
    }

    /// Every address with what is known of it, sorted.
    pub(crate) fn view(&self) -> Vec<(SocketAddr, String, Option<Arc<ResolvedDestination>>)> {
        let state = self.lock();
        let entries = state.entries.iter();
        let mut view: Vec<_> = entries
            .map(|(address, entry)| (*address, entry.version.clone(), entry.target.borrow().clone()))
            .collect();
        view.sort_unstable_by_key(|(address, ..)| *address);
        view
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn make_room(&mut self) {
        if self.entries.len() >= MOST
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(a, _)| *a)
        {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, address: SocketAddr) {
        self.entries.remove(&address);
        self.enqueue(address);
    }

    /// Without a stream there is nothing to tell: a new one begins with all that is wanted.
    fn enqueue(&mut self, address: SocketAddr) {
        if self.is_online {
            self.pending.insert(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u16) -> SocketAddr {
        ([10, 0, (number >> 8) as u8, number as u8], 80).into()
    }

    fn is_known(destinations: &Destinations, number: u16) -> bool {
        matches!(destinations.look_up(address(number)), Lookup::Known(_))
    }

    #[test]
    fn an_address_is_asked_for_once_and_known_from_the_answer_on() {
        let destinations = Destinations::default();
        assert!(destinations.connect().is_empty());
        let Lookup::Asked(mut answer) = destinations.look_up(address(1)) else { panic!() };
        assert!(matches!(destinations.look_up(address(1)), Lookup::Asked(_)));
        assert_eq!(
            destinations.take_subscriptions(),
            Subscriptions { wanted: vec![address(1)], unwanted: vec![] }
        );
        assert_eq!(destinations.take_subscriptions(), Subscriptions::default());
        destinations.set(address(1), "v1".into(), &Destination::Passthrough);
        destinations.set(address(2), "v1".into(), &Destination::Passthrough);
        assert!(answer.borrow_and_update().is_some() && is_known(&destinations, 1));
        assert_eq!(destinations.view().len(), 1, "what nobody asked for is not kept");
        assert_eq!(destinations.connect(), [address(1)]);
    }

    #[test]
    fn without_a_stream_only_the_first_one_waits_and_nothing_known_is_lost() {
        let destinations = Destinations::default();
        destinations.connect();
        destinations.look_up(address(1));
        destinations.set(address(1), "v1".into(), &Destination::Passthrough);
        destinations.disconnect();
        assert!(matches!(destinations.look_up(address(2)), Lookup::Asked(_)));
        destinations.give_up(address(2));
        assert!(matches!(destinations.look_up(address(2)), Lookup::OutOfReach));
        assert!(is_known(&destinations, 1));
        assert_eq!(destinations.connect().len(), 2);
        assert!(
            matches!(destinations.look_up(address(2)), Lookup::Asked(_)),
            "there is somebody to ask again"
        );
        destinations.give_up(address(2));
        assert!(matches!(destinations.look_up(address(2)), Lookup::Asked(_)));
    }

    #[test]
    fn what_is_not_used_is_forgotten_and_the_table_is_bounded() {
        let destinations = Destinations::default();
        destinations.connect();
        destinations.look_up(address(1));
        destinations.take_subscriptions();
        destinations.sweep(Instant::now() + UNUSED_AFTER / 2);
        assert_eq!(destinations.take_subscriptions(), Subscriptions::default());
        destinations.sweep(Instant::now() + UNUSED_AFTER * 2);
        assert_eq!(
            destinations.take_subscriptions(),
            Subscriptions { wanted: vec![], unwanted: vec![address(1)] }
        );
        for number in 0..5000 {
            destinations.look_up(address(number));
        }
        assert_eq!(destinations.view().len(), MOST);
    }
}
