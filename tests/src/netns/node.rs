//! A node with pods: namespaces, each linked to one that routes packets between them.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::NetworkNamespace;
use super::rough_link::RoughLink;

/// The namespace with a route to every pod, and the pods.
#[derive(Debug, Default)]
pub struct Node {
    namespace: NetworkNamespace,
    pods: AtomicU8,
}

/// A pod of a [`Node`].
#[derive(Debug)]
pub struct NodePod {
    namespace: NetworkNamespace,
    number: u8,
    link: Option<RoughLink>,
}

impl Node {
    /// One without pods.
    #[track_caller]
    pub fn new() -> Self {
        let node = Self { namespace: NetworkNamespace::new(), pods: AtomicU8::new(0) };
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            node.namespace.command("sysctl", &["-qw", setting]);
        }
        node
    }

    /// Its namespace: everything outside the mesh.
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// A pod with addresses of both families.
    #[track_caller]
    pub fn pod(&self) -> NodePod {
        self.pod_with(|node, near, pod| {
            // Without segmentation offload, whose packets a rough link could not carry.
            node.ip(&format!("link add {near} type veth peer name eth0 gso_max_segs 1 netns {}", pod.name()));
            None
        })
    }

    /// A pod whose link to the node loses and reorders packets.
    #[track_caller]
    pub fn pod_far_away(&self) -> NodePod {
        self.pod_with(|node, near, pod| Some(RoughLink::between((node, near), (pod, "eth0"))))
    }

    fn pod_with(
        &self,
        link: impl FnOnce(&NetworkNamespace, &str, &NetworkNamespace) -> Option<RoughLink>,
    ) -> NodePod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let (namespace, near) = (NetworkNamespace::new(), format!("pod{number}"));
        let link = link(&self.namespace, &near, &namespace);
        let pod = NodePod { namespace, number, link };
        for ([own, gateway], length) in pod.addresses().into_iter().zip(["24", "64 nodad"]) {
            pod.namespace.ip(&format!("addr add {own}/{length} dev eth0"));
            self.namespace.ip(&format!("addr add {gateway}/{length} dev {near}"));
        }
        pod.namespace.ip("link set eth0 up");
        self.namespace.ip(&format!("link set {near} up"));
        for [_, gateway] in pod.addresses() {
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            pod.namespace.ip(&format!("{family} route add default via {gateway}"));
        }
        pod
    }
}

impl NodePod {
    /// Its namespace.
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// Its addresses, one of each family.
    pub fn ips(&self) -> [String; 2] {
        self.addresses().map(|[own, _]| own)
    }

    /// Its link, if that loses and reorders packets.
    pub fn rough_link(&self) -> Option<&RoughLink> {
        self.link.as_ref()
    }

    /// The node's addresses on the pod's link.
    pub fn gateways(&self) -> [String; 2] {
        self.addresses().map(|[_, gateway]| gateway)
    }

    fn addresses(&self) -> [[String; 2]; 2] {
        let number = self.number;
        [format!("10.78.{number}."), format!("fd78:{number}::")]
            .map(|network| ["2", "1"].map(|host| format!("{network}{host}")))
    }
}

/// Makes an address of a namespace reachable in the test's own namespace by forwarding connections.
pub fn bring(address: SocketAddr, into: &NetworkNamespace) {
    let listener =
        into.run(|| TcpListener::bind(address)).unwrap_or_else(|error| panic!("{address}: {error}"));
    let home = File::open("/proc/self/ns/net").unwrap();
    thread::spawn(move || {
        move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        for near in listener.incoming().map_while(Result::ok) {
            // The server is not listening yet, or no longer: the client sees the same end.
            let Ok(far) = TcpStream::connect(address) else { continue };
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}
