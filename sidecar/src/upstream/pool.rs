//! Connections that wait for their next request. One pool a worker: no locks.
//!
//! An endpoint may have half of all. Once the pool is full, the endpoint with the most makes room for others. Where a
//! backend has limits, requests wait for a connection in turn ([`LimitedEndpoint`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_core::backend::{Endpoint, Transport};

use super::place::{ConnectionTurn, Http1Place, LimitedEndpoint};
use super::request_limit::RequestLimit;
use crate::limits::Limits;

/// How long a connection may have waited for the worker's own events to be trusted on whether the upstream closed it.
/// After that the socket itself is asked.
pub(crate) const UNSURE_AFTER: Duration = Duration::from_millis(1);

/// How long an idle connection to another sidecar is kept: much shorter than that sidecar keeps it (`--idle-timeout`), and
/// longer than one to an app, because it costs a handshake.
const IDLE_PEER: Duration = Duration::from_secs(60);

/// A worker's idle connections of one kind, by endpoint.
pub(super) struct Pool<C> {
    idle: RefCell<HashMap<Arc<Endpoint>, Vec<Idle<C>>>>,
    /// Of all endpoints together.
    count: Cell<usize>,
    /// [`Limits::upstream_idle_connections`].
    most: usize,
    /// [`Limits::upstream_idle`], for apps and servers outside the mesh.
    longest: Duration,
    /// Endpoints whose backend has limits.
    limited: RefCell<HashMap<Arc<Endpoint>, Rc<LimitedEndpoint>>>,
    /// [`Limits::upstream_queue`].
    patience: Duration,
}

/// A connection that can wait in a pool.
pub(super) trait Reusable {
    /// What it is good for after it has waited so long.
    fn fitness(&mut self, waited: Duration) -> Fitness;

    /// Its place, if its backend has limits.
    fn place(&mut self) -> Option<&mut Http1Place>;
}

/// What a connection is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    /// For the next request.
    Ready,
    /// For a later one: the rest of a request that was answered early is still on its way.
    Busy,
    /// For nothing.
    Dead,
}

/// A connection that waits.
struct Idle<C> {
    connection: C,
    since: Instant,
}

impl<C: Reusable> Pool<C> {
    /// An empty pool.
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            idle: RefCell::default(),
            count: Cell::new(0),
            most: limits.upstream_idle_connections,
            longest: limits.upstream_idle,
            limited: RefCell::default(),
            patience: limits.upstream_queue,
        }
    }

    /// The connection to an endpoint that was used last and is still good, for one request. `None` if there is none, or
    /// others wait for one: [`Pool::turn`].
    pub(super) fn checkout(&self, endpoint: &Arc<Endpoint>) -> Result<Option<C>, RequestLimit> {
        if self.limited(endpoint).is_some_and(|limited| limited.has_waiting()) {
            return Ok(None);
        }
        self.take_idle(endpoint).map(|connection| self.begin(endpoint, connection)).transpose()
    }

    /// Waits until a request has a connection, or a new one may be opened for it.
    pub(super) async fn turn(&self, endpoint: &Arc<Endpoint>) -> Result<ConnectionTurn<C>, RequestLimit> {
        let Some(limited) = self.limited(endpoint) else { return Ok(ConnectionTurn::Open(None)) };
        match limited.turn(self.patience, || self.take_idle(endpoint)).await? {
            ConnectionTurn::Idle(connection) => self.begin(endpoint, connection).map(ConnectionTurn::Idle),
            open @ ConnectionTurn::Open(_) => Ok(open),
        }
    }

    /// A request begins on a connection. If it may not, the connection is kept for another.
    pub(super) fn begin(&self, endpoint: &Arc<Endpoint>, mut connection: C) -> Result<C, RequestLimit> {
        match connection.place().map_or(Ok(()), Http1Place::begin) {
            Ok(()) => Ok(connection),
            Err(limit) => {
                self.put(endpoint, connection);
                Err(limit)
            }
        }
    }

    /// What is counted at an endpoint; `None`: its backend has no limits.
    fn limited(&self, endpoint: &Arc<Endpoint>) -> Option<Rc<LimitedEndpoint>> {
        let usage = endpoint.usage.as_ref()?;
        let mut limited = self.limited.borrow_mut();
        Some(limited.entry(endpoint.clone()).or_insert_with(|| LimitedEndpoint::new(usage)).clone())
    }

    /// The connection to an endpoint that was used last and is still good, if there is one.
    fn take_idle(&self, endpoint: &Arc<Endpoint>) -> Option<C> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(endpoint)?;
        let mut at = connections.len();
        while let Some(last) = at.checked_sub(1) {
            at = last;
            let fitness = connections.get_mut(at)?.fitness(Instant::now(), self.longest(endpoint));
            if fitness != Fitness::Busy {
                self.count.set(self.count.get() - 1);
                let Idle { connection, .. } = connections.remove(at);
                if fitness == Fitness::Ready {
                    return Some(connection);
                }
            }
        }
        None
    }

    /// Keeps a connection for another request.
    pub(super) fn put(&self, endpoint: &Arc<Endpoint>, mut connection: C) {
        if let Some(place) = connection.place() {
            place.end();
        }
        if fitness(&mut connection, Duration::ZERO) == Fitness::Dead {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let has = idle.get(endpoint).map_or(0, Vec::len);
        if has >= self.most.div_ceil(2) {
            return;
        }
        if self.count.get() < self.most {
            self.count.set(self.count.get() + 1);
        } else if !make_room(&mut idle, has) {
            return;
        }
        idle.entry(endpoint.clone()).or_default().push(Idle { connection, since: Instant::now() });
        drop(idle);
        if let Some(limited) = self.limited(endpoint) {
            limited.became_idle();
        }
    }

    /// Closes what has waited too long, and what the upstream has closed. To be called on every tick of the worker.
    pub(super) fn sweep(&self, now: Instant) {
        let mut count = 0;
        self.idle.borrow_mut().retain(|endpoint, connections| {
            let longest = self.longest(endpoint);
            connections.retain_mut(|idle| {
                let waited = now.saturating_duration_since(idle.since);
                // What is sure to the worker's events is enough here.
                waited < longest && fitness(&mut idle.connection, Duration::ZERO) != Fitness::Dead
            });
            count += connections.len();
            !connections.is_empty()
        });
        self.count.set(count);
        self.limited.borrow_mut().retain(|_, limited| {
            limited.look_again();
            Rc::strong_count(limited) > 1
        });
    }

    /// How long a connection to this endpoint may wait.
    fn longest(&self, endpoint: &Endpoint) -> Duration {
        match endpoint.transport {
            Transport::Mesh(_) | Transport::MeshOneOf(_) => IDLE_PEER,
            Transport::Plain | Transport::Tls(_) => self.longest,
        }
    }

    /// How many connections wait.
    pub(super) fn len(&self) -> usize {
        self.count.get()
    }
}

impl<C: Reusable> Idle<C> {
    /// [`Fitness::Dead`] once it has waited for `longest`.
    fn fitness(&mut self, now: Instant, longest: Duration) -> Fitness {
        let waited = now.saturating_duration_since(self.since);
        if waited < longest { fitness(&mut self.connection, waited) } else { Fitness::Dead }
    }
}

/// What a connection is good for that has waited so long.
fn fitness<C: Reusable>(connection: &mut C, waited: Duration) -> Fitness {
    let is_spent = connection.place().is_some_and(|place| place.connection().is_spent());
    if is_spent { Fitness::Dead } else { connection.fitness(waited) }
}

/// Closes the connection that has waited longest at the endpoint with the most; `false` if that has no more than one that
/// has `has`. Each endpoint is looked at: the pool is full, and what wants a place has cost a new connection.
fn make_room<C>(idle: &mut HashMap<Arc<Endpoint>, Vec<Idle<C>>>, has: usize) -> bool {
    let Some(largest) = idle.values_mut().max_by_key(|connections| connections.len()) else { return false };
    let makes_room = largest.len() > has + 1;
    if makes_room {
        largest.remove(0);
    }
    makes_room
}

#[cfg(test)]
mod tests;
