//! Names of a backend, from a DNS server to what connections are opened to.

use std::net::IpAddr;

use tidegate_core::backend::{
    Backend, BackendProtocol, BackendRef, DnsAnswers, DnsEndpoint, DnsEndpoints, Transport,
};
use tidegate_core::destination::{DestinationKey, RequestedHost};
use tidegate_core::policy::AppProtocol;
use tidegate_core::{Destination, ObjectRef};
use tidegate_proto::ResourceName;

use super::test_server::{Reply, TestServer};
use super::*;
use crate::destinations::{NoEndpoint, Resource};
use crate::test_mesh::until;

const NAME: &str = "api.example.com";

/// The names of one backend, which an app dials.
struct World {
    destinations: Arc<Destinations>,
    server: TestServer,
    task: tokio::task::JoinHandle<()>,
    key: DestinationKey,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl World {
    /// `host`: the name is that of the connection's host, not the backend's own.
    async fn start(reply: Reply, answers: DnsAnswers, host: Option<&str>) -> Self {
        let destinations = Arc::new(Destinations::default());
        destinations.connect();
        let server = TestServer::start(reply).await;
        let task = tokio::spawn(run(destinations.clone(), vec![server.address]));
        let host = host.map(|host| RequestedHost::of_server_name(DnsName::parse(host).unwrap()));
        let address: SocketAddr = "192.0.2.200:443".parse().unwrap();
        let key = DestinationKey { host: host.clone(), ..address.into() };
        let world = Self { destinations, server, task, key };
        let name = host.is_none().then(|| DnsName::parse(NAME).unwrap());
        world.set(DnsEndpoints {
            names: vec![DnsEndpoint { name, port: 8443, transport: Transport::Plain, weight: 1 }],
            answers,
        });
        world
    }

    fn set(&self, dns: DnsEndpoints) {
        let name = BackendRef { object: ObjectRef::new("ServiceEntry", "shop", "api"), port: 443 };
        let backend =
            Backend { dns: Some(dns), ..Backend::new(name.clone(), BackendProtocol::Tcp, Vec::new()) };
        self.destinations.look_up(&self.key);
        let set = |name, resource| self.destinations.set(&name, "1".into(), resource, 100).unwrap();
        let destination = Destination::backend(AppProtocol::Tcp, name.clone());
        set(ResourceName::Destination(self.key.clone()), Resource::Destination(destination));
        set(ResourceName::Backend(name), Resource::Backend(backend));
        self.destinations.settle(true);
    }

    /// The endpoints that connections may go to; `None` while they wait.
    fn known(&self) -> Option<Vec<String>> {
        let view = self.destinations.view();
        let target = view.first()?.2.clone()?;
        let mut endpoints: Vec<_> =
            target.endpoints().map(|choice| choice.endpoint.address.to_string()).collect();
        endpoints.sort();
        Some(endpoints)
    }

    async fn until_known(&self, endpoints: &[&str]) {
        until(|| self.known().is_some_and(|known| known == endpoints)).await;
    }

    /// Why names could not be looked up.
    fn reasons(&self) -> Vec<String> {
        let view = self.destinations.view();
        let target = view.first().and_then(|(.., target)| target.clone());
        target
            .iter()
            .flat_map(|target| target.lookup_failures().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    fn failure(&self) -> Option<NoEndpoint> {
        let view = self.destinations.view();
        view.first()?.2.as_ref()?.choose_for_connection(None).err()
    }
}

fn addresses(ttl: u32, all: &[&str]) -> Reply {
    Reply::Addresses(ttl, all.iter().map(|text| text.parse().unwrap()).collect())
}

#[tokio::test]
async fn connections_wait_for_the_first_answer_and_use_all_its_addresses_of_their_family() {
    let reply = addresses(60, &["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    let world = World::start(reply, DnsAnswers::All, None).await;
    assert_eq!(world.known(), None);
    world.until_known(&["192.0.2.1:8443", "192.0.2.2:8443"]).await;
    assert_eq!(world.server.queries(), 2, "one for each family");
}

#[tokio::test]
async fn of_dns_round_robin_only_the_first_address_is_used() {
    let world = World::start(addresses(60, &["192.0.2.2", "192.0.2.1"]), DnsAnswers::First, None).await;
    world.until_known(&["192.0.2.2:8443"]).await;
}

#[tokio::test]
async fn the_host_of_a_connection_is_looked_up_where_the_backend_names_none() {
    let world = World::start(addresses(60, &["192.0.2.1"]), DnsAnswers::All, Some("x.example.com")).await;
    world.until_known(&["192.0.2.1:8443"]).await;
}

#[tokio::test]
async fn a_new_answer_moves_connections_and_a_failing_server_leaves_them() {
    // The least TTL passes in between.
    let world = World::start(addresses(0, &["192.0.2.1"]), DnsAnswers::All, None).await;
    world.until_known(&["192.0.2.1:8443"]).await;
    world.server.set(addresses(0, &["192.0.2.7"]));
    world.until_known(&["192.0.2.7:8443"]).await;
    let before = world.server.queries();
    world.server.set(Reply::Failure);
    until(|| world.server.queries() >= before + 4).await;
    assert_eq!(world.known().unwrap(), ["192.0.2.7:8443"]);
    assert_eq!(world.failure(), None);
    world.server.set(addresses(0, &["192.0.2.8"]));
    world.until_known(&["192.0.2.8:8443"]).await;
}

#[tokio::test]
async fn without_an_answer_connections_are_refused_at_once_with_that_reason() {
    for reply in
        [Reply::NoSuchName, Reply::Failure, Reply::Silence, Reply::Garbage, Reply::Circle, addresses(5, &[])]
    {
        let what = format!("{reply:?}");
        let world = World::start(reply, DnsAnswers::All, None).await;
        let start = Instant::now();
        until(|| world.failure().is_some()).await;
        assert!(start.elapsed() < crate::destinations::ANSWER_TIMEOUT, "{what}: {:?}", start.elapsed());
        assert_eq!(world.failure(), Some(NoEndpoint::Unresolved), "{what}");
        world.server.set(addresses(5, &["192.0.2.1"]));
        world.until_known(&["192.0.2.1:8443"]).await;
    }
}

#[tokio::test]
async fn a_huge_answer_comes_over_tcp_and_is_bounded() {
    let many = (0..3000_u32).map(|i| IpAddr::from((0x0a00_0000 + i).to_be_bytes())).collect();
    let world = World::start(Reply::Addresses(60, many), DnsAnswers::All, None).await;
    until(|| world.known().is_some()).await;
    assert_eq!(world.reasons(), [] as [String; 0]);
    assert_eq!(world.known().map(|known| known.len()), Some(256));
}

#[tokio::test]
async fn a_name_that_is_not_used_any_more_is_not_looked_up() {
    let world = World::start(addresses(0, &["192.0.2.1"]), DnsAnswers::All, None).await;
    world.until_known(&["192.0.2.1:8443"]).await;
    let name = DnsName::parse("other.example.com").unwrap();
    world.set(DnsEndpoints {
        names: vec![DnsEndpoint {
            name: Some(name.clone()),
            port: 1,
            transport: Transport::Plain,
            weight: 1,
        }],
        answers: DnsAnswers::All,
    });
    world.until_known(&["192.0.2.1:1"]).await;
    assert_eq!(world.destinations.names().borrow().iter().collect::<Vec<_>>(), [&name]);
}
