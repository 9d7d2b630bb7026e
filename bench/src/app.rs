//! The app behind the proxies: HTTP/1.1 keep-alive in a minimal loop, so that it costs as little as possible.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::http;

pub(crate) use crate::http::LARGE_PATH;

/// Body bytes of the large response and of the large request.
pub(crate) const LARGE_BYTES: u64 = 100_000_000;
/// Body bytes of the answer to every other path.
pub(crate) const SMALL_BYTES: u64 = 1024;
/// Fill byte of the small body, so that a proxy's own page is never mistaken for the app's response.
pub(crate) const SMALL_FILL: u8 = b't';
/// First word of the line printed once the app listens; the address follows.
pub(crate) const LISTENING: &str = "listening";

/// Bytes per read or write of a large body.
const CHUNK: usize = 64 * 1024;

/// Flags of `app`.
#[derive(Debug, clap::Args)]
pub(crate) struct AppOptions {
    /// Where to listen; port 0 selects a free one, and the address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

/// Prints the address, then serves until accepting fails.
pub(crate) fn main(options: AppOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        println!("{LISTENING} {}", listener.local_addr()?);
        serve(listener).await
    })
}

/// Serves until accepting fails permanently.
pub(crate) async fn serve(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // A peer may disconnect mid-response; that is not an error of the app.
            drop(connection(stream).await);
        });
    }
}

/// Serves one client's requests, one after another.
///
/// # Errors
///
/// On bytes that are not HTTP/1.1, and if the client disconnects within a message.
async fn connection(mut stream: TcpStream) -> Result<()> {
    let small = small_answer();
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        let request = loop {
            if let Some(request) = http::parse_request(&buffer[..filled])? {
                break request;
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
        if request.close {
            return Ok(());
        }
    }
}

/// Reads and discards this many bytes of a request's body.
async fn skip(stream: &mut TcpStream, mut bytes: u64) -> Result<()> {
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
async fn download(stream: &mut TcpStream) -> Result<()> {
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

/// Head and body of the small response.
fn small_answer() -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {SMALL_BYTES}\r\n\r\n")
            .into_bytes();
    answer.resize(answer.len() + SMALL_BYTES as usize, SMALL_FILL);
    answer
}
