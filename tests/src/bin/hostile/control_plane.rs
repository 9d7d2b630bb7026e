//! Attacks on the CA, and on the controller without a certificate.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_tests::client;
use tidegate_tests::client::h2::H2Connection;

use crate::grpc;
use crate::sent::{AttackSent, hold};
use crate::site::{HOG, HostileSite};

/// The maximum content of a TLS record, and the length that the ClientHello claims.
const RECORD: usize = 16_384;
const HELLO: usize = 65_000;
const CONNECTIONS: usize = 3800;
/// Concurrent calls, each on its own connection.
const CALLERS: usize = 68;
const LARGE_BODY: usize = 261_000;
/// About what a call sends besides its body.
const HEAD: usize = 50;
/// DNS names in a certificate request: just below the 32 KiB that the CA accepts.
const NAMES: usize = 500;
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn endless_hello_to_ca(site: &HostileSite, time: Duration) -> AttackSent {
    endless_hello(site.mesh.ca_address(), time)
}

pub(crate) fn endless_hello_to_controller(site: &HostileSite, time: Duration) -> AttackSent {
    endless_hello(site.mesh.discovery_address(), time)
}

/// Calls with large bodies and without a token.
pub(crate) fn large_calls_without_token(site: &HostileSite, time: Duration) -> AttackSent {
    calls(site, time, CALLERS, None, &vec![b'x'; LARGE_BODY])
}

/// As many calls as a connection can carry, each of which could write a log line.
pub(crate) fn small_calls_without_token(site: &HostileSite, time: Duration) -> AttackSent {
    calls(site, time, 1, None, &[0; 5])
}

/// Requests by a meshed Pod for as many names as fit, none of them its own.
pub(crate) fn other_names(site: &HostileSite, time: Duration) -> AttackSent {
    let mut csr = CertificateParams::default();
    csr.distinguished_name = DistinguishedName::new();
    let names = (0..NAMES).map(|number| format!("name-{number}.other.cluster.local"));
    csr.subject_alt_names = names.map(|name| SanType::DnsName(name.try_into().unwrap())).collect();
    let csr = csr.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let request = IstioCertificateRequest { csr, validity_duration: 3600, metadata: None };
    let token = site.mesh.token_key.token("httpbin", HOG);
    calls(site, time, 1, Some(&token), &grpc::frame(&request))
}

/// Calls one after another on each of `callers` connections.
fn calls(site: &HostileSite, time: Duration, callers: usize, token: Option<&str>, body: &[u8]) -> AttackSent {
    let (client, end) = (site.attacker_of_ca(), Instant::now() + time);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sent = runtime.block_on(async {
        let callers = (0..callers).map(|_| {
            let (client, token, body) = (client.clone(), token.map(str::to_owned), body.to_owned());
            tokio::spawn(async move {
                let mut sent = 0;
                while Instant::now() < end {
                    let Ok(connection) = H2Connection::open(&client).await else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    // Until the CA ends the connection.
                    while Instant::now() < end {
                        let answer =
                            grpc::create_certificate(&connection, client.target, token.as_deref(), &body);
                        let answered = tokio::time::timeout(PATIENCE, answer).await;
                        sent += (HEAD + body.len()) as u64;
                        if !matches!(answered, Ok(Ok(_))) {
                            break;
                        }
                    }
                }
                sent
            })
        });
        let mut sent = 0;
        for caller in callers.collect::<Vec<_>>() {
            sent += caller.await.unwrap();
        }
        sent
    });
    AttackSent::new(sent, callers).with_streams(1)
}

/// A ClientHello that claims to be 64 KB long, without its last bytes.
fn endless_hello(target: SocketAddr, time: Duration) -> AttackSent {
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
