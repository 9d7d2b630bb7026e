//! Options and operations of TCP sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::stream::Abort;

/// With these settings, a vanished peer is detected after two minutes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
/// Between two probes without an answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes after which the kernel ends the connection.
const KEEPALIVE_PROBES: u32 = 6;

/// Enables keepalive, to detect a vanished peer, on a connection that the sidecar opened.
pub(crate) fn keep_alive(io: &TcpStream) -> io::Result<()> {
    SockRef::from(io).set_tcp_keepalive(&keepalive())
}

/// Keepalive settings for all connections.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// Ends a connection by RST, which tells the peer that its data was not read.
pub(crate) fn reset(io: TcpStream) {
    io.abort();
}

/// The destination that the client dialled, before the kernel redirected the connection. For a connection that was not
/// redirected, the dialled address, or an error if the kernel does not track connections.
pub(crate) fn original_destination(io: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(io);
    // IPv4 connections on an IPv6 socket need the IPv4 option.
    let original = match io.local_addr()?.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4()?,
        IpAddr::V6(_) => socket.original_dst_v6()?,
    };
    original.as_socket().ok_or_else(|| io::Error::other("the original destination is not an IP address"))
}
