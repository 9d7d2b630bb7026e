//! Which worker takes a connection, and what becomes of one that none takes.

use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::warn;

use super::{Shared, Worker};
use crate::listener::{Accepted, Direction};
use crate::places::{Eviction, Full, Place};
use crate::socket;

/// Chooses who takes a connection.
pub(super) struct Dispatch {
    pub(super) here: Rc<Worker>,
    pub(super) index: usize,
    pub(super) peers: Vec<mpsc::UnboundedSender<Message>>,
    pub(super) shared: Arc<Shared>,
}

/// What one worker has for another.
pub(super) enum Message {
    /// A connection.
    Handoff(Handoff),
    /// Connections of its are to make room.
    Evict(Eviction),
}

/// A connection on its way to another worker.
pub(super) struct Handoff {
    pub(super) io: StdTcpStream,
    pub(super) peer: SocketAddr,
    pub(super) direction: Direction,
    pub(super) place: Place,
}

impl Dispatch {
    /// Gives a connection to the least busy worker, or ends it if there is no place for it or it belongs nowhere.
    pub(super) fn take(&self, accepted: Accepted) {
        let (io, peer, direction) = match accepted {
            Accepted::Connection(io, peer, direction) => (io, peer, direction),
            Accepted::Misdirected(io, peer, reason) => {
                self.here.context.refusals.misdirected(peer, &reason);
                return socket::reset(io);
            }
            Accepted::Failed => {
                self.shared.accept_errors.fetch_add(1, Ordering::Relaxed);
                return;
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
            Ok(io) => self.send(to, Message::Handoff(Handoff { io, peer, direction, place })),
            Err(error) => warn!(%error, "cannot hand a connection over"),
        }
    }

    fn shed(&self, io: TcpStream, peer: SocketAddr, direction: Direction, full: &Full) {
        self.shared.shed.fetch_add(1, Ordering::Relaxed);
        self.here.context.refusals.full(peer, direction, full);
        let totals = self.here.context.http.telemetry.totals();
        match full {
            Full::Clients { .. } => totals.no_place.add(1),
            Full::Outbound { .. } => totals.outbound_no_place.add(1),
        }
        socket::reset(io);
    }

    fn place(&self, peer: SocketAddr, direction: Direction) -> Result<Place, Full> {
        // While draining, other workers may have ended already.
        let is_draining = self.here.draining.get().is_some();
        let places = &self.shared.places;
        if let Direction::Outbound(_) = direction {
            return places.outbound(self.index, is_draining);
        }
        let (place, eviction) = places.client(peer.ip().to_canonical(), self.index, is_draining)?;
        match eviction {
            Some(eviction) if eviction.worker == self.index => self.here.evict(&eviction),
            Some(eviction) => self.send(eviction.worker, Message::Evict(eviction)),
            None => {}
        }
        Ok(place)
    }

    /// A worker that has ended takes nothing, and a connection ends with what is dropped here.
    fn send(&self, worker: usize, message: Message) {
        if let Some(target) = self.peers.get(worker) {
            let _ = target.send(message);
        }
    }
}
