mod changes;
mod departures;
mod graceful;
mod names;
mod opaque;
mod refusals;
mod tls_clients;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Downstream, serve};
use crate::connection::OpenConnection;
use crate::context::WorkerContext;
use crate::lifeline::Lifeline;
use crate::test_mesh::{Mesh, Port};
use crate::test_pki::{Leaf, SERVER, client_config};

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

type Client = tokio_rustls::client::TlsStream<TcpStream>;

/// A client's connection after its handshake.
async fn tls(mesh: &Mesh, port: Port, leaf: Option<&Leaf>, alpn: &[&str]) -> io::Result<Client> {
    tls_as(mesh, port, leaf, &VERSIONS, alpn, SERVER).await
}

/// The handshake with all options; the server's name is not verified if the client requests another one.
async fn tls_as(
    mesh: &Mesh,
    port: Port,
    leaf: Option<&Leaf>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&str],
    server_name: &str,
) -> io::Result<Client> {
    let config = client_config(&mesh.root.bundle(), leaf, versions, alpn);
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    TlsConnector::from(config).connect(name, mesh.connect(port).await).await
}

/// Status line and the rest of the response to a GET.
async fn get<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: httpbin\r\n\r\n").await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if answer.ends_with(b"\r\n\r\nok") || answer.ends_with(b"\r\n\r\nRBAC: access denied") {
            return Ok(String::from_utf8(answer).unwrap());
        }
    }
}

/// Measures time for a bound that the product keeps on a machine that has a processor for it.
struct Stopwatch {
    start: Instant,
    /// How long this thread had waited for a processor at the start.
    waited: Duration,
}

impl Stopwatch {
    fn start() -> Self {
        Self { start: Instant::now(), waited: waited_for_processor() }
    }

    /// How long the threads of a test may have waited for a processor since the start: the waits of this one stand for
    /// those of two workers, too. Next to nothing unless the machine is overloaded.
    fn waited(&self) -> Duration {
        3 * waited_for_processor().saturating_sub(self.waited)
    }

    /// Fails unless less than `limit` has passed, not counting waits for a processor.
    fn assert_within(&self, limit: Duration) {
        let (elapsed, waited) = (self.start.elapsed(), self.waited());
        assert!(elapsed < limit + waited, "{elapsed:?}, {waited:?} of it without a processor");
    }
}

/// How long this thread was ready to run but had no processor: the second figure of `schedstat`, in nanoseconds
/// (`Documentation/scheduler/sched-stats.rst` of Linux).
fn waited_for_processor() -> Duration {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = figures.split_whitespace().nth(1).and_then(|figure| figure.parse().ok());
    Duration::from_nanos(waited.unwrap_or_default())
}

/// How a connection has ended from the client's view.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// Waits for the end; returns everything received before it, too.
async fn end<S: AsyncRead + Unpin>(stream: &mut S) -> (End, Vec<u8>) {
    let mut received = Vec::new();
    let read = async {
        loop {
            match stream.read_buf(&mut received).await {
                Ok(0) => return End::Fin,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return End::Reset,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let end = tokio::time::timeout(Duration::from_secs(20), read).await.expect("the connection did not end");
    (end, received)
}

/// Sends these bytes on a new connection and waits for its end. A connection may be reset before it is written to, or
/// even before the client's connect returns; the call that learns of a reset is the only one that does (`SO_ERROR`).
async fn end_after(address: SocketAddr, first: &[u8]) -> (End, Vec<u8>) {
    let sent = async {
        let mut client = TcpStream::connect(address).await?;
        client.write_all(first).await?;
        Ok::<_, io::Error>(client)
    };
    match sent.await {
        Ok(mut client) => end(&mut client).await,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (End::Reset, vec![]),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_task_of_a_connection_is_small() {
    fn size<'a, F: Future>(
        _: impl FnOnce(&'a Rc<WorkerContext>, TcpStream, Downstream, &'a OpenConnection, &'a Lifeline) -> F,
    ) -> usize {
        size_of::<F>()
    }
    let size = size(serve);
    assert!(size <= 384, "{size} bytes");
}
