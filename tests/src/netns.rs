//! Network namespaces: a pod and the rest of the world, with real interfaces and real rules, apart from the machine's
//! own network.
//!
//! Threads enter a namespace, so whatever a closure in [`NetworkNamespace::run`] opens or starts is in it: sockets, threads,
//! programs, a whole [`crate::mesh::Mesh`]. Requires root.
//!
//! A [`PodWithPeer`] has one peer, a [`node::Node`] has pods that reach each other.

pub mod node;
pub mod rough_link;

use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{self, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Uid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_res_uid};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::daemon;

/// The user that a pod's sidecar runs as.
pub const SIDECAR_USER: u32 = 1500;

/// How long a client waits for an answer that never arrives.
const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace of one test; removed when dropped, with everything in it.
#[derive(Debug)]
pub struct NetworkNamespace(String);

/// A pod's namespace, and that of a peer that stands for the rest of the world: one link between them, which is the
/// pod's default route.
#[derive(Debug)]
pub struct PodWithPeer {
    /// The pod.
    pub pod: NetworkNamespace,
    /// Everything outside the pod.
    pub peer: NetworkNamespace,
}

/// The pod's addresses, in each family.
pub const POD_IPS: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// The peer's.
pub const PEER_IPS: [&str; 2] = ["10.77.0.1", "fd77::1"];

impl NetworkNamespace {
    /// A namespace with loopback only.
    #[track_caller]
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "network namespaces take root: run the tests as root, on a machine of their own or in a container with CAP_NET_ADMIN and CAP_SYS_ADMIN"
        );
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tgt-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs a closure in the namespace, in its own thread. Panics if it panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        let inside = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// [`NetworkNamespace::run`] as another user.
    pub fn run_as<T: Send>(&self, user: u32, work: impl FnOnce() -> T + Send) -> T {
        self.run(move || {
            let user = Uid::from_raw(user);
            set_thread_res_uid(user, user, user).unwrap();
            work()
        })
    }

    /// `ip` with these arguments, separated by spaces.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        let arguments: Vec<_> = arguments.split(' ').collect();
        self.command("ip", &arguments);
    }

    /// A program of the system, which must succeed; returns its output.
    #[track_caller]
    pub fn command(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(|| run(Command::new(system(program)).args(arguments)));
        String::from_utf8(output.stdout).unwrap()
    }

    /// `tidegate-sidecar intercept` with these arguments: whether it succeeded, and its output.
    pub fn intercept(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.run(|| {
            let mut command = Command::new(daemon::ours("tidegate-sidecar"));
            command.arg("intercept").args(arguments).env("RUST_BACKTRACE", "0").output().unwrap()
        });
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// [`NetworkNamespace::intercept`], which must succeed.
    #[track_caller]
    pub fn intercepted(&self, arguments: &[&str]) -> String {
        let (success, text) = self.intercept(arguments);
        assert!(success, "intercept {arguments:?}: {text}");
        text
    }

    /// All rules of both families and both rule sets, without comments and counters, and all added chains.
    pub fn rules(&self) -> String {
        let mut rules = String::new();
        for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
            for line in self.command(&format!("{program}-save"), &[]).lines() {
                match line.split(" [").next() {
                    Some(line) if line.starts_with('-') || line.starts_with(':') && line.ends_with(" -") => {
                        rules += &format!("{program} {line}\n");
                    }
                    _ => {}
                }
            }
        }
        rules
    }

    /// Its name, for `ip`.
    pub fn name(&self) -> &str {
        &self.0
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }
}

impl Default for NetworkNamespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

impl PodWithPeer {
    /// A pod with addresses of both families.
    #[track_caller]
    pub fn new() -> Self {
        Self::with(&POD_IPS)
    }

    /// A pod with these addresses only.
    #[track_caller]
    pub fn with(ips: &[&str]) -> Self {
        let (pod, peer) = (NetworkNamespace::new(), NetworkNamespace::new());
        pod.ip(&format!("link add eth0 type veth peer name eth0 netns {}", peer.0));
        for (namespace, ends) in [(&pod, POD_IPS), (&peer, PEER_IPS)] {
            for (ip, pod_ip) in ends.iter().zip(POD_IPS).filter(|(_, pod_ip)| ips.contains(pod_ip)) {
                let length = if pod_ip.contains(':') { "64 nodad" } else { "24" };
                namespace.ip(&format!("addr add {ip}/{length} dev eth0"));
            }
            namespace.ip("link set eth0 up");
        }
        for (pod_ip, peer_ip) in POD_IPS.iter().zip(PEER_IPS).filter(|(pod_ip, _)| ips.contains(pod_ip)) {
            let family = if pod_ip.contains(':') { "-6" } else { "-4" };
            pod.ip(&format!("{family} route add default via {peer_ip}"));
        }
        Self { pod, peer }
    }
}

impl Default for PodWithPeer {
    fn default() -> Self {
        Self::new()
    }
}

/// A listener on all addresses that sends each client its name and the address that the client dialled. Ends with the
/// test's process.
pub fn answer(name: &'static str, address: SocketAddr) {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("{name} at {address}: {error}"));
    socket.listen(64).unwrap();
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let local = stream.local_addr().unwrap();
            let socket = SockRef::from(&stream);
            let original = match local.ip().to_canonical() {
                IpAddr::V4(_) => socket.original_dst_v4(),
                IpAddr::V6(_) => socket.original_dst_v6(),
            };
            // Where connections are not tracked, nothing was redirected.
            let dialled = SocketAddr::new(local.ip().to_canonical(), local.port());
            let original = original.ok().and_then(|original| original.as_socket()).unwrap_or(dialled);
            let _ = std::io::Write::write_all(&mut &stream, format!("{name} {original}").as_bytes());
        }
    });
}

/// The answer of the listener behind an address, or how the connection fails.
pub fn ask(address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return error.kind().to_string(),
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Ok(_) => text,
        Err(error) => error.kind().to_string(),
    }
}

/// Sends a SYN-ACK without a SYN before it: connection tracking classifies it as invalid.
pub fn send_unasked_syn_ack(from: Ipv4Addr, to: Ipv4Addr, port: u16) {
    let mut segment = Vec::new();
    segment.extend_from_slice(&40_000u16.to_be_bytes());
    segment.extend_from_slice(&port.to_be_bytes());
    // Numbers; then a header of five words, SYN and ACK, a window; checksum and urgent pointer.
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x12, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6, 0, segment.len() as u8]].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    socket.send_to(&segment, &SocketAddr::from((to, 0)).into()).unwrap();
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Root's programs, also where `PATH` is a user's.
fn system(program: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let found =
        folders.map(|folder| folder.join(program)).into_iter().find(|path| fs::metadata(path).is_ok());
    found.unwrap_or_else(|| program.into())
}
