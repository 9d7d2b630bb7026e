//! The memory budget of requests, reserved before a body is read.
//!
//! An address may hold as much as it leaves free (the dynamic threshold of Choudhury and Hahne, 1998): a single address
//! gets half of the total, two get a third each, and there is always room for an address that holds nothing. A request
//! that does not fit waits behind other requests of its own address only.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The budget; clones share it.
#[derive(Clone, Debug)]
pub(super) struct BodyMemory(Arc<Mutex<Ledger>>);

/// A request's reservation; released on drop.
#[derive(Debug)]
pub(super) struct BodyGrant {
    memory: BodyMemory,
    address: IpAddr,
    bytes: usize,
}

/// The sums behind the budget. An address without reservations has no entry, so that the map is bounded by the requests
/// in flight.
#[derive(Debug)]
struct Ledger {
    all: usize,
    taken: usize,
    of: HashMap<IpAddr, usize>,
    /// In order of arrival.
    waiting: VecDeque<Waiting>,
}

/// A request in the queue; the receiver of `grant` is dropped with it.
#[derive(Debug)]
struct Waiting {
    address: IpAddr,
    bytes: usize,
    grant: oneshot::Sender<BodyGrant>,
}

impl BodyMemory {
    /// A budget of this many bytes.
    pub(super) fn new(all: usize) -> Self {
        let ledger = Ledger { all, taken: 0, of: HashMap::new(), waiting: VecDeque::new() };
        Self(Arc::new(Mutex::new(ledger)))
    }

    /// Reserves bytes for a request from `address`, or waits until they are free. Dropping the future leaves the queue.
    pub(super) async fn take(&self, address: IpAddr, bytes: usize) -> BodyGrant {
        let address = address.to_canonical();
        let waiting = {
            let mut ledger = self.lock();
            // Cancelled requests leave the queue.
            ledger.waiting.retain(|waiting| !waiting.grant.is_closed());
            let is_behind = ledger.waiting.iter().any(|waiting| waiting.address == address);
            if !is_behind && ledger.fits(address, bytes) {
                ledger.take(address, bytes);
                None
            } else {
                let (grant, granted) = oneshot::channel();
                ledger.waiting.push_back(Waiting { address, bytes, grant });
                Some(granted)
            }
        };
        let Some(granted) = waiting else { return self.grant(address, bytes) };
        match granted.await {
            Ok(grant) => grant,
            // The queue lives as long as `self`.
            Err(_) => std::future::pending().await,
        }
    }

    fn grant(&self, address: IpAddr, bytes: usize) -> BodyGrant {
        BodyGrant { memory: self.clone(), address, bytes }
    }

    /// Serves waiting requests, each address in order.
    fn serve_waiting(&self) {
        let mut ready = Vec::new();
        {
            let mut ledger = self.lock();
            let mut blocked = HashSet::new();
            for waiting in std::mem::take(&mut ledger.waiting) {
                if waiting.grant.is_closed() {
                    continue;
                }
                if !blocked.contains(&waiting.address) && ledger.fits(waiting.address, waiting.bytes) {
                    ledger.take(waiting.address, waiting.bytes);
                    ready.push(waiting);
                } else {
                    blocked.insert(waiting.address);
                    ledger.waiting.push_back(waiting);
                }
            }
        }
        for Waiting { address, bytes, grant } in ready {
            // A request that was just cancelled drops the grant, which releases it.
            let _ = grant.send(self.grant(address, bytes));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BodyGrant {
    /// Changes the size of the reservation. Never waits, because a response's memory is already allocated.
    pub(super) fn resize(&mut self, bytes: usize) {
        let mut ledger = self.memory.lock();
        ledger.free(self.address, self.bytes);
        ledger.take(self.address, bytes);
        drop(ledger);
        let is_less = bytes < self.bytes;
        self.bytes = bytes;
        if is_less {
            self.memory.serve_waiting();
        }
    }
}

impl Drop for BodyGrant {
    fn drop(&mut self) {
        self.memory.lock().free(self.address, self.bytes);
        self.memory.serve_waiting();
    }
}

impl Ledger {
    /// Whether an address may reserve so many bytes more: with them it holds no more than is free before.
    fn fits(&self, address: IpAddr, bytes: usize) -> bool {
        let held = self.of.get(&address).copied().unwrap_or_default();
        held + bytes <= self.all.saturating_sub(self.taken)
    }

    fn take(&mut self, address: IpAddr, bytes: usize) {
        self.taken += bytes;
        *self.of.entry(address).or_default() += bytes;
    }

    /// Returns bytes that [`Ledger::take`] has counted.
    fn free(&mut self, address: IpAddr, bytes: usize) {
        self.taken -= bytes;
        if let Some(held) = self.of.get_mut(&address) {
            *held -= bytes;
            if *held == 0 {
                self.of.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Taking<'a> = Pin<Box<dyn Future<Output = BodyGrant> + 'a>>;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn taking(memory: &BodyMemory, last: u8, bytes: usize) -> Taking<'_> {
        Box::pin(memory.take(address(last), bytes))
    }

    fn poll(taking: &mut Taking<'_>) -> Option<BodyGrant> {
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(grant) => Some(grant),
            Poll::Pending => None,
        }
    }

    #[test]
    fn an_address_has_as_much_as_it_leaves_free() {
        let memory = BodyMemory::new(100);
        let mut grants = Vec::new();
        for (last, most) in [(1, 5), (2, 3), (3, 1)] {
            let before = grants.len();
            while let Some(grant) = poll(&mut taking(&memory, last, 10)) {
                grants.push(grant);
            }
            assert_eq!(grants.len() - before, most, "address {last}");
        }
        assert!(
            poll(&mut taking(&memory, 4, 10)).is_some(),
            "there is room for an address that holds nothing"
        );
    }

    #[test]
    fn what_waits_is_served_in_its_address_s_order_and_delays_no_other_address() {
        let memory = BodyMemory::new(100);
        let held = poll(&mut taking(&memory, 1, 50)).unwrap();
        let (mut large, mut small) = (taking(&memory, 1, 40), taking(&memory, 1, 1));
        assert!(poll(&mut large).is_none());
        assert!(poll(&mut small).is_none(), "it would fit, and is behind the large one");
        let other = poll(&mut taking(&memory, 2, 20)).unwrap();
        drop(held);
        let large = poll(&mut large).unwrap();
        assert!(poll(&mut small).is_none(), "40 held, 40 free");
        drop(other);
        assert!(poll(&mut small).is_some());
        drop(large);
    }

    #[test]
    fn one_that_gives_up_leaves_nothing_behind() {
        let memory = BodyMemory::new(100);
        let mut held = poll(&mut taking(&memory, 1, 50)).unwrap();
        let mut gone = taking(&memory, 1, 40);
        assert!(poll(&mut gone).is_none());
        drop(gone);
        let mut next = taking(&memory, 1, 40);
        assert!(poll(&mut next).is_none());
        held.resize(10);
        assert!(poll(&mut next).is_some());
        drop(next);
        drop(held);
        let ledger = memory.lock();
        assert_eq!((ledger.taken, ledger.of.len(), ledger.waiting.len()), (0, 0, 0));
    }
}
