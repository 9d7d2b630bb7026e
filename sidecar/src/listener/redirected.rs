//! Connections that the kernel redirected to the sidecar: their original destinations.
//!
//! One listener accepts connections to any of the pod's ports. The kernel keeps the original destination; its port
//! selects the policy, and the app is dialled at loopback. Connections without an original destination, to an address
//! that is not this pod's, or to the sidecar's own ports are ended: the sidecar connects neither to itself nor to
//! others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use super::InboundTarget;
use crate::socket::original_destination;

/// A listener for connections that the kernel redirects.
#[derive(Clone, Debug)]
pub(crate) struct Redirected {
    /// Address to listen on.
    pub(crate) address: SocketAddr,
    /// The pod's addresses according to Kubernetes. For other addresses, the kernel decides whether they are the pod's.
    pub(crate) pod_ips: Arc<[IpAddr]>,
    /// The sidecar's ports, including this listener's; the app uses none of them.
    pub(crate) own_ports: Arc<[u16]>,
}

/// Why the original destination of a connection is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Misdirected {
    /// The connection was not redirected: the client dialled this port, and the kernel does not track connections.
    #[error("the connection has no original destination, so it was not redirected here: {0}")]
    Unknown(#[source] io::Error),
    /// The client dialled one of the sidecar's ports, possibly this listener's.
    #[error("{0} is the sidecar's own port")]
    OwnPort(SocketAddr),
    /// The client dialled an address that is not this pod's.
    #[error("{0} is not an address of this pod")]
    Elsewhere(SocketAddr),
}

impl Redirected {
    /// The address that the client dialled, and the app's address for it.
    ///
    /// # Errors
    ///
    /// If the connection was not meant for the app.
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

    /// The address that the app dialled. The sidecar's own ports are refused; the same ports of other hosts are not.
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
    /// The dialled address, if known.
    pub(crate) fn dialled(&self) -> Option<SocketAddr> {
        match self {
            Self::Unknown(_) => None,
            Self::OwnPort(dialled) | Self::Elsewhere(dialled) => Some(*dialled),
        }
    }
}

/// The app's address: always on loopback. Where apps listen only on the pod's address, the interception rules redirect
/// from loopback to it.
fn app(dialled: SocketAddr) -> SocketAddr {
    match dialled {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, dialled.port()).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, dialled.port()).into(),
    }
}

/// Whether other hosts can reach this host by this address. A pod may have addresses that Kubernetes does not list:
/// those of additional interfaces.
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
    fn the_app_is_dialled_at_loopback_in_the_family_that_was_dialled() {
        assert_eq!(app("10.1.2.3:80".parse().unwrap()), "127.0.0.1:80".parse().unwrap());
        assert_eq!(app("[fd00::1]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
    }
}
