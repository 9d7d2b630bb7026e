//! A bound on the connections of a port that kubelet comes to, which nobody uses up by saying nothing.
//!
//! A connection *waits* until a request's head is complete, and again once its answer is made; in between it is *busy*.
//! Where there is no room for one more, the one that has waited longest is pushed out: kubelet, which says at once what
//! it wants, is never behind those who say nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The connections of one port. Clones share them.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Shared>);

/// Room for one connection, for as long as it lives. Clones share it.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Room>);

/// The connection has a request's head and makes its answer, for as long as this lives.
#[derive(Debug)]
pub struct Busy {
    connection: Connection,
    /// Not where it was pushed out just before.
    counts: bool,
}

#[derive(Debug)]
struct Shared {
    max: usize,
    state: Mutex<State>,
    /// One waits that did not, or one has ended.
    has_room: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    busy: usize,
    /// Longest first.
    waiting: VecDeque<(u64, CancellationToken)>,
}

#[derive(Debug)]
struct Room {
    shared: Arc<Shared>,
    id: u64,
    pushed_out: CancellationToken,
}

impl Connections {
    /// At most `max` at a time.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Shared { max, state: Mutex::default(), has_room: Notify::new() }))
    }

    /// The next connection of a listener.
    pub async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, Connection)> {
        let (stream, _) = listener.accept().await?;
        let connection = self.enter().await;
        // Of many that come at once, each is heard before it could be pushed out.
        tokio::task::yield_now().await;
        Ok((stream, connection))
    }

    /// Room for a connection that is there. Where there is none, the one that has waited longest is pushed out; if all
    /// are busy, this waits for one that is not.
    pub async fn enter(&self) -> Connection {
        loop {
            let has_room = self.0.has_room.notified();
            if let Some(connection) = self.try_enter() {
                return connection;
            }
            has_room.await;
        }
    }

    fn try_enter(&self) -> Option<Connection> {
        let mut state = self.0.state();
        if state.busy + state.waiting.len() >= self.0.max {
            state.waiting.pop_front()?.1.cancel();
        }
        state.last_id += 1;
        let (id, pushed_out) = (state.last_id, CancellationToken::new());
        state.waiting.push_back((id, pushed_out.clone()));
        Some(Connection(Arc::new(Room { shared: self.0.clone(), id, pushed_out })))
    }
}

impl Connection {
    /// Resolves once the connection has to make room for another one.
    pub async fn pushed_out(&self) {
        self.0.pushed_out.cancelled().await;
    }

    /// From a request's head to its answer.
    #[must_use]
    pub fn busy(&self) -> Busy {
        let mut state = self.0.shared.state();
        let counts = state.remove(self.0.id);
        state.busy += usize::from(counts);
        Busy { connection: self.clone(), counts }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.counts {
            let Room { shared, id, pushed_out } = &*self.connection.0;
            let mut state = shared.state();
            state.busy -= 1;
            state.waiting.push_back((*id, pushed_out.clone()));
            drop(state);
            shared.has_room.notify_one();
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.state().remove(self.id);
        self.shared.has_room.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it was waiting.
    fn remove(&mut self, id: u64) -> bool {
        let index = self.waiting.iter().position(|(waiting, _)| *waiting == id);
        index.and_then(|index| self.waiting.remove(index)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn is_pushed_out(connection: &Connection) -> bool {
        connection.0.pushed_out.is_cancelled()
    }

    #[tokio::test]
    async fn the_one_that_has_waited_longest_makes_room_and_a_busy_one_never() {
        let connections = Connections::new(2);
        let (first, second) = (connections.enter().await, connections.enter().await);
        let busy = first.busy();
        let third = connections.enter().await;
        assert!(is_pushed_out(&second) && !is_pushed_out(&first));
        // Its wait begins anew with its answer.
        drop(busy);
        let fourth = connections.enter().await;
        assert!(is_pushed_out(&third) && !is_pushed_out(&first));
        let fifth = connections.enter().await;
        assert!(is_pushed_out(&first) && !is_pushed_out(&fourth) && !is_pushed_out(&fifth));
        first.pushed_out().await;
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_busy_the_next_one_comes_in_once_one_is_not() {
        let connections = Connections::new(1);
        let first = connections.enter().await;
        let busy = first.busy();
        timeout(Duration::from_secs(9), connections.enter()).await.unwrap_err();
        drop(busy);
        let second = timeout(Duration::from_secs(9), connections.enter()).await.unwrap();
        assert!(is_pushed_out(&first));
        // What was pushed out counts no more, whatever it still does.
        drop(first.busy());
        drop(first);
        let _busy = second.busy();
        timeout(Duration::from_secs(9), connections.enter()).await.unwrap_err();
    }
}
