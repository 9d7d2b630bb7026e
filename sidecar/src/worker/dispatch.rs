//! Assigns accepted connections to workers, and resets those that cannot be accepted.

use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::warn;

use super::{SharedByWorkers, Worker};
use crate::listener::{Accepted, Direction};
use crate::places::{ConnectionPlace, Eviction, NoPlace};
use crate::socket;

/// Assigns accepted connections.
pub(super) struct Dispatch {
    pub(super) here: Rc<Worker>,
    pub(super) index: usize,
    pub(super) peers: Vec<mpsc::UnboundedSender<WorkerMessage>>,
    pub(super) shared: Arc<SharedByWorkers>,
}

/// A message from one worker to another.
pub(super) enum WorkerMessage {
    /// A connection to serve.
    Handoff(Handoff),
    /// Connections of the worker must make room.
    Evict(Eviction),
}

/// An accepted connection on its way to another worker.
pub(super) struct Handoff {
    pub(super) io: StdTcpStream,
    pub(super) peer: SocketAddr,
    pub(super) direction: Direction,
    pub(super) place: ConnectionPlace,
}

impl Dispatch {
    /// Passes a connection to the least busy worker, or resets it if no place is free or its destination is invalid.
    pub(super) fn take(&self, accepted: Accepted) {
        let (io, peer, direction) = match accepted {
            Accepted::Connection(io, peer, direction) => (io, peer, direction),
            Accepted::Misdirected(io, peer, reason) => {
                self.here.context.refusals.misdirected(peer, &reason);
                return socket::reset(io);
            }
        };
        let place = match self.place(peer, direction) {
            Ok(place) => place,
            Err(full) => return self.shed(io, peer, direction, &full),
        };
        if place.worker() == self.index {
            return self.here.serve(io, peer, direction, place);
        }
        let to = place.worker();
        match io.into_std() {
            Ok(io) => self.send(to, WorkerMessage::Handoff(Handoff { io, peer, direction, place })),
            Err(error) => warn!(%error, "cannot hand a connection over"),
        }
    }

    /// Resets a connection for which no place is free.
    fn shed(&self, io: TcpStream, peer: SocketAddr, direction: Direction, full: &NoPlace) {
        self.here.context.refusals.full(peer, direction, full);
        let totals = self.here.context.http.telemetry.totals();
        match full {
            NoPlace::Clients { .. } => totals.no_place.add(1),
            NoPlace::Outbound { .. } => totals.outbound_no_place.add(1),
        }
        socket::reset(io);
    }

    /// Takes a place for a connection; makes others end if necessary.
    fn place(&self, peer: SocketAddr, direction: Direction) -> Result<ConnectionPlace, NoPlace> {
        // While draining, other workers may have ended already.
        let is_draining = self.here.draining.get().is_some();
        let places = &self.shared.places;
        if let Direction::Outbound(_) = direction {
            return places.outbound(self.index, is_draining);
        }
        let (place, eviction) = places.client(peer.ip().to_canonical(), self.index, is_draining)?;
        match eviction {
            Some(eviction) if eviction.worker == self.index => self.here.evict(&eviction),
            Some(eviction) => self.send(eviction.worker, WorkerMessage::Evict(eviction)),
            None => {}
        }
        Ok(place)
    }

    /// If the worker has ended, the message is dropped, and a connection in it is closed.
    fn send(&self, worker: usize, message: WorkerMessage) {
        if let Some(target) = self.peers.get(worker) {
            let _ = target.send(message);
        }
    }
}
