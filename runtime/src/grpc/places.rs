//! Limits the connections of a server, in all and per address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Minimum share of one address, as far as the total allows: more than any one client needs.
const FEWEST_PER_ADDRESS: usize = 16;

/// Maximum concurrent connections, handshakes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of all addresses.
    pub all: usize,
    /// Of one address.
    pub per_address: usize,
}

/// The slots of a server; clones share them.
#[derive(Clone, Debug)]
pub(super) struct ConnectionSlots {
    limits: ConnectionLimits,
    taken: Arc<Mutex<TakenSlots>>,
}

/// A slot, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    taken: Arc<Mutex<TakenSlots>>,
    address: IpAddr,
}

/// Why no slot is available.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoSlot {
    #[error("too many connections")]
    All,
    #[error("too many connections from its address")]
    Address,
}

impl NoSlot {
    /// The limit's label in metrics.
    pub(super) fn limit(&self) -> &'static str {
        match self {
            Self::All => "connections",
            Self::Address => "address-connections",
        }
    }
}

#[derive(Debug, Default)]
struct TakenSlots {
    all: usize,
    per_address: HashMap<IpAddr, usize>,
}

impl ConnectionLimits {
    /// `all` connections in total, and a quarter of them per address. A pod has one or two connections, but a node's
    /// address may stand for all of its pods, rarely more than 250. So one client cannot lock out others, and with the
    /// CA's default of 4,000 a node full of pods fits in four times over.
    pub fn of(all: usize) -> Self {
        Self { all, per_address: (all / 4).max(FEWEST_PER_ADDRESS).min(all) }
    }
}

impl ConnectionSlots {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    pub(super) fn take(&self, address: IpAddr) -> Result<ConnectionSlot, NoSlot> {
        let address = address.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.limits.all {
            return Err(NoSlot::All);
        }
        let from_there = taken.per_address.get(&address).copied().unwrap_or_default();
        // An address that holds more than what is left gets none of the last slots, so that a few addresses never lock
        // out all others.
        if from_there > self.limits.all - taken.all {
            return Err(NoSlot::All);
        }
        if from_there >= self.limits.per_address {
            return Err(NoSlot::Address);
        }
        taken.per_address.insert(address, from_there + 1);
        taken.all += 1;
        Ok(ConnectionSlot { taken: self.taken.clone(), address })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(count) = taken.per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.per_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
