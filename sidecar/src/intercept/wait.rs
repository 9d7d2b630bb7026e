//! Waits for the sidecar. Connections are redirected last, so that containers that start afterwards find a working
//! mesh: with a certificate and a policy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tidegate_runtime::signals;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::info;

use super::InterceptError;

/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// Deadline of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum bytes of a response that are read.
const MAX_RESPONSE: u64 = 16 * 1024;

const REQUEST: &[u8] = b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// Returns once `/ready` at this address returns 200, however long that takes; SIGTERM and SIGINT end the wait.
pub(super) fn for_sidecar(health: SocketAddr) -> Result<(), InterceptError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(InterceptError::Wait)?;
    runtime.block_on(async {
        let shutdown = signals::shutdown().map_err(InterceptError::Wait)?;
        let mut reason = String::new();
        tokio::select! {
            () = ready(health, &mut reason) => Ok(()),
            signal = shutdown => Err(InterceptError::Ended { signal, reason }),
        }
    })
}

/// `reason`: why the sidecar is not ready. Logged whenever it changes.
async fn ready(health: SocketAddr, reason: &mut String) {
    loop {
        let answer = timeout(REQUEST_TIMEOUT, request_ready(health)).await;
        let now = match answer {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200 ") => return,
            Ok(Ok(answer)) => answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned(),
            Ok(Err(error)) => format!("{health}: {error}"),
            Err(_) => format!("{health}: no answer within {REQUEST_TIMEOUT:?}"),
        };
        if *reason != now {
            info!(reason = %now, "waiting for the sidecar");
            *reason = now;
        }
        sleep(PAUSE).await;
    }
}

/// Requests `/ready` once; returns the whole response.
async fn request_ready(health: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(health).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = String::new();
    stream.take(MAX_RESPONSE).read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answer(listener: &TcpListener, answer: &str) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = vec![0; REQUEST.len()];
        stream.read_exact(&mut question).await.unwrap();
        assert_eq!(question, REQUEST);
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn a_sidecar_that_is_not_ready_yet_is_asked_again_and_its_reason_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut reason = String::new();
        let sidecar = async {
            answer(&listener, "HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready, waiting for: policy\n")
                .await;
            answer(&listener, "HTTP/1.1 200 OK\r\n\r\nready\n").await;
        };
        tokio::join!(ready(address, &mut reason), sidecar);
        assert_eq!(reason, "not ready, waiting for: policy");
    }

    #[tokio::test]
    async fn a_sidecar_that_does_not_run_yet_is_waited_for() {
        // Bound but not listening: no other process gets the port, and connections are refused.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let mut reason = String::new();
        let ended = timeout(5 * PAUSE, ready(address, &mut reason)).await;
        assert!(ended.is_err() && reason.contains("refused"), "{reason}");
    }
}
