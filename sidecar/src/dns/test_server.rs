//! A DNS server that answers as a test says.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// The answer to every query.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// These addresses, with this TTL.
    Addresses(u32, Vec<IpAddr>),
    /// `NXDOMAIN`.
    NoSuchName,
    /// `SERVFAIL`.
    Failure,
    /// None.
    Silence,
    /// Bytes that are not a message.
    Garbage,
    /// An alias of itself.
    Circle,
}

/// The server; it runs until the test's runtime ends.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    reply: Arc<Mutex<Reply>>,
    queries: Arc<AtomicUsize>,
}

/// Bytes of a header.
const HEADER: usize = 12;
/// The most bytes of an answer over UDP.
const MOST_UDP: usize = 1232;

impl TestServer {
    pub(crate) async fn start(reply: Reply) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The port may be another test's for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (reply, queries) = (Arc::new(Mutex::new(reply)), Arc::<AtomicUsize>::default());
        let server = Self { address, reply: reply.clone(), queries: queries.clone() };
        let answer = move |query: &[u8]| {
            queries.fetch_add(1, Ordering::Relaxed);
            answer(query, &reply.lock().unwrap())
        };
        let over_udp = answer.clone();
        tokio::spawn(async move {
            let mut query = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut query).await {
                let Some(mut bytes) = over_udp(&query[..length]) else { continue };
                if bytes.len() > MOST_UDP {
                    // Truncated, in the middle of a record.
                    bytes.truncate(MOST_UDP);
                    bytes[2] |= 2;
                }
                udp.send_to(&bytes, client).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((io, _)) = tcp.accept().await {
                tokio::spawn(over_tcp(io, answer.clone()));
            }
        });
        server
    }

    pub(crate) fn set(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    pub(crate) fn queries(&self) -> usize {
        self.queries.load(Ordering::Relaxed)
    }
}

async fn over_tcp(mut io: TcpStream, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    while let Ok(length) = io.read_u16().await {
        let mut query = vec![0; length.into()];
        io.read_exact(&mut query).await.unwrap();
        let Some(bytes) = answer(&query) else { continue };
        io.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        io.write_all(&bytes).await.unwrap();
    }
}

fn answer(query: &[u8], reply: &Reply) -> Option<Vec<u8>> {
    let end = HEADER + query[HEADER..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let wanted = query[end - 3];
    let mut records: Vec<Vec<u8>> = Vec::new();
    let record = |kind: u8, ttl: u32, value: &[u8]| {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[0xc0, 12, 0, kind, 0, 1][..], &ttl.to_be_bytes(), &length, value].concat()
    };
    let mut code = 0;
    match reply {
        Reply::Addresses(ttl, addresses) => {
            for ip in addresses {
                match ip {
                    IpAddr::V4(ip) if wanted == 1 => records.push(record(1, *ttl, &ip.octets())),
                    IpAddr::V6(ip) if wanted == 28 => records.push(record(28, *ttl, &ip.octets())),
                    _ => {}
                }
            }
        }
        Reply::NoSuchName => code = 3,
        Reply::Failure => code = 2,
        Reply::Silence => return None,
        Reply::Garbage => return Some(vec![0xff; 40]),
        Reply::Circle => records.push(record(5, 5, &[0xc0, 12])),
    }
    let count = u16::try_from(records.len()).unwrap().to_be_bytes();
    let header = [query[0], query[1], 0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0];
    Some([&header[..], &query[HEADER..end], &records.concat()].concat())
}
