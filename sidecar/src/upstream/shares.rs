//! How much of what all need one of them may have.
//!
//! What is held by one holder is at most three times what it leaves free. So a lone client may have three quarters of
//! everything, a second one three quarters of the rest, and the last place never goes to a client that holds many.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::backend::Endpoint;

use super::request_limit::RequestLimit;
use crate::connection_info::{ServedConnection, VerifiedCertificate};

/// A holder may have so many times what is free.
const TIMES_FREE: usize = 3;
/// Entries of holders that have no place, which stay for the next one: beyond them, at most as many as there are others.
const IDLE_ENTRIES: usize = 64;

/// The source of a request: the names in its client certificate, else its address.
#[derive(Clone)]
pub(super) enum RequestSource {
    Names(Rc<VerifiedCertificate>),
    Address(IpAddr),
    /// The copies of all requests together.
    Copies,
}

/// A place counts against the client and against the endpoint of its request.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Holder {
    RequestSource(RequestSource),
    Endpoint(Arc<Endpoint>),
}

/// Places for requests, and who holds how many.
#[derive(Default)]
pub(super) struct RequestShares {
    /// Places in all.
    taken: Cell<usize>,
    /// Places per holder. Entries of holders without any go on the next tick, or once there are many.
    holders: RefCell<HashMap<Holder, Places>>,
}

/// How many places a holder has. Shared with its [`Share`]s, so that it is looked up once for each.
type Places = Rc<Cell<usize>>;

/// One place of each of its holders, until it is dropped.
pub(super) struct Share {
    shares: Rc<RequestShares>,
    held: [Option<Places>; 2],
}

impl RequestShares {
    /// A place at this endpoint; `most`: places in all.
    pub(super) fn take(
        self: &Rc<Self>,
        source: &RequestSource,
        endpoint: &Arc<Endpoint>,
        most: usize,
    ) -> Result<Share, RequestLimit> {
        self.take_for(
            [
                (Some(Holder::RequestSource(source.clone())), RequestLimit::Client),
                (Some(Holder::Endpoint(endpoint.clone())), RequestLimit::App),
            ],
            most,
        )
    }

    /// A place; `most`: places in all.
    pub(super) fn take_one(
        self: &Rc<Self>,
        source: &RequestSource,
        most: usize,
    ) -> Result<Share, RequestLimit> {
        self.take_for(
            [(Some(Holder::RequestSource(source.clone())), RequestLimit::Client), (None, RequestLimit::App)],
            most,
        )
    }

    /// Places that are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Forgets holders without places. To be called on every tick.
    pub(super) fn sweep(&self) {
        Self::forget_idle(&mut self.holders.borrow_mut());
    }

    fn forget_idle(entries: &mut HashMap<Holder, Places>) {
        entries.retain(|_, places| places.get() > 0);
    }

    /// A place that counts for all of these holders, each with the limit that is reported if it holds too much.
    fn take_for(
        self: &Rc<Self>,
        holders: [(Option<Holder>, RequestLimit); 2],
        most: usize,
    ) -> Result<Share, RequestLimit> {
        let Some(free) = most.checked_sub(self.taken.get()).filter(|free| *free > 0) else {
            return Err(RequestLimit::App);
        };
        let mut entries = self.holders.borrow_mut();
        if entries.len() > IDLE_ENTRIES + 4 * self.taken.get() {
            Self::forget_idle(&mut entries);
        }
        let held = holders.map(|(holder, limit)| Some((entries.entry(holder?).or_default().clone(), limit)));
        for (places, limit) in held.iter().flatten() {
            // An app is what most of the places are for: it leaves an eighth to others.
            let times = if *limit == RequestLimit::App { 2 * TIMES_FREE + 1 } else { TIMES_FREE };
            if places.get() >= free.saturating_mul(times) {
                return Err(*limit);
            }
        }
        let held = held.map(|held| held.map(|(places, _)| places));
        for places in held.iter().flatten() {
            places.set(places.get() + 1);
        }
        self.taken.set(self.taken.get() + 1);
        Ok(Share { shares: self.clone(), held })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.taken.set(self.shares.taken.get() - 1);
        for places in self.held.iter().flatten() {
            places.set(places.get() - 1);
        }
    }
}

impl RequestSource {
    /// Who has opened this connection.
    pub(super) fn of(connection: &ServedConnection) -> Self {
        match connection {
            ServedConnection::Inbound(info) => match &info.client {
                Some(client) => Self::Names(client.clone()),
                None => Self::Address(info.peer.ip()),
            },
            ServedConnection::Outbound(info) => Self::Address(info.peer.ip()),
        }
    }
}

impl PartialEq for RequestSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Names(one), Self::Names(other)) => one.names == other.names,
            (Self::Address(one), Self::Address(other)) => one == other,
            (Self::Copies, Self::Copies) => true,
            _ => false,
        }
    }
}

impl Eq for RequestSource {}

impl Hash for RequestSource {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Names(certificate) => certificate.names.hash(state),
            Self::Address(address) => address.hash(state),
            Self::Copies => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::backend::Transport;

    use super::*;

    fn client(number: u8) -> RequestSource {
        RequestSource::Address(IpAddr::from([10, 0, 0, number]))
    }

    fn app(number: u16) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(([127, 0, 0, 1], 8000 + number).into(), Transport::Plain))
    }

    #[test]
    fn a_client_leaves_a_quarter_and_each_next_one_finds_room() {
        let shares = Rc::new(RequestShares::default());
        let mut held = Vec::new();
        let mut counts = Vec::new();
        for number in 0..4 {
            let before = held.len();
            let refused = loop {
                match shares.take_one(&client(number), 256) {
                    Ok(share) => held.push(share),
                    Err(limit) => break limit,
                }
            };
            assert_eq!(refused, RequestLimit::Client);
            counts.push(held.len() - before);
        }
        assert_eq!(counts, [192, 48, 12, 3]);
        held.truncate(191);
        assert!(shares.take_one(&client(0), 256).is_ok(), "what was given back is there again");
    }

    #[test]
    fn an_app_leaves_an_eighth_and_more_than_there_is_is_refused() {
        let shares = Rc::new(RequestShares::default());
        let mut held = Vec::new();
        let refused = (0..=255)
            .cycle()
            .map(|number| shares.take(&client(number), &app(0), 256))
            .find_map(|share| share.map(|share| held.push(share)).err());
        assert_eq!((refused, held.len()), (Some(RequestLimit::App), 224));
        assert!(shares.take(&client(1), &app(1), 256).is_ok());
        assert_eq!(shares.take(&client(1), &app(1), 224).err(), Some(RequestLimit::App));
        drop(held);
        shares.sweep();
        assert!(shares.holders.borrow().is_empty());
    }

    #[test]
    fn holders_without_places_are_forgotten() {
        let shares = Rc::new(RequestShares::default());
        let held: Vec<_> = (0..10).map(|number| shares.take_one(&client(number), 256).unwrap()).collect();
        for number in 0..1_000 {
            let source = RequestSource::Address(IpAddr::from([10, 1, (number >> 8) as u8, number as u8]));
            drop(shares.take_one(&source, 256).unwrap());
            assert!(shares.holders.borrow().len() <= IDLE_ENTRIES + 4 * held.len() + 1);
        }
        shares.sweep();
        assert_eq!(shares.holders.borrow().len(), held.len());
    }
}
