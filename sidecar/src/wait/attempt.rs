//! One attempt to get an answer from a server.
//!
//! A sidecar accepts the connection at once, dials the server, and passes on bytes and ends; without a server, it
//! resets the connection. So half-closing a connection without sending anything is a sufficient test: a server closes
//! the connection, or has sent something first; without a server there is a reset. The server does not have to
//! understand any request.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::WaitTarget;

/// Timeout of one attempt: longer than a sidecar tries silent endpoints.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum bytes of a response head.
const MAX_HEAD: usize = 16 * 1024;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// Without a sidecar: the name cannot be resolved, or nothing listens.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// With a sidecar: it reached no server.
    #[error("the connection was reset: no server is there, or the mesh does not let this pod in")]
    Reset,
    #[error("the connection has failed: {0}")]
    Failed(#[from] io::Error),
    #[error("no answer within {} s, and no end: if the server waits for a request, use http://", ATTEMPT_TIMEOUT.as_secs())]
    Silent,
    #[error("closed without an answer")]
    Closed,
    #[error("its answer is not HTTP")]
    NotHttp,
    #[error("status {0}")]
    Status(u16),
}

/// Makes one attempt.
pub(super) async fn attempt(target: &WaitTarget) -> Result<(), AttemptError> {
    timeout(ATTEMPT_TIMEOUT, exchange(target)).await.map_err(|_| AttemptError::Silent)?
}

async fn exchange(target: &WaitTarget) -> Result<(), AttemptError> {
    let mut stream =
        TcpStream::connect((target.host(), target.port())).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionReset => AttemptError::Reset,
            _ => AttemptError::Connect(error),
        })?;
    let Some(path) = &target.path else {
        stream.shutdown().await.map_err(AttemptError::of)?;
        stream.read(&mut [0; 1]).await.map_err(AttemptError::of)?;
        return Ok(());
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: tidegate-wait\r\naccept: */*\r\nconnection: close\r\n\r\n",
        target.authority
    );
    stream.write_all(request.as_bytes()).await.map_err(AttemptError::of)?;
    match status(&mut stream).await? {
        200..=399 => Ok(()),
        status => Err(AttemptError::Status(status)),
    }
}

/// The status of a response; the rest is not read.
async fn status(stream: &mut TcpStream) -> Result<u16, AttemptError> {
    let mut answer = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&answer) {
            Ok(httparse::Status::Complete(_)) => return response.code.ok_or(AttemptError::NotHttp),
            Ok(httparse::Status::Partial) if answer.len() < MAX_HEAD => {}
            Ok(httparse::Status::Partial) | Err(_) => return Err(AttemptError::NotHttp),
        }
        if stream.read_buf(&mut answer).await.map_err(AttemptError::of)? == 0 {
            return Err(AttemptError::Closed);
        }
    }
}

impl AttemptError {
    /// Sorts out errors that mean that the connection was reset, which each kernel call reports in its own way.
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => {
                Self::Reset
            }
            _ => Self::Failed(error),
        }
    }
}
