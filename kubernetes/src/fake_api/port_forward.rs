//! Ports of Pods, forwarded as by the kubelet: a WebSocket on which channel 0 carries data and channel 1 errors, each
//! opened with the port's number.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::response::{ApiResponse, failure, text_response};

/// Answers the upgrade and forwards `port` to the listener at `target`.
pub(super) fn forward(mut request: Request<Incoming>, port: u16, target: Option<SocketAddr>) -> ApiResponse {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return failure(400, "Upgrade request required");
    };
    let accepted = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            // Either end closes the connection.
            let _ = pump(socket, port, target).await;
        }
    });
    let mut response = text_response(StatusCode::SWITCHING_PROTOCOLS.as_u16(), String::new());
    let headers = response.headers_mut();
    for (name, value) in [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "Upgrade"),
        (header::SEC_WEBSOCKET_ACCEPT, accepted.as_str()),
        (header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io"),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    response
}

/// Passes bytes on in both directions until either end closes. Without a target, channel 1 says so, as kubelet does for
/// a port at which nothing listens.
async fn pump(
    socket: WebSocketStream<TokioIo<Upgraded>>,
    port: u16,
    target: Option<SocketAddr>,
) -> Result<(), Error> {
    let (mut sink, mut stream) = socket.split();
    let [low, high] = port.to_le_bytes();
    for channel in [0, 1] {
        sink.send(Message::binary(vec![channel, low, high])).await?;
    }
    let Some(target) = target else {
        sink.send(Message::binary([&[1], b"connection refused\n".as_slice()].concat())).await?;
        return sink.close().await;
    };
    let (mut reader, mut writer) = TcpStream::connect(target).await?.into_split();
    tokio::spawn(async move {
        let mut buffer = vec![0; 8192];
        // The first byte selects the channel.
        while let Ok(read @ 1..) = reader.read(&mut buffer[1..]).await {
            if sink.send(Message::binary(buffer[..=read].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Binary(frame) = message {
            writer.write_all(frame.get(1..).unwrap_or_default()).await?;
        }
    }
    Ok(())
}
