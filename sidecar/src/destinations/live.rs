//! The destination of an open connection: the newest that the controller has sent, for as long as the connection lives.

use std::cell::RefCell;
use std::sync::Arc;

use tidegate_core::destination::DestinationKey;
use tokio::sync::watch;

use super::{Destinations, ResolvedDestination};

/// The destination behind an address, or behind a host at it, kept up to date.
pub(crate) struct LiveDestination {
    key: DestinationKey,
    destinations: Arc<Destinations>,
    state: RefCell<LiveState>,
}

struct LiveState {
    current: Arc<ResolvedDestination>,
    updates: watch::Receiver<Option<Arc<ResolvedDestination>>>,
}

impl LiveDestination {
    /// Follows a key from this destination on.
    pub(crate) fn new(
        destinations: Arc<Destinations>,
        key: DestinationKey,
        current: Arc<ResolvedDestination>,
    ) -> Self {
        let updates = destinations.follow(&key);
        Self { key, destinations, state: RefCell::new(LiveState { current, updates }) }
    }

    /// What it is looked up by.
    pub(crate) fn key(&self) -> &DestinationKey {
        &self.key
    }

    /// Where it is looked up.
    pub(crate) fn destinations(&self) -> &Arc<Destinations> {
        &self.destinations
    }

    /// The newest destination. Costs one atomic load unless it has changed.
    pub(crate) fn current(&self) -> Arc<ResolvedDestination> {
        let mut state = self.state.borrow_mut();
        match state.updates.has_changed() {
            Ok(false) => return state.current.clone(),
            Ok(true) => {}
            // It was forgotten in favour of other addresses: what was known stays good until there is an answer.
            Err(_) => state.updates = self.destinations.follow(&self.key),
        }
        let newest = state.updates.borrow_and_update().clone();
        if let Some(newest) = newest {
            state.current = newest;
        }
        state.current.clone()
    }
}
