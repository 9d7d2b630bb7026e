//! A DNS server for names of a test, over UDP.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// The server; ends with the test's process.
#[derive(Debug)]
pub struct DnsServer {
    address: SocketAddr,
    names: Arc<Mutex<Names>>,
}

#[derive(Debug, Default)]
struct Names {
    addresses: BTreeMap<String, Vec<Ipv4Addr>>,
    is_silent: bool,
}

/// Header of a message (RFC 1035 §4.1.1).
const HEADER: usize = 12;

impl DnsServer {
    /// One that has no names yet.
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let names = Arc::<Mutex<Names>>::default();
        let server = Self { address: socket.local_addr().unwrap(), names: names.clone() };
        thread::spawn(move || {
            let mut query = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                if let Some(answer) = names.lock().unwrap().answer(&query[..length]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A name's addresses from now on; without any, it does not exist.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.names.lock().unwrap().addresses.insert(name.to_owned(), addresses.to_vec());
    }

    /// Whether it leaves queries without an answer.
    pub fn set_silent(&self, is_silent: bool) {
        self.names.lock().unwrap().is_silent = is_silent;
    }
}

impl Names {
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        if self.is_silent {
            return None;
        }
        let (mut labels, mut at) = (Vec::new(), HEADER);
        while query[at] != 0 {
            let end = at + 1 + usize::from(query[at]);
            labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_ascii_lowercase());
            at = end;
        }
        let question = &query[HEADER..at + 5];
        let is_ipv4 = query[at + 1..at + 3] == [0, 1];
        let addresses = self.addresses.get(&labels.join(".")).filter(|addresses| !addresses.is_empty());
        let records = addresses.into_iter().flatten().filter(|_| is_ipv4).collect::<Vec<_>>();
        // A response with recursion; NXDOMAIN for a name without addresses.
        let mut answer = [&query[..2], &[0x81, if addresses.is_some() { 0x80 } else { 0x83 }]].concat();
        answer.extend([0, 1, 0, u8::try_from(records.len()).unwrap(), 0, 0, 0, 0]);
        answer.extend(question);
        for ip in records {
            // The question's name, A, IN, a TTL of one second, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(ip.octets());
        }
        Some(answer)
    }
}
