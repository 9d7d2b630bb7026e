//! Servers outside the mesh, and apps whose sidecar takes their connections there.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::client::{Client, Connection, RequestOutcome};
use crate::mesh::Mesh;
use crate::wait::SOON;

/// Where the app of [`Mesh::caller`] dials one of several destinations, if its sidecar is started with [`ways_out`].
pub fn way_out(mesh: &Mesh, number: usize) -> SocketAddr {
    let first = mesh.way_out();
    SocketAddr::new(first.ip(), first.port() + 100 * u16::try_from(number).unwrap())
}

/// The value of the sidecar's `--outbound` for these destinations.
pub fn ways_out(mesh: &Mesh, destinations: &[SocketAddr]) -> String {
    let pairs = destinations.iter().enumerate();
    pairs.map(|(i, address)| format!("{}={address}", way_out(mesh, i))).collect::<Vec<_>>().join(",")
}

/// Whether a server that echoes bytes answers a ClientHello for this name, which is sent in two pieces.
pub fn tls_is_echoed(way_out: SocketAddr, name: &'static str) -> bool {
    let hello = client_hello(name);
    let mut connection = Client::to(way_out).connect().unwrap();
    connection.write(&hello[..100]);
    connection.write(&hello[100..]);
    let is_echoed = connection.read_until(&hello[hello.len() - 20..]).is_ok();
    end(connection);
    is_echoed
}

/// The answer to a request of HTTP.
pub fn http(way_out: SocketAddr, method: &str, path: &str, host: &str) -> RequestOutcome {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let mut connection = Client::to(way_out).connect().unwrap();
    let answer = connection.request(request.as_bytes());
    end(connection);
    answer.map_or_else(RequestOutcome::Refused, |answer| RequestOutcome::Status(answer.status()))
}

/// Whether a server that speaks first is heard.
pub fn is_greeted(way_out: SocketAddr, greeting: &[u8]) -> bool {
    let mut connection = Client::to(way_out).connect().unwrap();
    let is_greeted = connection.read_until(greeting).is_ok();
    end(connection);
    is_greeted
}

fn end(mut connection: Connection) {
    connection.finish();
    connection.end(SOON);
}

fn client_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}
