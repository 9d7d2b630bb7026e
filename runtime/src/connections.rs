//! Limits the connections of a port that kubelet uses, fairly between source addresses.
//!
//! A connection is *waiting* until a request's head is complete, and again once its response is done; in between it is
//! *busy*. If there is no room for a new connection, the source with the most connections loses one, provided it has
//! more than the new connection's source: the one that has waited longest, or else the one that has been busy longest.
//! If the new connection's source itself has the most, it loses the connection that has waited longest; if all of its
//! connections are busy, the new one is refused. So kubelet always gets through, whatever other sources hold.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// The response to a client when the port is full.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 39\r\ncontent-type: text/plain\r\n\
    connection: close\r\n\r\ntoo many connections from your address\n";

/// The connections of one port. Clones share them.
#[derive(Clone, Debug)]
pub struct Connections(Arc<SharedConnections>);

/// A slot for one connection, held for its lifetime. Clones share it.
#[derive(Clone, Debug)]
pub struct AdmittedConnection(Arc<AdmittedSlot>);

/// Marks the connection as busy while this value lives.
#[derive(Debug)]
pub struct Busy(AdmittedConnection);

#[derive(Debug)]
struct SharedConnections {
    max: usize,
    state: Mutex<ConnectionTable>,
}

#[derive(Debug, Default)]
struct ConnectionTable {
    last_id: u64,
    /// In order of waiting or busy time, longest first.
    entries: Vec<ConnectionEntry>,
}

#[derive(Debug)]
struct ConnectionEntry {
    id: u64,
    source: IpAddr,
    is_busy: bool,
    pushed_out: CancellationToken,
}

#[derive(Debug)]
struct AdmittedSlot {
    shared: Arc<SharedConnections>,
    id: u64,
    pushed_out: CancellationToken,
}

impl Connections {
    /// At most `max` connections at a time.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(SharedConnections { max, state: Mutex::default() }))
    }

    /// Accepts the next connection for which there is room. Others are refused with a response.
    pub async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, AdmittedConnection)> {
        loop {
            let (stream, peer) = listener.accept().await?;
            // Let existing connections read first: an unread request makes a connection busy.
            tokio::task::yield_now().await;
            if let Some(connection) = self.enter(peer.ip()) {
                return Ok((stream, connection));
            }
            debug!(%peer, "too many connections from its address");
            // Closing with an unread request would send a RST, which discards the response. Do not wait for either.
            let _ = stream.try_read(&mut [0; 2048]);
            let _ = stream.try_write(REFUSAL);
        }
    }

    /// A slot for an accepted connection; `None` if its source has the most connections and all of them are busy.
    pub fn enter(&self, source: IpAddr) -> Option<AdmittedConnection> {
        let source = source.to_canonical();
        let mut state = self.0.state();
        if state.entries.len() >= self.0.max {
            let index = state.to_push_out(source)?;
            state.entries.remove(index).pushed_out.cancel();
        }
        state.last_id += 1;
        let (id, pushed_out) = (state.last_id, CancellationToken::new());
        state.entries.push(ConnectionEntry { id, source, is_busy: false, pushed_out: pushed_out.clone() });
        Some(AdmittedConnection(Arc::new(AdmittedSlot { shared: self.0.clone(), id, pushed_out })))
    }
}

impl AdmittedConnection {
    /// Resolves once the connection must make room for another.
    pub async fn pushed_out(&self) {
        self.0.pushed_out.cancelled().await;
    }

    /// Marks the time from a request's head to its response.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.set_busy(true);
        Busy(self.clone())
    }

    /// Does nothing for a connection that was pushed out.
    fn set_busy(&self, is_busy: bool) {
        let mut state = self.0.shared.state();
        if let Some(mut entry) = state.remove(self.0.id) {
            entry.is_busy = is_busy;
            state.entries.push(entry);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set_busy(false);
    }
}

impl Drop for AdmittedSlot {
    fn drop(&mut self) {
        self.shared.state().remove(self.id);
    }
}

impl SharedConnections {
    fn state(&self) -> MutexGuard<'_, ConnectionTable> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionTable {
    fn remove(&mut self, id: u64) -> Option<ConnectionEntry> {
        let index = self.entries.iter().position(|entry| entry.id == id)?;
        Some(self.entries.remove(index))
    }

    /// The connection that makes room for a new one.
    fn to_push_out(&self, newcomer: IpAddr) -> Option<usize> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for entry in &self.entries {
            *counts.entry(entry.source).or_default() += 1;
        }
        let own = counts.get(&newcomer).copied().unwrap_or_default();
        let most = counts.values().copied().max().unwrap_or_default();
        let find = |is_busy: bool| {
            self.entries.iter().position(|entry| {
                let gives = if most > own {
                    counts.get(&entry.source) == Some(&most)
                } else {
                    entry.source == newcomer
                };
                gives && entry.is_busy == is_busy
            })
        };
        find(false).or_else(|| find(true).filter(|_| most > own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn is_pushed_out(connection: &AdmittedConnection) -> bool {
        connection.0.pushed_out.is_cancelled()
    }

    #[tokio::test]
    async fn the_one_that_has_waited_longest_makes_room_and_a_busy_one_never() {
        let connections = Connections::new(2);
        let enter = || connections.enter(address(1)).unwrap();
        let (first, second) = (enter(), enter());
        let busy = first.busy();
        let third = enter();
        assert!(is_pushed_out(&second) && !is_pushed_out(&first));
        // Its waiting time restarts after its response.
        drop(busy);
        let fourth = enter();
        assert!(is_pushed_out(&third) && !is_pushed_out(&first));
        let fifth = enter();
        assert!(is_pushed_out(&first) && !is_pushed_out(&fourth) && !is_pushed_out(&fifth));
        first.pushed_out().await;
    }

    #[test]
    fn where_all_of_a_source_are_busy_its_next_one_is_refused_until_one_is_not() {
        let connections = Connections::new(1);
        let enter = || connections.enter(address(1));
        let first = enter().unwrap();
        let busy = first.busy();
        assert!(enter().is_none());
        drop(busy);
        let second = enter().unwrap();
        assert!(is_pushed_out(&first));
        // A connection that was pushed out no longer counts, whatever it still does.
        drop(first.busy());
        drop(first);
        let _busy = second.busy();
        assert!(enter().is_none());
    }

    #[test]
    fn a_source_that_holds_the_most_makes_room_for_others_also_by_what_is_busy() {
        let connections = Connections::new(4);
        let crowd: Vec<_> = (0..4).map(|_| connections.enter(address(1)).unwrap()).collect();
        let busy: Vec<_> = crowd.iter().map(AdmittedConnection::busy).collect();
        // In any spelling of the address.
        let kubelet = connections.enter("::ffff:10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(crowd.iter().map(is_pushed_out).collect::<Vec<_>>(), [true, false, false, false]);
        let second = connections.enter(address(2)).unwrap();
        assert_eq!(crowd.iter().map(is_pushed_out).collect::<Vec<_>>(), [true, true, false, false]);
        // Both have the same number now, and each can only displace its own.
        assert!(connections.enter(address(1)).is_none());
        let third = connections.enter(address(2)).unwrap();
        assert!(is_pushed_out(&kubelet) && !is_pushed_out(&second) && !is_pushed_out(&third));
        assert_eq!(crowd.iter().map(is_pushed_out).collect::<Vec<_>>(), [true, true, false, false]);
        drop(busy);
    }

    #[test]
    fn among_those_with_the_most_the_longest_wait_makes_room() {
        let connections = Connections::new(3);
        let enter = |last| connections.enter(address(last)).unwrap();
        let (first, second, third) = (enter(1), enter(2), enter(3));
        let _busy = first.busy();
        let fourth = enter(4);
        assert!(is_pushed_out(&second));
        let _fifth = enter(5);
        assert!(is_pushed_out(&third) && !is_pushed_out(&first) && !is_pushed_out(&fourth));
    }
}
