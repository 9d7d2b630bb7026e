//! Where a server is: the addresses that its name has.
//!
//! A name is resolved in the background when the server is first called, and again once the addresses are [`STALE_AFTER`] old;
//! meanwhile the known ones are used. A call that cannot wait for its look-up leaves the result for the next. The first address that can be reached is used until it cannot
//! be reached, which is gRPC's policy `pick_first`.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::ServerAddress;
use tokio::net::lookup_host;
use tokio::sync::Notify;

/// Addresses of this age are looked up again.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// A server.
pub(super) struct GrpcServer {
    address: ServerAddress,
    endpoints: RefCell<Vec<Arc<Endpoint>>>,
    /// The place of the endpoint that is used.
    picked: Cell<usize>,
    resolved_at: Cell<Instant>,
    is_refreshing: Cell<bool>,
    /// Wakes the calls that wait for the first endpoints, when a look-up has ended.
    looked_up: Notify,
    /// Why the last look-up failed; empty if it did not.
    failure: RefCell<String>,
    used: Cell<Instant>,
    /// Whether the last call failed, so that only a change is logged.
    pub(super) is_failing: Cell<bool>,
}

impl GrpcServer {
    pub(super) fn new(address: ServerAddress) -> Self {
        let now = Instant::now();
        let server = Self {
            address,
            endpoints: RefCell::default(),
            picked: Cell::new(0),
            resolved_at: Cell::new(now),
            is_refreshing: Cell::new(false),
            looked_up: Notify::new(),
            failure: RefCell::default(),
            used: Cell::new(now),
            is_failing: Cell::new(false),
        };
        if let ServerAddress::Address(address) = server.address {
            server.set(vec![address]);
        }
        server
    }

    /// When it was called last.
    pub(super) fn used(&self) -> Instant {
        self.used.get()
    }

    /// The authority of its requests.
    pub(super) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Waits until there are endpoints. The error says why there are none.
    pub(super) async fn resolve(self: &Rc<Self>) -> Result<(), String> {
        self.used.set(Instant::now());
        self.refresh_if_stale();
        if self.first().is_some() {
            return Ok(());
        }
        self.looked_up.notified().await;
        if self.first().is_some() { Ok(()) } else { Err(self.failure.borrow().clone()) }
    }

    /// The endpoint to try first.
    pub(super) fn first(&self) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.borrow();
        endpoints.get(self.picked.get()).or(endpoints.first()).cloned()
    }

    /// The endpoint to try after this one could not be reached, unless all have been tried.
    pub(super) fn after(&self, failed: &Endpoint, tried: usize) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.borrow();
        if tried >= endpoints.len() {
            return None;
        }
        let place = endpoints.iter().position(|endpoint| **endpoint == *failed).map_or(0, |place| place + 1);
        let place = place % endpoints.len();
        self.picked.set(place);
        endpoints.get(place).cloned()
    }

    async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = (self.address.host(), self.address.port());
        let addresses: Vec<_> = lookup_host((&*host, port)).await?.collect();
        if addresses.is_empty() {
            return Err(io::Error::other("it has no address"));
        }
        Ok(addresses)
    }

    /// Takes over addresses; the endpoint that is used stays the one, if it is still there.
    fn set(&self, addresses: Vec<SocketAddr>) {
        let picked = self.first();
        let new = |address| Arc::new(Endpoint::new(address, Transport::Plain));
        let endpoints: Vec<_> = addresses.into_iter().map(new).collect();
        let place = endpoints.iter().position(|endpoint| Some(endpoint) == picked.as_ref());
        self.picked.set(place.unwrap_or_default());
        self.resolved_at.set(Instant::now());
        *self.endpoints.borrow_mut() = endpoints;
    }

    fn refresh_if_stale(self: &Rc<Self>) {
        let is_fresh = matches!(self.address, ServerAddress::Address(_))
            || (self.resolved_at.get().elapsed() < STALE_AFTER && self.first().is_some());
        if is_fresh || self.is_refreshing.replace(true) {
            return;
        }
        let server = self.clone();
        tokio::task::spawn_local(async move {
            match server.look_up().await {
                Ok(addresses) => server.set(addresses),
                // The known addresses are used for as long again.
                Err(error) => {
                    tracing::debug!(server = %server.address, %error, "a name cannot be resolved");
                    server.resolved_at.set(Instant::now());
                    *server.failure.borrow_mut() = error.to_string();
                }
            }
            server.is_refreshing.set(false);
            server.looked_up.notify_waiters();
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn server(addresses: &[&str]) -> GrpcServer {
        let server = GrpcServer::new(ServerAddress::Name("opa".into(), 1));
        server.set(addresses.iter().map(|address| address.parse().unwrap()).collect());
        server
    }

    #[tokio::test]
    async fn a_look_up_that_takes_longer_than_a_call_leaves_its_result_for_the_next() {
        let calls = async {
            let server = Rc::new(GrpcServer::new(ServerAddress::Name("localhost".into(), 1)));
            assert_eq!(server.resolve().now_or_never(), None);
            while server.first().is_none() {
                tokio::task::yield_now().await;
            }
            assert_eq!(server.resolve().now_or_never(), Some(Ok(())));
        };
        tokio::task::LocalSet::new().run_until(calls).await;
    }

    #[test]
    fn an_endpoint_is_used_until_it_cannot_be_reached_and_each_is_tried_once() {
        let server = server(&["10.0.0.1:1", "10.0.0.2:1"]);
        let first = server.first().unwrap();
        let second = server.after(&first, 1).unwrap();
        assert_eq!(second.address.to_string(), "10.0.0.2:1");
        assert!(server.after(&second, 2).is_none());
        assert_eq!(
            server.first(),
            Some(second.clone()),
            "the next call begins with the one that was reached"
        );
        server.set(vec!["10.0.0.3:1".parse().unwrap(), second.address]);
        assert_eq!(server.first(), Some(second));
        server.set(vec!["10.0.0.3:1".parse().unwrap()]);
        assert_eq!(server.first().unwrap().address.to_string(), "10.0.0.3:1");
    }
}
