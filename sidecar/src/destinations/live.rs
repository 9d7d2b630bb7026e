//! The destination of an open connection: the newest that the controller has sent, for as long as the connection lives.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Destinations, ResolvedDestination};

/// The destination behind an address, kept up to date.
pub(crate) struct LiveDestination {
    address: SocketAddr,
    destinations: Arc<Destinations>,
    state: RefCell<LiveState>,
}

struct LiveState {
    current: Arc<ResolvedDestination>,
    updates: watch::Receiver<Option<Arc<ResolvedDestination>>>,
}

impl LiveDestination {
    /// Follows an address from this destination on.
    pub(crate) fn new(
        destinations: Arc<Destinations>,
        address: SocketAddr,
        current: Arc<ResolvedDestination>,
    ) -> Self {
        let updates = destinations.follow(address);
        Self { address, destinations, state: RefCell::new(LiveState { current, updates }) }
    }

    /// The newest destination. Costs one atomic load unless it has changed.
    pub(crate) fn current(&self) -> Arc<ResolvedDestination> {
        let mut state = self.state.borrow_mut();
        match state.updates.has_changed() {
            Ok(false) => return state.current.clone(),
            Ok(true) => {}
            // It was forgotten in favour of other addresses: what was known stays good until there is an answer.
            Err(_) => state.updates = self.destinations.follow(self.address),
        }
        let newest = state.updates.borrow_and_update().clone();
        if let Some(newest) = newest {
            state.current = newest;
        }
        state.current.clone()
    }
}
