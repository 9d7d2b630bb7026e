//! A controller within its memory limit from the chart, while the holder of one workload's certificate opens as many
//! streams as it can and subscribes to made-up addresses on each. Sidecars of the same identity and of others are
//! served meanwhile. A process of its own, because the limit applies to the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step fails the test")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use rustls_pki_types::ServerName;
use tidegate_controller::source::folder::{FolderSource, is_workload};
use tidegate_controller::{
    Controller, ControllerConfig, ControllerDependencies, ControllerHandle, NAMESPACE, SERVICE_ACCOUNT,
};
use tidegate_core::TrustDomain;
use tidegate_kubernetes::fake_api::memory_limit;
use tidegate_proto::discovery::discovery_client::DiscoveryClient;
use tidegate_proto::discovery::discovery_request::Message;
use tidegate_proto::discovery::{Ack, DiscoveryRequest, DiscoveryResponse, Hello, Node, Subscribe};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::grpc;
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::tls;
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use self::ca::Ca;

#[path = "../src/discovery/tests/ca.rs"]
mod ca;

const CONNECTIONS: usize = 12;
const STREAMS: usize = 8;
const ADDRESSES: usize = 8192;
/// Pods of the attacker: a workload may have four streams.
const WORKLOADS: usize = CONNECTIONS * STREAMS / 4;
const PATIENCE: Duration = Duration::from_secs(120);

struct Mesh {
    ca: Ca,
    controller: ControllerHandle,
    _bundle: watch::Sender<Arc<TrustBundle>>,
    _credentials: watch::Sender<Option<Arc<Credentials>>>,
    _folder: tempfile::TempDir,
}

/// The sidecar's end of a stream.
struct Sidecar {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Mesh {
    async fn start() -> Self {
        tls::install_provider();
        let ca = Ca::new();
        let folder = tempfile::tempdir().unwrap();
        let pod = |name: &str, account: &str, host: usize| {
            serde_json::json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name},
                "spec": {"serviceAccountName": account, "containers": [{"name": "app"}]},
                "status": {"podIP": format!("127.0.0.{host}")},
            })
        };
        let attackers = (0..WORKLOADS).map(|i| pod(&format!("greedy-{i}"), "greedy", 10 + i));
        let others = [pod("second", "greedy", 8), pod("stranger", "modest", 9)];
        let documents: Vec<_> = attackers.chain(others).map(|pod| pod.to_string()).collect();
        std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
        let (bundle, credentials) = (ca.bundle(), ca.issue(SERVICE_ACCOUNT, NAMESPACE));
        let (bundle, trust_bundle) = watch::channel(bundle);
        let (given, credentials) = watch::channel(Some(credentials));
        let readiness = Readiness::new();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = ControllerConfig {
            listen: loopback,
            admin: loopback,
            trust_domain: TrustDomain::default(),
            max_connections: 10_000,
            is_workload,
            mesh_name: None,
            health: None,
        };
        let dependencies = ControllerDependencies {
            source: Box::new(FolderSource::new(folder.path())),
            status_writers: Vec::new(),
            credentials,
            trust_bundle,
            metrics: Metrics::new(),
            readiness: readiness.clone(),
            log: LogHandle::detached(),
        };
        let controller = Controller::start(config, dependencies).await.unwrap();
        readiness.ready().await;
        Self { ca, controller, _bundle: bundle, _credentials: given, _folder: folder }
    }

    /// A separate connection.
    fn connect(&self, account: &str) -> DiscoveryClient<Channel> {
        let config = grpc::client_config(&self.ca.bundle(), Some(&self.ca.issue(account, "shop"))).unwrap();
        let address: grpc::Address =
            format!("https://{}", self.controller.discovery_address).parse().unwrap();
        let name = format!("{SERVICE_ACCOUNT}.{NAMESPACE}.cluster.local");
        let name = ServerName::try_from(name).unwrap();
        DiscoveryClient::new(grpc::channel(&address, name, move || Some(config.clone())))
    }
}

impl Sidecar {
    async fn open(client: &mut DiscoveryClient<Channel>, workload: &str) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(8);
        let node = Node { workload: format!("shop/{workload}"), ..Node::default() };
        let hello = Hello { node: Some(node), known_versions: HashMap::new() };
        requests.send(DiscoveryRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
        let responses = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// Takes responses until this many destinations have arrived.
    async fn take(&mut self, destinations: usize) -> Result<(), Status> {
        let mut found = 0;
        while found < destinations {
            let response = tokio::time::timeout(PATIENCE, self.responses.message()).await;
            let response = response.expect("an answer in time")?.expect("the stream lives");
            let of_destinations = |name: &str| name.starts_with("destination/");
            found += response.resources.iter().filter(|resource| of_destinations(&resource.name)).count();
            let ack = Ack { nonce: response.nonce, rejections: Vec::new() };
            let ack = DiscoveryRequest { message: Some(Message::Ack(ack)) };
            self.requests.send(ack).await.map_err(|_| Status::cancelled("the stream has ended"))?;
        }
        Ok(())
    }

    /// How the stream ends.
    async fn end(&mut self) -> Status {
        loop {
            match self.responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

/// Subscribes to this many made-up addresses, in messages of the largest size that the controller accepts. Returns whether
/// the stream is still open.
async fn subscribe(requests: mpsc::Sender<DiscoveryRequest>, network: usize, addresses: usize) -> bool {
    let name = |i: usize| format!("destination/10.{network}.{}.{}:80", i / 256, i % 256);
    let names: Vec<String> = (0..addresses).map(name).collect();
    for names in names.chunks(2000) {
        let message = Message::Subscribe(Subscribe { names: names.to_vec() });
        if requests.send(DiscoveryRequest { message: Some(message) }).await.is_err() {
            return false;
        }
    }
    true
}

/// The peak memory of this process.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Streams of the attack, one after the other. Sends how each one ended.
async fn attack(
    mut client: DiscoveryClient<Channel>,
    workload: String,
    network: usize,
    ends: mpsc::Sender<Code>,
) {
    loop {
        let end = match Sidecar::open(&mut client, &workload).await {
            Ok(mut sidecar) => {
                let (all, taken) = tokio::join!(
                    subscribe(sidecar.requests.clone(), network, ADDRESSES),
                    sidecar.take(ADDRESSES)
                );
                match taken {
                    // It has every destination and keeps the stream open.
                    Ok(()) if all => sidecar.end().await,
                    Ok(()) => Status::cancelled("the stream has ended"),
                    Err(status) => status,
                }
            }
            Err(status) => status,
        };
        if ends.send(end.code()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn the_streams_of_one_identity_neither_kill_the_controller_nor_starve_others_of_it_or_of_another() {
    let limit = memory_limit("controller");
    setrlimit(Resource::Data, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();
    let mesh = Mesh::start().await;
    let (sender, mut ends) = mpsc::channel(1);
    let mut attackers = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = mesh.connect("greedy");
        for stream in 0..STREAMS {
            let number = connection * STREAMS + stream;
            // Four streams for each of its workloads, the most that one may have.
            let workload = format!("greedy-{}", number % WORKLOADS);
            attackers.spawn(attack(client.clone(), workload, number, sender.clone()));
        }
    }
    drop(sender);
    let first = tokio::time::timeout(PATIENCE, ends.recv()).await.expect("a limit is met").unwrap();
    assert_eq!(first, Code::ResourceExhausted);
    // From here on the share of the identity is used up, and its streams displace each other.
    let refused = tokio::spawn(async move {
        let mut refused = 0;
        while let Some(code) = ends.recv().await {
            refused += usize::from(code == Code::ResourceExhausted);
        }
        refused
    });
    for (account, workload) in [("greedy", "second"), ("modest", "stranger")] {
        let mut client = mesh.connect(account);
        let mut sidecar = Sidecar::open(&mut client, workload).await.unwrap();
        for round in 0..5 {
            let network = 200 + round;
            let (all, taken) =
                tokio::join!(subscribe(sidecar.requests.clone(), network, 50), sidecar.take(50));
            assert!(all, "{workload}: the stream has ended");
            taken.unwrap_or_else(|status| panic!("{workload}: {status}"));
        }
    }
    attackers.shutdown().await;
    let refused = refused.await.unwrap();
    let most = peak();
    println!("{} MiB at most, clients included; {refused} streams were ended", most >> 20);
    assert!(refused > 0 && most < limit, "{} MiB", most >> 20);
}
