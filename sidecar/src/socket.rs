//! What is asked of TCP sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::stream::Abort;

/// A peer that has vanished without a word is noticed after two minutes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Notices when the peer of a connection of ours has vanished.
pub(crate) fn keep_alive(io: &TcpStream) -> io::Result<()> {
    SockRef::from(io).set_tcp_keepalive(&keepalive())
}

/// Settings by which a peer that has vanished is noticed.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// Ends a connection by RST: the peer learns at once that nobody has read what it sent.
pub(crate) fn reset(io: TcpStream) {
    io.abort();
}

/// What a connection's client dialled, before the kernel redirected it. For one that was not redirected it is what was
/// dialled as well, or an error where the kernel does not track connections.
pub(crate) fn original_destination(io: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(io);
    // A socket of IPv6 that holds a connection of IPv4 is to be asked in the words of IPv4.
    let original = match io.local_addr()?.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4()?,
        IpAddr::V6(_) => socket.original_dst_v6()?,
    };
    original.as_socket().ok_or_else(|| io::Error::other("the original destination is no IP address"))
}
