//! Listening sockets, and the accept loop, which no error ends.

mod config;
mod redirected;

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::socket;

pub(crate) use config::{Direction, FixedOutbound, InboundTarget, Listener};
pub(crate) use redirected::{Misdirected, Redirected};

/// A connection that was accepted.
pub(crate) enum Accepted {
    /// With its peer's address, and where it goes.
    Connection(TcpStream, SocketAddr, Direction),
    /// With an invalid original destination.
    Misdirected(TcpStream, SocketAddr, Misdirected),
}

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// The first pause after an accept that failed; it doubles with each further failure.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// The longest one.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Opens a listening socket. On Linux, accepted connections inherit the options that are set here.
pub(crate) fn bind(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // All addresses includes IPv4, whatever net.ipv6.bindv6only is.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&socket::keepalive())?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections until `stop` is done, including those that the kernel has completed by then. Outbound listeners
/// stay open: requests in flight may need further connections.
pub(crate) async fn accept(
    socket: TcpListener,
    listener: Listener,
    stop: impl Future<Output = ()>,
    deliver: impl Fn(Accepted),
) {
    let mut stop = pin!(stop);
    let mut reserve = ReserveDescriptor::new();
    let mut pause = MIN_PAUSE;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = &mut stop, if !listener.is_outbound() => break,
        };
        match accepted {
            Ok((io, peer)) => {
                pause = MIN_PAUSE;
                deliver(listener.route(io, peer));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(address = %listener.address(), %error, "cannot accept connections; trying again");
                if reserve.shed(&socket).await {
                    pause = MIN_PAUSE;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
    while let Some(Ok((io, peer))) = socket.accept().now_or_never() {
        deliver(listener.route(io, peer));
    }
}

impl Listener {
    /// Determines where a connection goes.
    fn route(&self, io: TcpStream, peer: SocketAddr) -> Accepted {
        let (peer, direction) = match self {
            Self::Fixed(target) => (peer, Ok(Direction::Inbound(*target))),
            Self::FixedOutbound(outbound) => (peer, Ok(Direction::Outbound(outbound.destination))),
            Self::Redirected(redirected) => {
                (canonical(peer), redirected.destination(&io).map(Direction::Inbound))
            }
            Self::RedirectedOutbound(redirected) => {
                (canonical(peer), redirected.dialled(&io).map(Direction::Outbound))
            }
        };
        match direction {
            Ok(direction) => Accepted::Connection(io, peer, direction),
            Err(misdirected) => Accepted::Misdirected(io, peer, misdirected),
        }
    }
}

/// Converts IPv4-mapped IPv6 addresses to IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A reserve file descriptor. When the process runs out, it is closed so that pending connections can be accepted and
/// closed at once instead of hanging.
struct ReserveDescriptor(Option<File>);

impl ReserveDescriptor {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Accepts and resets pending connections; returns whether there were any.
    async fn shed(&mut self, listener: &TcpListener) -> bool {
        let mut any = false;
        while self.0.take().is_some() {
            let accepted = listener.accept().now_or_never();
            let Some(Ok((io, _))) = accepted else { break };
            any = true;
            socket::reset(io);
            self.0 = File::open("/dev/null").ok();
            tokio::task::yield_now().await;
        }
        if self.0.is_none() {
            *self = Self::new();
        }
        any
    }
}

/// Whether an accept error concerns only the connection that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
