//! Connections to the app that wait for their next HTTP/1 request. One pool a worker: no locks.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::limits::Limits;

/// How long a connection may have waited for the worker's own events to be trusted on whether the app closed it. After
/// that the socket itself is asked.
pub(crate) const UNSURE_AFTER: Duration = Duration::from_millis(1);

/// A worker's idle connections, by the app's address.
pub struct Pool {
    idle: RefCell<HashMap<SocketAddr, Vec<Idle>>>,
    count: Cell<usize>,
    most: usize,
    longest: Duration,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: &Limits) -> Self {
        Self {
            idle: RefCell::default(),
            count: Cell::new(0),
            most: limits.upstream_idle_connections,
            longest: limits.upstream_idle,
        }
    }

    /// The connection to `app` that was used last and is still good, if there is one.
    pub(crate) fn checkout(&self, app: SocketAddr) -> Option<TcpStream> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&app)?;
        while let Some(connection) = connections.pop() {
            self.count.set(self.count.get() - 1);
            let waited = connection.since.elapsed();
            let is_good = || match waited < UNSURE_AFTER {
                true => is_quiet(&connection.stream),
                false => has_nothing_to_read(&connection.stream),
            };
            if waited < self.longest && is_good() {
                return Some(connection.stream);
            }
        }
        None
    }

    /// Keeps a connection for the next request. It must have nothing in flight, in either direction.
    pub(crate) fn put(&self, app: SocketAddr, stream: TcpStream) {
        if self.count.get() >= self.most || !is_quiet(&stream) {
            return;
        }
        self.count.set(self.count.get() + 1);
        self.idle.borrow_mut().entry(app).or_default().push(Idle { stream, since: Instant::now() });
    }

    /// Closes what has waited too long, and what the app has closed. To be called on every tick of the worker.
    pub fn sweep(&self, now: Instant) {
        let mut count = 0;
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| {
                now.saturating_duration_since(connection.since) < self.longest && is_quiet(&connection.stream)
            });
            count += connections.len();
            !connections.is_empty()
        });
        self.count.set(count);
    }

    /// How many connections wait.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// As [`is_quiet`], but asked of the kernel, for what happened since the worker last looked at its events.
fn has_nothing_to_read(stream: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let peeked = socket2::SockRef::from(stream).peek(&mut byte);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether the app has neither closed the connection nor sent anything that no request asked for.
fn is_quiet(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_connection_used_last_is_used_first_and_no_more_than_the_limit_are_kept() {
        let pool = Pool::new(&Limits { upstream_idle_connections: 2, ..Limits::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let mut far = Vec::new();
        let mut ports = Vec::new();
        for _ in 0..3 {
            let (near, end) = pair(&listener).await;
            ports.push(near.local_addr().unwrap().port());
            far.push(end);
            pool.put(app, near);
        }
        assert_eq!(pool.len(), 2);
        assert_eq!(pool.checkout(app).unwrap().local_addr().unwrap().port(), ports[1]);
        assert_eq!(pool.checkout(app).unwrap().local_addr().unwrap().port(), ports[0]);
        assert!(pool.checkout(app).is_none());
    }

    #[tokio::test]
    async fn a_connection_that_the_app_closed_or_wrote_to_or_that_is_too_old_is_not_used() {
        let pool = Pool::new(&Limits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let (closed, far) = pair(&listener).await;
        drop(far);
        closed.readable().await.unwrap();
        pool.put(app, closed);
        assert!(pool.is_empty());

        let (near, mut far) = pair(&listener).await;
        pool.put(app, near);
        far.write_all(b"surprise").await.unwrap();
        while !pool.is_empty() {
            tokio::task::yield_now().await;
            pool.sweep(Instant::now());
        }

        let (near, _far) = pair(&listener).await;
        pool.put(app, near);
        pool.sweep(Instant::now() + Limits::default().upstream_idle);
        assert!(pool.checkout(app).is_none());
    }
}
