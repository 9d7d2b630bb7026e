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

use crate::stream::Abort;
use crate::worker::{Command, Dispatch};

/// An address to listen on, and what connections to it mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where to listen; port 0 lets the kernel choose.
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
    listen: Listen,
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
                dispatch.take(io, peer, listen);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                dispatch.count_accept_error();
                warn!(address = %listen.address, %error, "cannot accept connections; trying again");
                if spare.shed(&listener).await {
                    pause = FIRST_PAUSE;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    while let Some(Ok((io, peer))) = listener.accept().now_or_never() {
        dispatch.take(io, peer, listen);
    }
}

/// Ends a connection by RST: the peer learns at once that nobody has read what it sent.
pub(crate) fn reset(io: TcpStream) {
    io.abort();
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
