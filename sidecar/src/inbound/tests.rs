mod changes;
mod departures;
mod names;
mod opaque;
mod refusals;
mod tls_clients;

use std::io;
use std::rc::Rc;
use std::time::Duration;

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

/// A client's connection with a handshake done.
async fn tls(mesh: &Mesh, port: Port, leaf: Option<&Leaf>, alpn: &[&str]) -> io::Result<Client> {
    tls_as(mesh, port, leaf, &VERSIONS, alpn, SERVER).await
}

/// The handshake with all its choices; the server's name is not verified where another one is asked for.
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

/// Status line and all of the answer to a GET.
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

/// How a connection has ended, seen from the client.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// Waits for the end; all that came before it is given as well.
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
