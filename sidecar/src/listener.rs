//! Where connections come in: sockets that listen, and the loop that takes connections from them and never ends by
//! an error.

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

pub(crate) use config::Direction;
pub use config::{FixedOutbound, InboundTarget, Listener};
pub use redirected::{Misdirected, Redirected};

/// What came in.
pub(crate) enum Accepted {
    /// A connection, and where it goes.
    Connection(TcpStream, SocketAddr, Direction),
    /// One that belongs nowhere.
    Misdirected(TcpStream, SocketAddr, Misdirected),
    /// None can be accepted for now.
    Failed,
}

/// Connections that the kernel completes and keeps while nobody takes them.
const BACKLOG: i32 = 4096;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Opens a listening socket. What is set here holds for every connection taken from it: Linux hands it on.
pub(crate) fn bind(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // All addresses means those of IPv4 as well, whatever net.ipv6.bindv6only says.
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

/// Hands connections on until `stop` is done; those that the kernel has completed by then are handed on as well. A way
/// out stays open: what is still in flight may need others.
pub(crate) async fn accept(
    socket: TcpListener,
    listener: Listener,
    stop: impl Future<Output = ()>,
    hand_on: impl Fn(Accepted),
) {
    let mut stop = pin!(stop);
    let mut spare = Spare::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = &mut stop, if !listener.is_outbound() => break,
        };
        match accepted {
            Ok((io, peer)) => {
                pause = FIRST_PAUSE;
                hand_on(listener.direct(io, peer));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                hand_on(Accepted::Failed);
                warn!(address = %listener.address(), %error, "cannot accept connections; trying again");
                if spare.shed(&socket).await {
                    pause = FIRST_PAUSE;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    while let Some(Ok((io, peer))) = socket.accept().now_or_never() {
        hand_on(listener.direct(io, peer));
    }
}

impl Listener {
    /// Where a connection goes.
    fn direct(&self, io: TcpStream, peer: SocketAddr) -> Accepted {
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

/// A client of IPv4 that a socket of IPv6 has taken is one of IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A file descriptor kept back for the time when there are none left: with it, connections can still be taken and
/// ended, and their clients need not wait for nothing.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Ends what waits; whether there was anything.
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

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
