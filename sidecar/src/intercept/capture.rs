//! The proof that connections are captured: one is made to an address that is nobody's, and comes in at our own port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use ipnet::IpNet;
use socket2::SockRef;
use tidegate_runtime::listen;

use super::InterceptError;
use super::plan::Plan;
use super::rule::Family;
use crate::listener;

/// A connection that is captured does not leave the host.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How a family came off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Captured {
    /// This connection came in, with the destination that it was made to.
    Yes(SocketAddr),
    /// No connection of this family leaves the pod: there is nothing to capture.
    NoRoute(SocketAddr),
    /// The rules leave no address or port over that they would redirect.
    NothingToCapture,
}

/// Connects to an address and port that the rules redirect.
pub(super) fn check(plan: &Plan, family: Family) -> Result<Captured, InterceptError> {
    let Some(target) = target(plan, family) else { return Ok(Captured::NothingToCapture) };
    let address = listen::possible((Ipv6Addr::UNSPECIFIED, plan.outbound_port).into());
    let busy = |source| InterceptError::CheckPort { port: plan.outbound_port, source };
    let listener = listener::bind(address).map_err(busy)?;
    listener.set_nonblocking(false).map_err(busy)?;
    SockRef::from(&listener).set_read_timeout(Some(TIMEOUT)).map_err(busy)?;
    let not_captured = |problem: String| InterceptError::NotCaptured { target, user: own_user(), problem };
    let client = match TcpStream::connect_timeout(&target, TIMEOUT) {
        Ok(client) => client,
        Err(error) if is_unreachable(&error) => return Ok(Captured::NoRoute(target)),
        Err(error) => return Err(not_captured(error.to_string())),
    };
    let meant = client.local_addr().map_err(|error| not_captured(error.to_string()))?;
    loop {
        let (accepted, peer) = listener.accept().map_err(|_| {
            not_captured(format!("it was taken by another program than port {}", plan.outbound_port))
        })?;
        // Another process of the pod may be faster.
        if (peer.ip().to_canonical(), peer.port()) != (meant.ip(), meant.port()) {
            continue;
        }
        let socket = SockRef::from(&accepted);
        let original = match family {
            Family::V4 => socket.original_dst_v4(),
            Family::V6 => socket.original_dst_v6(),
        };
        let original = original.map_err(|error| not_captured(format!("no original destination: {error}")))?;
        return match original.as_socket() {
            Some(original) if original == target => Ok(Captured::Yes(target)),
            other => Err(not_captured(format!("its original destination is {other:?}"))),
        };
    }
}

fn target(plan: &Plan, family: Family) -> Option<SocketAddr> {
    let is_excluded = |ip: &IpAddr| plan.excluded_ranges.iter().any(|net| net.contains(ip));
    let included: Vec<_> = plan.included_ranges.iter().filter(|net| family.has(&net.addr())).collect();
    let ip = if plan.included_ranges.is_empty() {
        nobodys(family).into_iter().find(|ip| !is_excluded(ip))
    } else {
        included.iter().map(|net| last(net)).find(|ip| !is_excluded(ip) && !ip.is_loopback())
    }?;
    let port =
        [9, 80, 443].into_iter().chain(1024..).find(|port| !plan.excluded_outbound_ports.contains(port))?;
    Some(SocketAddr::new(ip, port))
}

/// Addresses for documentation (RFC 5737, RFC 3849, RFC 9637): no host has one.
fn nobodys(family: Family) -> Vec<IpAddr> {
    match family {
        Family::V4 => {
            [[192, 0, 2, 1], [198, 51, 100, 1], [203, 0, 113, 1]].map(|ip| Ipv4Addr::from(ip).into()).into()
        }
        Family::V6 => {
            [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1)]
                .map(IpAddr::from)
                .into()
        }
    }
}

/// The last address of a range but one: that of the broadcast cannot be dialled.
fn last(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let most = u32::from(net.broadcast());
            Ipv4Addr::from(if net.prefix_len() < 31 { most - 1 } else { most }).into()
        }
        IpNet::V6(net) => net.broadcast().into(),
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_goes_where_the_rules_redirect() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let target = |plan: &Plan| target(plan, Family::V4).map(|target| target.to_string());
        let plan = Plan::default();
        assert_eq!(target(&plan).unwrap(), "192.0.2.1:9");
        let plan = Plan { excluded_ranges: nets(&["192.0.0.0/16"]), ..plan };
        assert_eq!(target(&plan).unwrap(), "198.51.100.1:9");
        let plan = Plan { excluded_outbound_ports: [9, 80, 443, 1024].into(), ..plan };
        assert_eq!(target(&plan).unwrap(), "198.51.100.1:1025");
        let plan = Plan { included_ranges: nets(&["10.1.2.0/24"]), ..plan };
        assert_eq!(target(&plan).unwrap(), "10.1.2.254:1025");
        let plan = Plan { included_ranges: nets(&["fd00::/8"]), ..plan };
        assert_eq!(target(&plan), None);
        let plan = Plan { excluded_ranges: nets(&["0.0.0.0/0"]), ..Plan::default() };
        assert_eq!(target(&plan), None);
    }
}
