//! The compile function against a second one that follows docs/egress.md sentence by sentence, on random EgressProxies.

use proptest::prelude::*;
use tidegate_core::forward_proxy::ProxyTarget;

use self::random::{
    CERTIFICATE, Connection, LONE, ROOT, RandomProxy, World, connection, name, socket, world,
};
use super::*;
use crate::compile::status::statuses;

mod random;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq)]
enum Way {
    Direct,
    Refused,
    Through { proxies: Vec<SocketAddr>, for_requests: Vec<SocketAddr>, has_credentials: bool },
}

impl RandomProxy {
    /// "Up to 8 IP addresses with ports", at least one; hosts and exceptions as their rows say; roots "in PEM".
    fn has_errors(&self) -> bool {
        self.proxies.is_empty()
            || self.proxies.contains(&"squid")
            || self.http_proxies.contains(&"squid")
            || self.hosts.contains(&"a b")
            || self.no_proxy.contains(&"a b")
            || self.ca_bundle.is_some_and(|pem| pem != CERTIFICATE)
    }

    /// "In the MeshConfig's namespace, an EgressProxy is for all Pods of the mesh, or for those of `namespaces`"; "the Pods;
    /// absent: all". Of one that cannot be read, none of this is known.
    fn is_for(&self, world: &World, pod: &Connection) -> bool {
        let is_listed = self.namespaces.is_empty() || self.namespaces.contains(&pod.namespace);
        !self.is_readable
            || self.selected.is_none_or(|app| app == pod.app) && (!world.is_root(self.namespace) || is_listed)
    }

    fn fits(&self, Connection { host, dialled, .. }: &Connection) -> bool {
        // "Never through a proxy go": loopback addresses, and names that end with `.svc`.
        if dialled.ip().is_loopback() || host.is_some_and(|host| host.ends_with(".svc")) {
            return false;
        }
        // "Connections to ports 80 and 443 are refused."
        if !self.is_readable {
            return [80, 443].contains(&dialled.port());
        }
        // "Ports of targets; default 80 and 443."
        let ports = if self.ports.is_empty() { &[80, 443] } else { &*self.ports };
        // "Empty or `*`: all, also what names no host." One with an error counts as absent, and so does `noProxy`.
        let is_every_host = self.hosts.is_empty() || self.hosts.contains(&"*") || self.hosts.contains(&"a b");
        let is_host = |known: &&str| match *known {
            "*.example" => host.is_some_and(|host| host.ends_with(".example")),
            known => *host == Some(known),
        };
        let is_exception = |known: &&str| match *known {
            // "Addresses and ranges are also compared with the address that the app dialled."
            "10.0.0.0/8" => dialled.ip().to_string().starts_with("10."),
            // "`example.com` and its subdomains", "`host:port`".
            "intern.example" => host.is_some_and(|host| host.ends_with("intern.example")),
            _ => *host == Some("a.example") && dialled.port() == 443,
        };
        // Nor "the proxies themselves".
        let is_own = [&self.proxies, &self.http_proxies]
            .into_iter()
            .flatten()
            .any(|address| socket(address) == Some(*dialled));
        ports.contains(&dialled.port())
            && (is_every_host || self.hosts.iter().any(is_host))
            && (self.no_proxy.contains(&"a b") || !self.no_proxy.iter().any(is_exception))
            && (self.has_errors() || !is_own)
    }

    /// "A Secret of the same namespace with `username` and `password`."
    fn has_credentials(&self) -> bool {
        self.secret == Some("squid") && [ROOT, "shop"].contains(&self.namespace)
    }

    /// "An object with errors refuses"; otherwise "the first is used while it can be reached, then the others", and `httpProxies`
    /// are "other proxies for plaintext HTTP/1; default: the same".
    fn way(&self) -> Way {
        if !self.is_readable || self.has_errors() {
            return Way::Refused;
        }
        let proxies = sockets(&self.proxies);
        let for_requests = sockets(&self.http_proxies);
        let for_requests = if for_requests.is_empty() { proxies.clone() } else { for_requests };
        Way::Through { proxies, for_requests, has_credentials: self.has_credentials() }
    }
}

impl World {
    fn is_root(&self, namespace: &str) -> bool {
        self.mesh_config.is_some() && namespace == ROOT
    }

    /// The objects of a namespace by age, then by name. "The 8 oldest of a namespace are in force"; of those that cannot be read
    /// as many besides.
    fn in_force(&self, namespace: &str) -> Vec<usize> {
        // "Its namespace is not in the mesh", unless it is the MeshConfig's.
        if namespace == LONE || namespace == ROOT && !self.is_root(ROOT) {
            return Vec::new();
        }
        let mut all: Vec<_> =
            (0..self.proxies.len()).filter(|at| self.proxies[*at].namespace == namespace).collect();
        all.sort_by_key(|at| (self.proxies[*at].created, name(*at)));
        let mut left = [MOST; 2];
        all.retain(|at| {
            let left = &mut left[usize::from(self.proxies[*at].is_readable)];
            let has_room = *left > 0;
            *left = left.saturating_sub(1);
            has_room
        });
        all
    }

    /// "Those of the Pod's own namespace come first, then those of the MeshConfig's namespace. The first one whose `ports`, `hosts`
    /// and `noProxy` fit the connection or request counts."
    fn way(&self, connection: &Connection) -> Way {
        let mut order = self.in_force(connection.namespace);
        if connection.namespace != ROOT {
            order.extend(self.in_force(ROOT));
        }
        let mut all = order.iter().map(|at| &self.proxies[*at]);
        let first = all.find(|one| one.is_for(self, connection) && one.fits(connection));
        first.map_or(Way::Direct, RandomProxy::way)
    }

    /// The reason of the condition `Accepted`.
    fn reason(&self, at: usize) -> &'static str {
        let one = &self.proxies[at];
        match one {
            _ if !one.is_readable => "Unreadable",
            _ if one.namespace == LONE || one.namespace == ROOT && !self.is_root(ROOT) => "OutsideMesh",
            _ if one.has_errors() => "Invalid",
            _ if !self.in_force(one.namespace).contains(&at) => "TooMany",
            _ if one.secret.is_some() && !one.has_credentials() => "CredentialsNotFound",
            _ => "Accepted",
        }
    }

    /// The proxies that are probed: of objects in force, but none at loopback addresses. Those for requests alone are asked for no
    /// tunnel.
    fn probed(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (at, one) in self.proxies.iter().enumerate() {
            if !["Accepted", "CredentialsNotFound"].contains(&self.reason(at)) {
                continue;
            }
            let scheme = if one.ca_bundle.is_some() { "https" } else { "http" };
            for address in
                one.proxies.iter().chain(&one.http_proxies).filter(|address| **address != "127.0.0.1")
            {
                let opens_tunnels = one.proxies.contains(address);
                let address = socket(address).unwrap();
                all.insert(format!("{}/{} {scheme}://{address} {opens_tunnels}", one.namespace, name(at)));
            }
        }
        all
    }
}

fn sockets(addresses: &[&str]) -> Vec<SocketAddr> {
    addresses.iter().filter_map(|address| socket(address)).collect()
}

/// What the sidecar of the connection's Pod makes of it.
fn compiled(index: &Index, connection: &Connection) -> Way {
    let pod = index.pod(&ObjectName::new(connection.namespace, connection.app)).unwrap();
    let policy = workload(index, pod, &TrustDomain::default()).unwrap();
    let target = ProxyTarget { host: connection.host, dialled: connection.dialled };
    let Some(rule) = policy.egress_proxies.into_iter().find(|rule| rule.applies(target)) else {
        return Way::Direct;
    };
    let EgressProxyRule { proxies, http_proxies, settings, .. } = (*rule).clone();
    if proxies.is_empty() {
        return Way::Refused;
    }
    let for_requests = if http_proxies.is_empty() { proxies.clone() } else { http_proxies };
    Way::Through { proxies, for_requests, has_credentials: settings.credentials.is_some() }
}

/// Whether an object's status warns of `namespaces` that have no effect, and of credentials in clear text.
fn warnings(warnings: &[String]) -> [bool; 2] {
    ["spec.namespaces: ", "spec.credentials: "]
        .map(|field| warnings.iter().any(|text| text.starts_with(field)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn egress_proxies_compile_to_what_the_documentation_says(
        world in world(),
        connections in prop::collection::vec(connection(), 1..20),
    ) {
        let index = world.index();
        for connection in &connections {
            prop_assert_eq!(compiled(&index, connection), world.way(connection), "{:?}", connection);
        }
        let judged = statuses(&StatusScope::everything(&index));
        for (at, one) in world.proxies.iter().enumerate() {
            let of_it = |it: &&(Kind, Judged)| it.0 == Kind::EgressProxy && *it.1.name.name == *name(at);
            let (_, Judged { status, .. }) = judged.iter().find(of_it).unwrap();
            prop_assert_eq!(status.condition, Some(world.reason(at)), "{}: {}", at, status.reason);
            let has_no_effect = !world.is_root(one.namespace) && !one.namespaces.is_empty();
            let is_in_clear_text = one.secret.is_some() && one.ca_bundle.is_none();
            let expected = [has_no_effect, is_in_clear_text].map(|warns| warns && one.is_readable);
            prop_assert_eq!(warnings(&status.warnings), expected, "{}: {:?}", at, status.warnings);
        }
        let probed: Vec<_> = probes(&index).into_iter().map(|probe| format!("{} {} {}", probe.object, probe.proxy, probe.opens_tunnels)).collect();
        prop_assert_eq!(probed.iter().cloned().collect::<BTreeSet<_>>(), world.probed());
        prop_assert_eq!(probed.len(), world.probed().len(), "none is probed twice");
    }
}
