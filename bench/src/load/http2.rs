//! Bodies of 100 MB over HTTP/2, one after the other on one connection.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;

use super::LoadMeasurement;
use super::connection::LoadEndpoint;
use super::window::{ResponseRecorder, UsageMeter};
use crate::app::{LARGE_BYTES, LARGE_PATH, SMALL_BYTES};
use crate::tls::ClientStream;

/// The client's window, large enough that the proxy never waits for it.
const WINDOW: u32 = 8 * 1024 * 1024;
/// The client sends its body in pieces of one frame.
const PIECE: usize = 16 * 1024;

/// Direction of the large body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferDirection {
    /// From the app.
    Down,
    /// To the app.
    Up,
}

/// Repeats transfers until the time has passed.
pub(super) async fn transfer(
    endpoint: LoadEndpoint,
    watched: &[u32],
    seconds: f64,
    direction: TransferDirection,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let (mut client, connection) = connect(&endpoint).await?;
    let driver = tokio::spawn(connection);
    // The first exchange grows windows and buffers of proxy and kernel.
    exchange(&mut client, direction).await?;
    let window = meter.open(&recorder)?;
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        let sent = Instant::now();
        exchange(&mut client, direction).await?;
        recorder.answered(sent.elapsed(), LARGE_BYTES);
    }
    let report = window.close(false)?.report();
    driver.abort();
    Ok(report)
}

/// Opens a connection, whose second half must be polled.
pub(super) async fn connect(
    endpoint: &LoadEndpoint,
) -> Result<(SendRequest<Bytes>, Connection<ClientStream, Bytes>)> {
    let stream = endpoint.connect_stream().await?;
    Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .enable_push(false)
        .handshake(stream)
        .await
        .context("the proxy does not speak HTTP/2")
}

/// One request and its response, one of which is large.
async fn exchange(client: &mut SendRequest<Bytes>, direction: TransferDirection) -> Result<()> {
    let uri = format!("http://httpbin{LARGE_PATH}");
    let request = match direction {
        TransferDirection::Down => Request::get(uri),
        TransferDirection::Up => Request::post(uri).header("content-length", LARGE_BYTES),
    };
    let request = request.header("user-agent", "tidegate-bench").body(())?;
    std::future::poll_fn(|context| client.poll_ready(context)).await?;
    let (answer, body) = client.send_request(request, direction == TransferDirection::Down)?;
    if direction == TransferDirection::Up {
        upload(body).await.context("cannot send the body")?;
    }
    let answer = answer.await.context("no answer")?;
    ensure!(answer.status() == 200, "answer has status {}", answer.status());
    let received = download(&mut answer.into_body()).await.context("cannot read the answer")?;
    let expected = if direction == TransferDirection::Down { LARGE_BYTES } else { SMALL_BYTES };
    ensure!(received == expected, "body of {received} bytes");
    Ok(())
}

/// Sends the large body within the proxy's window.
async fn upload(mut body: SendStream<Bytes>) -> Result<()> {
    let piece = Bytes::from(vec![b'u'; PIECE]);
    let mut left = LARGE_BYTES as usize;
    while left > 0 {
        body.reserve_capacity(left.min(PIECE));
        while body.capacity() == 0 {
            let room = std::future::poll_fn(|context| body.poll_capacity(context)).await;
            room.context("the stream was ended")??;
        }
        let size = body.capacity().min(left).min(PIECE);
        left -= size;
        body.send_data(piece.slice(..size), left == 0)?;
    }
    Ok(())
}

/// Reads a body to its end; returns its length.
pub(super) async fn download(body: &mut RecvStream) -> Result<u64> {
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        received += data.len() as u64;
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn large_bodies_go_both_ways_and_are_counted() {
        for direction in [TransferDirection::Down, TransferDirection::Up] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let size = match direction {
                            TransferDirection::Down => LARGE_BYTES,
                            TransferDirection::Up => SMALL_BYTES,
                        };
                        let received = download(&mut request.into_body()).await.unwrap();
                        assert_eq!(
                            received,
                            if direction == TransferDirection::Up { LARGE_BYTES } else { 0 }
                        );
                        let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                        body.send_data(Bytes::from(vec![0; size as usize]), true).unwrap();
                    });
                }
            });
            let report = transfer(LoadEndpoint::plain(address), &[], 0.001, direction).await.unwrap();
            assert_eq!(report.errors, 0);
            assert_eq!(report.body_bytes, report.requests * LARGE_BYTES);
            assert!(report.requests > 0);
        }
    }
}
