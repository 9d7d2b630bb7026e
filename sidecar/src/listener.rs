//! Where connections come in: sockets that listen, and the loop that takes connections from them and never ends by
//! an error.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
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
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_TIME)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
            _ = command.wait_for(|command| *command != Command::Serve) => break,
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
        Entrance::Fixed(listen) => dispatch.take(io, peer, *listen),
        Entrance::Redirected(redirected) => match redirected.destination(&io) {
            Ok(listen) => dispatch.take(io, canonical(peer), listen),
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
            Self::Redirected(redirected) => redirected.address,
        }
    }

    /// The same with the address that was bound.
    pub(crate) fn at(mut self, address: SocketAddr) -> Self {
        match &mut self {
            Self::Fixed(listen) => listen.address = address,
            Self::Redirected(redirected) => redirected.address = address,
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
