//! Preserves connections of the sidecar that were opened before the rules were written.
//!
//! Connection tracking starts with the first rule that needs it, and takes the next packet of an unknown connection for
//! the first one. If that packet is the peer's, the rules for inbound connections would redirect it, and the connection
//! to the controller would break with the controller's next message. So the sidecar's connections are entered as
//! established, opened by the pod. Connections of other processes are not: they must pass through the sidecar, and end
//! if they were opened past it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

use super::rule::IpFamily;

/// Seconds until an entry without traffic expires; each packet sets the kernel's own timeout.
const TIMEOUT: u32 = 3600;
/// How long the kernel may take to reply, which it does at once.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// States in `/proc/net/tcp` in which data may still arrive: established, and half-closed by either end.
const ALIVE: [u8; 4] = [0x01, 0x04, 0x05, 0x08];
/// The state of a listening socket.
const LISTEN: u8 = 0x0a;

/// A connection that the sidecar opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnConnection {
    local: SocketAddr,
    remote: SocketAddr,
}

/// A line of `/proc/net/tcp` or `tcp6`.
struct SocketLine {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    user: u32,
}

/// Enters the open connections of `user` to other hosts as established; returns their number.
pub(super) fn adopt(user: u32, family: IpFamily) -> io::Result<usize> {
    let mut lines = Vec::new();
    for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match std::fs::read_to_string(file) {
            Ok(text) => lines.extend(text.lines().filter_map(SocketLine::parse)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let opened: Vec<_> = opened(&lines, user).into_iter().filter(|of| family.has(&of.remote.ip())).collect();
    if opened.is_empty() {
        return Ok(0);
    }
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(REPLY_TIMEOUT))?;
    for (connection, sequence) in opened.iter().zip(1..) {
        send_and_confirm(&socket, &message(connection, sequence), sequence)?;
    }
    Ok(opened.len())
}

/// Connections that a user has opened to other hosts: those whose local port it does not listen on.
fn opened(lines: &[SocketLine], user: u32) -> Vec<OwnConnection> {
    let own = || lines.iter().filter(|line| line.user == user);
    let listens: BTreeSet<u16> =
        own().filter(|line| line.state == LISTEN).map(|line| line.local.port()).collect();
    own()
        .filter(|line| ALIVE.contains(&line.state))
        .filter(|line| !listens.contains(&line.local.port()) && !line.remote.ip().is_loopback())
        .map(|line| OwnConnection { local: line.local, remote: line.remote })
        .collect()
}

impl SocketLine {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
        let state = u8::from_str_radix(words.next()?, 16).ok()?;
        // Queues, timer and retransmissions come between.
        let user = words.nth(3)?.parse().ok()?;
        Some(Self { local, remote, state, user })
    }
}

/// `0100007F:1F90`: words of four bytes in the processor's order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in 0..ip.len() / 8 {
        let word = u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => IpAddr::from(bytes),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Sends one message and waits for the kernel's result.
fn send_and_confirm(socket: &OwnedFd, message: &[u8], sequence: u32) -> io::Result<()> {
    send(socket, message, SendFlags::empty())?;
    let mut answer = [0; 1024];
    loop {
        let (_, length) = recv(socket, &mut answer, RecvFlags::empty())?;
        // A header of 16 bytes, then the error, negative, or zero (netlink(7)).
        let word = |at: usize| answer.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let is_error = answer.get(4..6) == Some(&2u16.to_ne_bytes());
        if length < 20 || !is_error || word(8) != Some(sequence) {
            continue;
        }
        return match word(16).map(u32::cast_signed) {
            Some(0) => Ok(()),
            error => Err(io::Error::from_raw_os_error(error.unwrap_or_default().wrapping_neg())),
        };
    }
}

/// `IPCTNL_MSG_CT_NEW` (`linux/netfilter/nfnetlink_conntrack.h`): an entry for the connection. Changes an existing
/// entry: with a reply seen, no rule treats it as new.
fn message(connection: &OwnConnection, sequence: u32) -> Vec<u8> {
    const CT_NEW: u16 = 1 << 8;
    /// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`.
    const FLAGS: u16 = 0x01 | 0x04 | 0x400;
    /// `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_CONFIRMED`.
    const STATUS: u32 = 1 << 1 | 1 << 2 | 1 << 3;
    /// `TCP_CONNTRACK_ESTABLISHED`.
    const ESTABLISHED: u8 = 3;
    /// `IP_CT_TCP_FLAG_BE_LIBERAL`, as value and mask, because the window sizes are unknown.
    const LIBERAL: [u8; 2] = [0x08, 0x08];
    let OwnConnection { local, remote } = connection;
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let tcp = [attribute(1, &[ESTABLISHED]), attribute(4, &LIBERAL), attribute(5, &LIBERAL)].concat();
    // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO, CTA_TIMEOUT.
    let attributes = [
        nested(1, &tuple(*local, *remote)),
        nested(2, &tuple(*remote, *local)),
        attribute(3, &STATUS.to_be_bytes()),
        nested(4, &nested(1, &tcp)),
        attribute(7, &TIMEOUT.to_be_bytes()),
    ]
    .concat();
    // struct nfgenmsg: family, version, resource.
    let body = [&[family.as_raw() as u8, 0, 0, 0][..], &attributes].concat();
    let length = (16 + body.len()) as u32;
    [
        &length.to_ne_bytes()[..],
        &CT_NEW.to_ne_bytes(),
        &FLAGS.to_ne_bytes(),
        &sequence.to_ne_bytes(),
        &[0; 4],
        &body,
    ]
    .concat()
}

/// One direction: `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`.
fn tuple(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    const TCP: u8 = 6;
    let ip = |kind: u16, ip: IpAddr| match ip {
        IpAddr::V4(ip) => attribute(kind, &ip.octets()),
        IpAddr::V6(ip) => attribute(kind + 2, &ip.octets()),
    };
    let port = |kind: u16, port: u16| attribute(kind, &port.to_be_bytes());
    let ips = [ip(1, from.ip()), ip(2, to.ip())].concat();
    let ports = [attribute(1, &[TCP]), port(2, from.port()), port(3, to.port())].concat();
    [nested(1, &ips), nested(2, &ports)].concat()
}

fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attribute(kind | NESTED, attributes)
}

/// Length and kind, the value, and padding to a multiple of four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 2 * size_of::<u16>() + value.len();
    let mut bytes = [&(length as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A9B 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1500        0 1 1 0 100 0 0 10 0
   1: 02004D0A:9C40 0A00600A:3B18 01 00000000:00000000 02:000001 00000000  1500        0 2 2 0 20 4 30 10 -1
   2: 02004D0A:9C42 0A00600A:3B18 06 00000000:00000000 03:000001 00000000     0        0 0 3 0
   3: 02004D0A:3A9B 01004D0A:C350 01 00000000:00000000 02:000001 00000000  1500        0 3 2 0 20 4 30 10 -1
   4: 02004D0A:9C44 0A00600A:0050 01 00000000:00000000 02:000001 00000000     0        0 4 2 0 20 4 30 10 -1
   5: 0100007F:9C46 0100007F:0050 01 00000000:00000000 02:000001 00000000  1500        0 5 2 0 20 4 30 10 -1
";
    const TCP6: &str = "   0: 000077FD000000000000000002000000:9C48 000077FD000000000000000001000000:3B18 08 \
         00000000:00000000 00:00000000 00000000  1500        0 6 1 0 20 4 30 10 -1";

    #[test]
    fn connections_that_the_user_has_opened_to_other_hosts_are_found() {
        if cfg!(target_endian = "big") {
            return;
        }
        let lines: Vec<_> = TCP.lines().chain([TCP6]).filter_map(SocketLine::parse).collect();
        let opened = |user| {
            let opened = opened(&lines, user).into_iter();
            opened.map(|OwnConnection { local, remote }| format!("{local} {remote}")).collect::<Vec<_>>()
        };
        assert_eq!(opened(1500), ["10.77.0.2:40000 10.96.0.10:15128", "[fd77::2]:40008 [fd77::1]:15128"]);
        assert_eq!(opened(0), ["10.77.0.2:40004 10.96.0.10:80"]);
    }

    #[test]
    fn attributes_are_padded_and_count_themselves() {
        let one = attribute(7, &[9]);
        assert_eq!((one.len(), &one[..2], one[4]), (8, &5u16.to_ne_bytes()[..], 9));
        let connection =
            OwnConnection { local: "10.0.0.1:2".parse().unwrap(), remote: "10.0.0.3:4".parse().unwrap() };
        let message = message(&connection, 1);
        assert_eq!(message[..4], (message.len() as u32).to_ne_bytes());
    }
}
