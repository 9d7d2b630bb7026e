//! Where connections come in: sockets that listen, and the loop that takes connections from them and never ends by
//! an error.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::warn;

use crate::redirected::Redirected;
use crate::stream::Abort;
use crate::worker::{Command, Dispatch};

/// An address to listen on, and where its connections go.
#[derive(Clone, Debug)]
pub enum Entrance {
    /// To one port of the app.
    Fixed(Listen),
    /// To the port that the client dialled before the kernel redirected its connection here.
    Redirected(Redirected),
    /// Out, to one destination.
    FixedOutbound(FixedOutbound),
    /// Out, to what the app dialled before the kernel redirected its connection here.
    RedirectedOutbound(Redirected),
}

/// Where the app connects instead of to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedOutbound {
    /// Where to listen; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// What the app is taken to have dialled.
    pub destination: SocketAddr,
}

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the app.
    Inbound(Listen),
    /// From the app, to this destination.
    Outbound(SocketAddr),
}

/// Where a connection came in, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// What the client dialled. Before there are connections: where to listen; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// The pod's port, by which the policy is looked up.
    pub port: u16,
    /// Where the app listens.
    pub app: SocketAddr,
}

/// Connections that the kernel completes and keeps while nobody takes them.
const BACKLOG: i32 = 4096;

/// A peer that has vanished without a word is noticed after two minutes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

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
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Notices when the peer of a connection of ours has vanished.
pub(crate) fn keep_alive(io: &TcpStream) -> io::Result<()> {
    SockRef::from(io).set_tcp_keepalive(&keepalive())
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// Takes connections until the workers are to stop; those that the kernel has completed by then are taken as well.
pub(crate) async fn accept(
    listener: TcpListener,
    entrance: Entrance,
    dispatch: Rc<Dispatch>,
    mut command: watch::Receiver<Command>,
) {
    let mut spare = Spare::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // What is still in flight may need others: the app's way out stays open until the worker ends.
            _ = command.wait_for(|command| *command != Command::Serve), if !entrance.is_outbound() => break,
        };
        match accepted {
            Ok((io, peer)) => {
                pause = FIRST_PAUSE;
                admit(io, peer, &entrance, &dispatch);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                dispatch.count_accept_error();
                warn!(address = %entrance.address(), %error, "cannot accept connections; trying again");
                if spare.shed(&listener).await {
                    pause = FIRST_PAUSE;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    while let Some(Ok((io, peer))) = listener.accept().now_or_never() {
        admit(io, peer, &entrance, &dispatch);
    }
}

/// Gives a connection on, unless nobody can tell where it belongs.
fn admit(io: TcpStream, peer: SocketAddr, entrance: &Entrance, dispatch: &Dispatch) {
    match entrance {
        Entrance::Fixed(listen) => dispatch.take(io, peer, Way::Inbound(*listen)),
        Entrance::Redirected(redirected) => match redirected.destination(&io) {
            Ok(listen) => dispatch.take(io, canonical(peer), Way::Inbound(listen)),
            Err(error) => dispatch.refuse(io, canonical(peer), &error),
        },
        Entrance::FixedOutbound(outbound) => dispatch.take(io, peer, Way::Outbound(outbound.destination)),
        Entrance::RedirectedOutbound(redirected) => match redirected.dialled(&io) {
            Ok(dialled) => dispatch.take(io, canonical(peer), Way::Outbound(dialled)),
            Err(error) => dispatch.refuse(io, canonical(peer), &error),
        },
    }
}

/// A client of IPv4 that a socket of IPv6 has taken is one of IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Ends a connection by RST: the peer learns at once that nobody has read what it sent.
pub(crate) fn reset(io: TcpStream) {
    io.abort();
}

impl Entrance {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Fixed(listen) => listen.address,
            Self::Redirected(redirected) | Self::RedirectedOutbound(redirected) => redirected.address,
            Self::FixedOutbound(outbound) => outbound.address,
        }
    }

    /// Whether it is for what the app itself dials.
    pub(crate) fn is_outbound(&self) -> bool {
        matches!(self, Self::FixedOutbound(_) | Self::RedirectedOutbound(_))
    }

    /// The same with the address that was bound.
    pub(crate) fn at(mut self, address: SocketAddr) -> Self {
        match &mut self {
            Self::Fixed(listen) => listen.address = address,
            Self::Redirected(redirected) | Self::RedirectedOutbound(redirected) => {
                redirected.address = address;
            }
            Self::FixedOutbound(outbound) => outbound.address = address,
        }
        self
    }
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
            reset(io);
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
