//! Connections that the kernel redirected to us: where their clients meant to go.
//!
//! One listener takes what was meant for any of the pod's ports. The kernel remembers the destination from before its
//! redirection; the port of it is the policy's, and the app is asked at loopback. What has no such destination, or one
//! that is not this pod's, or one of our own ports, is ended: we neither connect to ourselves nor to others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use super::InboundTarget;
use crate::socket::original_destination;

/// A listener for connections that the kernel redirects.
#[derive(Clone, Debug)]
pub struct Redirected {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pod's addresses as Kubernetes knows them. Whether another one is the pod's too, the kernel is asked.
    pub pod_ips: Arc<[IpAddr]>,
    /// The sidecar's ports, this listener's among them: none of them is the app's.
    pub own_ports: Arc<[u16]>,
}

/// A connection that belongs nowhere.
#[derive(Debug, thiserror::Error)]
pub enum Misdirected {
    /// Nothing was redirected: somebody has dialled this very port, and the kernel does not track connections.
    #[error("the connection has no original destination, so nobody redirected it here: {0}")]
    Unknown(#[source] io::Error),
    /// A port of the sidecar's was dialled, this listener's perhaps.
    #[error("{0} is the sidecar's own port")]
    OwnPort(SocketAddr),
    /// An address was dialled that is not this pod's.
    #[error("{0} is no address of this pod")]
    Elsewhere(SocketAddr),
}

impl Redirected {
    /// What the client of this connection dialled, and the app's address for it.
    pub(crate) fn destination(&self, io: &TcpStream) -> Result<InboundTarget, Misdirected> {
        let dialled = original_destination(io).map_err(Misdirected::Unknown)?;
        if self.own_ports.contains(&dialled.port()) {
            return Err(Misdirected::OwnPort(dialled));
        }
        if !self.pod_ips.contains(&dialled.ip()) && !is_address_of_this_host(dialled.ip()) {
            return Err(Misdirected::Elsewhere(dialled));
        }
        Ok(InboundTarget { address: dialled, port: dialled.port(), app: app(dialled) })
    }

    /// What the app of this connection dialled. Our own ports are nobody's destination; those of other hosts may have
    /// the same numbers.
    pub(crate) fn dialled(&self, io: &TcpStream) -> Result<SocketAddr, Misdirected> {
        let dialled = original_destination(io).map_err(Misdirected::Unknown)?;
        let ip = dialled.ip();
        let is_ours = || {
            ip.is_loopback()
                || ip.is_unspecified()
                || self.pod_ips.contains(&ip)
                || is_address_of_this_host(ip)
        };
        if self.own_ports.contains(&dialled.port()) && is_ours() {
            return Err(Misdirected::OwnPort(dialled));
        }
        Ok(dialled)
    }
}

impl Misdirected {
    /// What was dialled, if that is known.
    pub fn dialled(&self) -> Option<SocketAddr> {
        match self {
            Self::Unknown(_) => None,
            Self::OwnPort(dialled) | Self::Elsewhere(dialled) => Some(*dialled),
        }
    }
}

/// The app listens on loopback, or is reached there: where apps listen on the pod's address only, the rules of
/// interception lead from loopback to it.
fn app(dialled: SocketAddr) -> SocketAddr {
    match dialled {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, dialled.port()).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, dialled.port()).into(),
    }
}

/// Whether another host could have meant us by it. A pod may have more addresses than Kubernetes knows of: those of
/// further interfaces.
fn is_address_of_this_host(ip: IpAddr) -> bool {
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    let address = SocketAddr::new(ip, 0);
    Socket::new(Domain::for_address(address), Type::DGRAM, None)
        .and_then(|socket| socket.bind(&address.into()))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_was_dialled_directly_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (io, _) = accepted.unwrap();
        let redirected =
            Redirected { address, pod_ips: [address.ip()].into(), own_ports: [address.port()].into() };
        for error in [redirected.destination(&io).unwrap_err(), redirected.dialled(&io).unwrap_err()] {
            assert!(matches!(error, Misdirected::Unknown(_) | Misdirected::OwnPort(_)), "{error}");
        }
        drop(client);
    }

    #[test]
    fn loopback_and_documentation_addresses_are_not_this_hosts() {
        for ip in ["127.0.0.1", "127.0.0.6", "::1", "0.0.0.0", "::", "224.0.0.1", "192.0.2.1", "2001:db8::1"]
        {
            assert!(!is_address_of_this_host(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn the_app_is_asked_at_loopback_in_the_family_that_was_dialled() {
        assert_eq!(app("10.1.2.3:80".parse().unwrap()), "127.0.0.1:80".parse().unwrap());
        assert_eq!(app("[fd00::1]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
    }
}
