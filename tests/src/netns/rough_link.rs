//! A link that loses and reorders packets.
//!
//! Each end is a VXLAN device (RFC 7348), and one of our threads carries their datagrams: that works in every kernel
//! with VXLAN, also without netem.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::NetworkNamespace;

/// VXLAN's port.
const PORT: u16 = 4789;
/// One packet in this many is lost.
const LOST: u32 = 500;
/// One packet in this many is delayed.
const LATE: u32 = 20;
/// A delayed packet is sent after this many later ones, or when no more arrive.
const LATER_BY: usize = 3;
const NOTHING_COMES: Duration = Duration::from_millis(1);
/// The underlying addresses of both ends: the device's, and that of the carrying thread.
const ENDS: [[Ipv4Addr; 2]; 2] = [
    [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)],
    [Ipv4Addr::new(198, 18, 0, 5), Ipv4Addr::new(198, 18, 0, 6)],
];

/// Such a link; it ends when dropped, or with its namespaces.
#[derive(Debug)]
pub struct RoughLink {
    carried: Arc<Carried>,
    _between: NetworkNamespace,
}

#[derive(Debug, Default)]
struct Carried {
    lost: AtomicU32,
    late: AtomicU32,
    ends: AtomicBool,
}

impl RoughLink {
    /// Makes a device of this name in each of two namespaces.
    #[track_caller]
    pub fn between(near: (&NetworkNamespace, &str), far: (&NetworkNamespace, &str)) -> Self {
        let between = NetworkNamespace::new();
        let carried = Arc::new(Carried::default());
        let mut sockets = Vec::new();
        for (i, ((namespace, device), [end, carrier])) in [near, far].into_iter().zip(ENDS).enumerate() {
            let under = format!("under-{device}");
            namespace.ip(&format!("link add {under} type veth peer name end{i} netns {}", between.name()));
            namespace.ip(&format!("addr add {end}/30 dev {under}"));
            namespace.ip(&format!("link set {under} up"));
            between.ip(&format!("addr add {carrier}/30 dev end{i}"));
            between.ip(&format!("link set end{i} up"));
            // Packets that a device would checksum or segment in hardware must be complete before they reach the
            // thread.
            namespace.ip(&format!(
                "link add {device} mtu 1450 gso_max_segs 1 type vxlan id 7 local {end} remote {carrier} dstport {PORT} nolearning"
            ));
            let fill = format!("-t mangle -A POSTROUTING -o {device} -p tcp -j CHECKSUM --checksum-fill");
            for program in ["iptables", "ip6tables"] {
                namespace.command(program, &fill.split(' ').collect::<Vec<_>>());
            }
            let socket = between.run(|| UdpSocket::bind((carrier, PORT))).unwrap();
            SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
            sockets.push(socket);
        }
        let [one, other]: [UdpSocket; 2] = sockets.try_into().unwrap();
        let ways =
            [(one.try_clone().unwrap(), other.try_clone().unwrap(), ENDS[1][0]), (other, one, ENDS[0][0])];
        for (from, to, end) in ways {
            let carried = carried.clone();
            thread::spawn(move || carried.carry(&from, &to, (end, PORT).into()));
        }
        Self { carried, _between: between }
    }

    /// How many packets were lost, and how many came late.
    pub fn lost_and_late(&self) -> (u32, u32) {
        (self.carried.lost.load(Ordering::Relaxed), self.carried.late.load(Ordering::Relaxed))
    }
}

impl Carried {
    fn carry(&self, from: &UdpSocket, to: &UdpSocket, end: SocketAddr) {
        let mut late: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
        let mut buffer = [0; 4096];
        let mut number: u32 = 2_463_534_242;
        // The namespace of an end may be gone before this thread; the packet is not missed then.
        let send = |packet: &[u8]| drop(to.send_to(packet, end));
        while !self.ends.load(Ordering::Relaxed) {
            let patience = if late.is_empty() { Duration::from_millis(50) } else { NOTHING_COMES };
            from.set_read_timeout(Some(patience)).unwrap();
            let Ok((length, _)) = from.recv_from(&mut buffer) else {
                late.drain(..).for_each(|(_, packet)| send(&packet));
                continue;
            };
            // Xorshift: the same packets each time.
            number ^= number << 13;
            number ^= number >> 17;
            number ^= number << 5;
            let packet = &buffer[..length];
            if number.is_multiple_of(LOST) {
                self.lost.fetch_add(1, Ordering::Relaxed);
            } else if number % LATE == 1 {
                self.late.fetch_add(1, Ordering::Relaxed);
                late.push_back((LATER_BY, packet.to_vec()));
                continue;
            } else {
                send(packet);
            }
            for (left, _) in &mut late {
                *left -= 1;
            }
            while let Some((0, packet)) = late.front() {
                send(packet);
                late.pop_front();
            }
        }
    }
}

impl Drop for RoughLink {
    fn drop(&mut self) {
        self.carried.ends.store(true, Ordering::Relaxed);
    }
}
