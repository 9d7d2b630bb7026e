//! The app behind the proxies: HTTP/1.1 keep-alive in a minimal loop, so that it costs as little as possible; HTTP/2 where a
//! client begins with its preface. Outside the mesh it speaks TLS, and is the company's forward proxy in front of itself: the
//! way between the two adds nothing then.

mod http2;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::http2::SPANS_CAME;
use crate::http;
use crate::process::Process;
use crate::tls::{self, ClientIdentity};

pub(crate) use crate::http::LARGE_PATH;

/// Body bytes of the large response and of the large request.
pub(crate) const LARGE_BYTES: u64 = 100_000_000;
/// Body bytes of the answer to every other path.
pub(crate) const SMALL_BYTES: u64 = 1024;
/// Fill byte of the small body, so that a proxy's own page is never mistaken for the app's response.
pub(crate) const SMALL_FILL: u8 = b't';
/// First word of the line printed once the app listens; the address follows.
pub(crate) const LISTENING: &str = "listening";

/// Bytes at which the head of a CONNECT is refused.
const LARGEST_HEAD: usize = 16 * 1024;
/// Start of an HTTP/2 client's first bytes; RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Bytes per read or write of a large body.
const CHUNK: usize = 64 * 1024;

/// Flags of `app`.
#[derive(Debug, clap::Args)]
pub(crate) struct AppOptions {
    /// Where to listen; port 0 selects a free one, and the address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Certificate, PEM, of an app outside the mesh: it speaks TLS, directly or in the tunnels that it opens by CONNECT.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
}

/// Starts the app in a process of its own on a core; returns its address. With a certificate, it is outside the mesh.
pub(crate) async fn start(
    name: &str,
    core: usize,
    directory: &Path,
    outside: Option<&ClientIdentity>,
) -> Result<(Process, SocketAddr)> {
    let mut arguments = vec![OsStr::new("app")];
    if let Some(ClientIdentity { certificate, key }) = outside {
        arguments.extend(["--certificate".as_ref(), certificate.as_os_str()]);
        arguments.extend(["--key".as_ref(), key.as_os_str()]);
    }
    let (mut process, stdout) = Process::start_own(name, core, directory, arguments)?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await?;
    let Some(address) = line.trim().strip_prefix(LISTENING) else {
        process.ensure_running()?;
        bail!("the app printed {line:?} instead of its address");
    };
    Ok((process, address.trim().parse()?))
}

/// Prints the address, then serves until accepting fails.
pub(crate) fn main(options: AppOptions) -> Result<()> {
    let identity =
        options.certificate.zip(options.key).map(|(certificate, key)| ClientIdentity { certificate, key });
    let acceptor = identity.as_ref().map(tls::acceptor).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        println!("{LISTENING} {}", listener.local_addr()?);
        serve(listener, acceptor).await
    })
}

/// Serves until accepting fails permanently; with an acceptor, as an app outside the mesh.
pub(crate) async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A peer may disconnect mid-response; that is not an error of the app.
            drop(match acceptor {
                None => connection(stream).await,
                Some(acceptor) => outside(stream, &acceptor).await,
            });
        });
    }
}

/// Serves a client outside the mesh, which speaks TLS at once or asks for a tunnel first.
async fn outside(mut stream: TcpStream, acceptor: &TlsAcceptor) -> Result<()> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first == *b"C" {
        open_tunnel(&mut stream).await?;
    }
    connection(acceptor.accept(stream).await?).await
}

/// Reads the head of a CONNECT, behind which the client waits for the answer, and agrees.
async fn open_tunnel(stream: &mut TcpStream) -> Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(
            head.len() < LARGEST_HEAD && stream.read_buf(&mut head).await? > 0,
            "no head of CONNECT"
        );
    }
    Ok(stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?)
}

/// Serves one client's requests, one after another.
///
/// # Errors
///
/// On bytes that are not HTTP, and if the client disconnects within a message.
async fn connection(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let small = answer_of(SMALL_BYTES);
    let mut sized = Vec::new();
    let mut sized_bytes = None;
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        let request = loop {
            match http::parse_request(&buffer[..filled]) {
                Ok(Some(request)) => break request,
                Ok(None) => {}
                Err(_) if buffer.starts_with(PREFACE) => {
                    buffer.truncate(filled);
                    return http2::serve(stream, buffer).await;
                }
                Err(error) => return Err(error),
            }
            anyhow::ensure!(filled < buffer.len(), "request head is larger than the buffer");
            let read = stream.read(&mut buffer[filled..]).await?;
            if read == 0 {
                return Ok(());
            }
            filled += read;
        };
        buffer.copy_within(request.head_bytes..filled, 0);
        filled -= request.head_bytes;
        match request.kind {
            http::AppRequest::Small => stream.write_all(&small).await?,
            http::AppRequest::Sized(bytes) => {
                if sized_bytes != Some(bytes) {
                    (sized, sized_bytes) = (answer_of(bytes), Some(bytes));
                }
                stream.write_all(&sized).await?;
            }
            http::AppRequest::Download => download(&mut stream).await?,
            http::AppRequest::Upload(length) => {
                let came_with_head = filled.min(usize::try_from(length).unwrap_or(filled));
                buffer.copy_within(came_with_head..filled, 0);
                filled -= came_with_head;
                skip(&mut stream, length - came_with_head as u64).await?;
                stream.write_all(&small).await?;
            }
            http::AppRequest::NotServed => {
                stream
                    .write_all(
                        b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    )
                    .await?;
                return Ok(());
            }
        }
        // TLS may hold bytes back.
        stream.flush().await?;
        if request.close {
            return Ok(stream.shutdown().await?);
        }
    }
}

/// Reads and discards this many bytes of a request's body.
async fn skip(stream: &mut (impl AsyncRead + Unpin), mut bytes: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    while bytes > 0 {
        let size = usize::try_from(bytes).unwrap_or(CHUNK).min(CHUNK);
        let read = stream.read(&mut chunk[..size]).await?;
        anyhow::ensure!(read > 0, "connection closed {bytes} bytes before the body's end");
        bytes -= read as u64;
    }
    Ok(())
}

/// Sends the large response.
async fn download(stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {LARGE_BYTES}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let chunk = vec![b'd'; CHUNK];
    let mut left = LARGE_BYTES as usize;
    while left > 0 {
        let size = left.min(CHUNK);
        stream.write_all(&chunk[..size]).await?;
        left -= size;
    }
    Ok(())
}

/// Head and body of a response of this many bytes.
fn answer_of(bytes: u64) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {bytes}\r\n\r\n")
            .into_bytes();
    answer.resize(answer.len() + bytes as usize, SMALL_FILL);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{OUTSIDE, RunCertificates};
    use crate::http::HttpConnection;
    use crate::load::LoadExchange;
    use crate::tls::Dialer;

    #[tokio::test]
    async fn an_app_outside_the_mesh_speaks_tls_at_once_and_in_tunnels() {
        let directory = tempfile::tempdir().unwrap();
        let certificates = RunCertificates::create(directory.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Some(tls::acceptor(&certificates.server).unwrap())));
        for (name, is_tunnel) in OUTSIDE.into_iter().zip([false, true, true]) {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if is_tunnel {
                let request = format!("CONNECT {name}:443 HTTP/1.1\r\nhost: {name}:443\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = [0; 39];
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200 Connection established\r\n\r\n");
            }
            let dialer = Dialer::new(&certificates.ca, name, None, &[]).unwrap();
            let mut client = HttpConnection::new(dialer.handshake(stream).await.unwrap());
            LoadExchange::last("/1k", SMALL_BYTES).on(&mut client).await.unwrap();
        }
    }
}
