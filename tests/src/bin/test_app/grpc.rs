//! gRPC's health service, `grpc.health.v1.Health/Check`.

use std::net::SocketAddr;
use std::thread;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response};
use tokio::net::TcpListener;

use crate::httpbin::Health;

/// Listens, in its own thread.
pub(crate) fn serve(address: SocketAddr, health: Health) {
    let listener =
        std::net::TcpListener::bind(address).unwrap_or_else(|error| panic!("grpc at {address}: {error}"));
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let health = health.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        // A peer that disconnects ends the exchange.
                        let _ = answer(request.uri().path(), respond, &health);
                    }
                });
            }
        });
    });
}

/// One call: the health, or status 12 (UNIMPLEMENTED) for any other method.
fn answer(path: &str, mut respond: SendResponse<Bytes>, health: &Health) -> Result<(), h2::Error> {
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut send = respond.send_response(head, false)?;
    let mut trailers = HeaderMap::new();
    if path == "/grpc.health.v1.Health/Check" {
        // HealthCheckResponse: field 1 is SERVING (1) or NOT_SERVING (2).
        let status = if health.is_good() { 1 } else { 2 };
        send.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false)?;
        trailers.insert("grpc-status", "0".parse().unwrap());
    } else {
        trailers.insert("grpc-status", "12".parse().unwrap());
    }
    send.send_trailers(trailers)
}
