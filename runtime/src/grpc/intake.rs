//! Limits the bytes that a server reads from unauthenticated peers: per connection, per address and in all, regardless
//! of the number of connections.
//!
//! A peer is authenticated by the end of its handshake; if it needs no certificate for that, by a call with a valid
//! token ([`Peer::has_proven`](super::Peer::has_proven)).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Limits on bytes read from unauthenticated peers. However few are left, an address that holds no more than what is
/// left gets some: addresses that hold many never take the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntakeLimits {
    /// Per connection. A ClientHello has 2 KiB, a certificate chain rarely more than 8, one of our calls 5.
    pub per_connection: usize,
    /// All connections of one address.
    pub per_address: usize,
    /// All connections.
    pub all: usize,
}

/// The bytes read so far; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Intake(Arc<SharedIntake>);

/// The bytes of one connection. Released on drop.
#[derive(Debug)]
pub(super) struct Meter {
    shared: Arc<SharedIntake>,
    address: IpAddr,
    reading: Mutex<Reading>,
}

/// A connection whose bytes are counted.
#[derive(Debug)]
pub(super) struct Metered {
    tcp: TcpStream,
    meter: Arc<Meter>,
}

/// The limit that a connection has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMuch {
    #[error("more than {0} bytes, and nothing proven")]
    Connection(usize),
    #[error("too many bytes of its address, and nothing proven")]
    Address,
    #[error("too many bytes of all connections that have proven nothing")]
    All,
}

#[derive(Debug)]
struct SharedIntake {
    limits: IntakeLimits,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    per_address: HashMap<IpAddr, usize>,
}

#[derive(Debug, Default)]
struct Reading {
    held: usize,
    /// Counting has stopped for good.
    is_over: bool,
}

impl Default for IntakeLimits {
    /// 128 KiB per connection, 4 MiB per address, 16 MiB in all.
    fn default() -> Self {
        Self { per_connection: 128 << 10, per_address: 4 << 20, all: 16 << 20 }
    }
}

impl TooMuch {
    /// The limit's label in metrics.
    pub(super) fn limit(self) -> &'static str {
        match self {
            Self::Connection(_) => "connection-bytes",
            Self::Address => "address-bytes",
            Self::All => "all-bytes",
        }
    }

    /// The limit that made a read fail, if that was the reason.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl Intake {
    pub(super) fn new(limits: IntakeLimits) -> Self {
        Self(Arc::new(SharedIntake { limits, held: Mutex::default() }))
    }

    pub(super) fn meter(&self, address: IpAddr) -> Arc<Meter> {
        let address = address.to_canonical();
        Arc::new(Meter { shared: self.0.clone(), address, reading: Mutex::default() })
    }
}

impl Meter {
    /// Counts bytes that were just read.
    fn count(&self, bytes: usize) -> Result<(), TooMuch> {
        let mut reading = self.reading();
        if reading.is_over {
            return Ok(());
        }
        let limits = self.shared.limits;
        let mut held = self.shared.held();
        let of_address = held.per_address.get(&self.address).copied().unwrap_or_default();
        if reading.held + bytes > limits.per_connection {
            return Err(TooMuch::Connection(limits.per_connection));
        }
        if of_address + bytes > limits.per_address {
            return Err(TooMuch::Address);
        }
        let left = limits.all.saturating_sub(held.all);
        if bytes > left || of_address > left {
            return Err(TooMuch::All);
        }
        reading.held += bytes;
        held.all += bytes;
        held.per_address.insert(self.address, of_address + bytes);
        Ok(())
    }

    /// The peer is authenticated: its bytes so far no longer count.
    pub(super) fn release(&self) {
        self.give_back(&mut self.reading());
    }

    /// Like [`Meter::release`], permanently.
    pub(super) fn end(&self) {
        let mut reading = self.reading();
        reading.is_over = true;
        self.give_back(&mut reading);
    }

    fn give_back(&self, reading: &mut Reading) {
        let bytes = std::mem::take(&mut reading.held);
        if bytes == 0 {
            return;
        }
        let mut held = self.shared.held();
        held.all = held.all.saturating_sub(bytes);
        if let Some(of_address) = held.per_address.get_mut(&self.address) {
            *of_address = of_address.saturating_sub(bytes);
            if *of_address == 0 {
                held.per_address.remove(&self.address);
            }
        }
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}

impl SharedIntake {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metered {
    pub(super) fn new(tcp: TcpStream, meter: Arc<Meter>) -> Self {
        Self { tcp, meter }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
        Poll::Ready(self.meter.count(buf.filled().len() - before).map_err(io::Error::other))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: IntakeLimits = IntakeLimits { per_connection: 10, per_address: 15, all: 20 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn bytes_are_bounded_for_a_connection_its_address_and_all() {
        let intake = Intake::new(LIMITS);
        let first = intake.meter(address("10.0.0.1"));
        assert_eq!(first.count(10), Ok(()));
        assert_eq!(first.count(1), Err(TooMuch::Connection(10)));
        let second = intake.meter(address("::ffff:10.0.0.1"));
        assert_eq!(second.count(5), Ok(()));
        assert_eq!(second.count(1), Err(TooMuch::Address));
        let other = intake.meter(address("10.0.0.2"));
        assert_eq!(other.count(3), Ok(()));
        // It holds more than what is left; an address that holds nothing gets what is left.
        assert_eq!(other.count(1), Err(TooMuch::All));
        let newcomer = intake.meter(address("10.0.0.3"));
        assert_eq!(newcomer.count(1), Ok(()));
        assert_eq!(newcomer.count(2), Err(TooMuch::All));
        // An authenticated peer frees its bytes; one that is authenticated for good is no longer counted.
        first.release();
        assert_eq!(other.count(5), Ok(()));
        first.end();
        assert_eq!(first.count(1000), Ok(()));
        drop((first, second, other, newcomer));
        let held = intake.0.held();
        assert!(held.all == 0 && held.per_address.is_empty(), "{held:?}");
    }
}
