//! One question to a server.
//!
//! The sidecar takes the connection at once, dials the server, and passes bytes and ends on; if there is no server, it resets
//! the connection. So a connection of which nothing is sent but its end tells: a server that has got the end closes the
//! connection, or has spoken first; without a server there is a reset. Nothing is said that the server would have to
//! understand.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::WaitTarget;

/// For one answer: longer than a sidecar tries endpoints that are silent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of an answer's head that are read.
const LONGEST: usize = 16 * 1024;

/// What came instead of an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// Its name may not be known, or nothing listens there; without a sidecar in between.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// A sidecar does so if it reaches no server.
    #[error("the connection was reset: no server is there, or the mesh does not let this pod in")]
    Reset,
    #[error("the connection has failed: {0}")]
    Failed(#[from] io::Error),
    #[error("no answer within {} s, and no end: if the server waits for a request, use http://", PATIENCE.as_secs())]
    Silent,
    #[error("closed without an answer")]
    Closed,
    #[error("its answer is not HTTP")]
    NotHttp,
    #[error("status {0}")]
    Status(u16),
}

/// Asks once.
pub(super) async fn ask(target: &WaitTarget) -> Result<(), NoAnswer> {
    timeout(PATIENCE, exchange(target)).await.map_err(|_| NoAnswer::Silent)?
}

async fn exchange(target: &WaitTarget) -> Result<(), NoAnswer> {
    let mut stream =
        TcpStream::connect((target.host(), target.port())).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionReset => NoAnswer::Reset,
            _ => NoAnswer::Connect(error),
        })?;
    let Some(path) = &target.path else {
        stream.shutdown().await.map_err(NoAnswer::of)?;
        stream.read(&mut [0; 1]).await.map_err(NoAnswer::of)?;
        return Ok(());
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: tidegate-wait\r\naccept: */*\r\nconnection: close\r\n\r\n",
        target.authority
    );
    stream.write_all(request.as_bytes()).await.map_err(NoAnswer::of)?;
    match status(&mut stream).await? {
        200..=399 => Ok(()),
        status => Err(NoAnswer::Status(status)),
    }
}

/// The status of an answer; the rest of it is not read.
async fn status(stream: &mut TcpStream) -> Result<u16, NoAnswer> {
    let mut answer = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&answer) {
            Ok(httparse::Status::Complete(_)) => return response.code.ok_or(NoAnswer::NotHttp),
            Ok(httparse::Status::Partial) if answer.len() < LONGEST => {}
            Ok(httparse::Status::Partial) | Err(_) => return Err(NoAnswer::NotHttp),
        }
        if stream.read_buf(&mut answer).await.map_err(NoAnswer::of)? == 0 {
            return Err(NoAnswer::Closed);
        }
    }
}

impl NoAnswer {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => {
                Self::Reset
            }
            _ => Self::Failed(error),
        }
    }
}
