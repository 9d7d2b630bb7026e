//! One look-up of a name: its addresses of both families, from the first server that answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::DnsName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{self, AddressType, MOST_UDP, Response};

/// Where the servers of this machine are listed.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The most servers that are used (resolv.conf(5): `MAXNS`).
const MOST_SERVERS: usize = 3;
const PORT: u16 = 53;
/// How long one server has to answer over UDP, and over TCP.
const SERVER_TIMEOUT: Duration = Duration::from_millis(450);

/// Queries the DNS servers of this machine, or others.
#[derive(Clone, Debug)]
pub(super) struct DnsClient(Arc<[SocketAddr]>);

/// The addresses of a name, at least one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundAddresses {
    /// In the order of the answers.
    pub(super) addresses: Vec<IpAddr>,
    /// The least of the answers.
    pub(super) ttl: Duration,
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// DNS says so.
    #[error("{0}")]
    NoAddresses(&'static str),
    /// No server has answered as it should.
    #[error("{0}")]
    Failed(String),
}

impl DnsClient {
    /// A client of these servers; of those in `/etc/resolv.conf` if there are none.
    pub(super) fn new(servers: &[SocketAddr]) -> Result<Self, LookupError> {
        if !servers.is_empty() {
            return Ok(Self(servers.into()));
        }
        let text = std::fs::read_to_string(RESOLV_CONF)
            .map_err(|error| LookupError::Failed(format!("{RESOLV_CONF}: {error}")))?;
        let servers: Vec<_> = servers_in(&text).take(MOST_SERVERS).collect();
        if servers.is_empty() {
            return Err(LookupError::Failed(format!("{RESOLV_CONF} lists no server")));
        }
        Ok(Self(servers.into()))
    }

    /// The addresses of a name. It is complete: no search domain is added to it.
    pub(super) async fn look_up(&self, name: &DnsName) -> Result<FoundAddresses, LookupError> {
        let (v4, v6) = tokio::join!(self.ask(name, AddressType::V4), self.ask(name, AddressType::V6));
        let mut found = FoundAddresses { addresses: Vec::new(), ttl: Duration::MAX };
        let (mut failure, mut is_gone) = (None, false);
        for answer in [v4, v6] {
            match answer {
                Ok(Response::Addresses(addresses, ttl)) if !addresses.is_empty() => {
                    found.addresses.extend(addresses);
                    found.ttl = found.ttl.min(Duration::from_secs(ttl.into()));
                }
                Ok(Response::NoSuchName) => is_gone = true,
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            _ if !found.addresses.is_empty() => Ok(found),
            // A server that fails for one family says nothing about the name.
            Some(error) => Err(LookupError::Failed(error)),
            None if is_gone => Err(LookupError::NoAddresses("no such name")),
            None => Err(LookupError::NoAddresses("the name has no addresses")),
        }
    }

    /// The response of the first server that has one. With fewer servers than attempts, each gets the query again: a packet may be lost.
    async fn ask(&self, name: &DnsName, wanted: AddressType) -> Result<Response, String> {
        let mut last = String::new();
        for server in self.0.iter().cycle().take(MOST_SERVERS) {
            let asked = match timeout(SERVER_TIMEOUT, over_udp(*server, name, wanted)).await {
                Ok(Ok(Response::Truncated)) => timeout(SERVER_TIMEOUT, over_tcp(*server, name, wanted)).await,
                asked => asked,
            };
            last = match asked {
                Ok(Ok(Response::Failure(code))) => format!("{server}: {}", failure(code)),
                Ok(Ok(Response::Truncated)) => format!("{server}: the answer does not fit"),
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => format!("{server}: {error}"),
                Err(_) => format!("{server}: no answer in time"),
            };
        }
        Err(last)
    }
}

/// Sends a query, and waits for a response to it; others are passed over, because they may be invented. Number and port are new
/// for each.
async fn over_udp(server: SocketAddr, name: &DnsName, wanted: AddressType) -> io::Result<Response> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel passes on what comes from the server only.
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&message::query(id, name, wanted)).await?;
    let mut bytes = [0; MOST_UDP as usize];
    loop {
        let length = socket.recv(&mut bytes).await?;
        let received = bytes.get(..length).unwrap_or_default();
        if let Ok(response) = message::response(received, id, name, wanted) {
            return Ok(response);
        }
    }
}

/// The same over a connection, for answers that do not fit.
async fn over_tcp(server: SocketAddr, name: &DnsName, wanted: AddressType) -> io::Result<Response> {
    let mut io = TcpStream::connect(server).await?;
    let id = rand::random();
    let query = message::query(id, name, wanted);
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    io.write_all(&[&length.to_be_bytes()[..], &query].concat()).await?;
    let mut bytes = vec![0; io.read_u16().await?.into()];
    io.read_exact(&mut bytes).await?;
    message::response(&bytes, id, name, wanted).map_err(io::Error::other)
}

/// The servers that a `resolv.conf` lists.
fn servers_in(text: &str) -> impl Iterator<Item = SocketAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let ip = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        Some(SocketAddr::new(ip.parse().ok()?, PORT))
    })
}

/// A response code (RFC 1035 §4.1.1).
fn failure(code: u8) -> String {
    match code {
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        code => format!("response code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_resolv_conf_are_found() {
        let text = "# nameserver 192.0.2.9\nsearch shop.svc.cluster.local\nnameserver 10.96.0.10\n\
                    nameserver\tfd00::a  # second\nnameserver x\noptions ndots:5\n";
        let servers: Vec<_> = servers_in(text).map(|server| server.to_string()).collect();
        assert_eq!(servers, ["10.96.0.10:53", "[fd00::a]:53"]);
    }
}
