//! The hosts that the requests of one connection are for, where hosts tell connections apart.

use std::cell::RefCell;
use std::sync::Arc;

use tidegate_core::destination::{DestinationKey, RequestedHost};

use super::{LiveDestination, Lookup, ResolvedDestination};

/// The most hosts of one connection whose destinations are at hand without a look-up. Connections with more are rare: a client
/// keeps one for each host.
const MOST_AT_HAND: usize = 8;

/// The destinations of the hosts that the requests of a connection have named so far.
#[derive(Default)]
pub(crate) struct LiveHosts {
    at_hand: RefCell<Vec<LiveHost>>,
}

struct LiveHost {
    /// As requests spell it.
    authority: Box<[u8]>,
    live: LiveDestination,
}

/// What is known about the host of a request.
pub(crate) enum HostLookup {
    /// Where the request goes.
    Known(Arc<ResolvedDestination>),
    /// It names no host.
    Unnamed,
    /// The controller has to be asked.
    Unknown(PendingHost),
}

/// A host that the controller has to be asked about.
pub(crate) struct PendingHost {
    authority: Box<[u8]>,
    pub(crate) key: DestinationKey,
}

impl LiveHosts {
    /// The newest destination of the host that a request names, at the address that `connection` leads to. Neither allocates nor
    /// locks for a host that is at hand.
    pub(crate) fn current(&self, authority: &[u8], connection: &LiveDestination) -> HostLookup {
        let at_hand = self.at_hand.borrow();
        if let Some(host) = at_hand.iter().find(|host| *host.authority == *authority) {
            return HostLookup::Known(host.live.current());
        }
        drop(at_hand);
        let Some(host) = RequestedHost::of_authority(authority) else { return HostLookup::Unnamed };
        let key = DestinationKey { host: Some(host), ..connection.key().clone() };
        let pending = PendingHost { authority: authority.into(), key };
        match connection.destinations().look_up(&pending.key) {
            Lookup::Known(target) => {
                self.add(pending, connection, target.clone());
                HostLookup::Known(target)
            }
            Lookup::Asked(_) | Lookup::OutOfReach => HostLookup::Unknown(pending),
        }
    }

    /// Keeps the destination of a host at hand.
    pub(crate) fn add(
        &self,
        PendingHost { authority, key }: PendingHost,
        connection: &LiveDestination,
        target: Arc<ResolvedDestination>,
    ) {
        let live = LiveDestination::new(connection.destinations().clone(), key, target);
        let mut at_hand = self.at_hand.borrow_mut();
        if at_hand.len() >= MOST_AT_HAND {
            at_hand.remove(0);
        }
        at_hand.push(LiveHost { authority, live });
    }
}
