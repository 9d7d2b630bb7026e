//! The mesh that is attacked, and its clients.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::json;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::app::{App, Conversation, echo};
use tidegate_tests::client::{Client, Tls};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{self, backend, gateway, https, policy, principal, range};
use tidegate_tests::pki::{INGRESS_CLIENT, Leaf};
use tidegate_tests::{wait, webhook};

use crate::api;
use crate::share::ProcessorShares;

/// The pod's port that requires a client certificate; used by the healthy client.
const MUTUAL_PORT: u16 = 14002;
/// The pod's port whose app speaks HTTP/2.
const GRPC_PORT: u16 = 14003;
/// How long a daemon may take to recover.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long the app takes to answer a probe.
const PROBE: Duration = Duration::from_millis(500);
/// The name in the controller's certificate.
const CONTROLLER: &str = "tidegate-controller.tidegate-system.cluster.local";

/// The attacker's meshed workload, of namespace `httpbin`.
pub(crate) const HOG: &str = "hog";

/// Healthy clients of an innocuous load, besides the one that is watched.
pub(crate) const OTHER_CLIENTS: usize = 8;

/// Hosts of the mesh's block of addresses.
const HOG_HOST: u8 = 59;
/// The first of several.
const SECOND_HOST: u8 = 60;
const API_HOST: u8 = 41;
const ATTACKER_HOST: u8 = 97;
const HEALTHY_HOST: u8 = 98;

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttackTarget {
    Sidecar,
    Ca,
    Controller,
    Injector,
}

/// The mesh.
pub(crate) struct HostileSite {
    pub(crate) mesh: Mesh,
    pub(crate) shares: ProcessorShares,
    injector: Daemon,
    probe_port: u16,
    _apps: Apps,
}

struct Apps {
    _attacked: (App, H2cApp),
    _healthy: App,
    _probed: App,
    _api: App,
}

impl HostileSite {
    /// Starts it. The policy admits the attacker's address wherever it admits the healthy client's, like clients behind
    /// an ingress controller. The attacker has no certificate, except for some attacks that of a meshed Pod.
    pub(crate) fn start(shares: ProcessorShares) -> Self {
        let probed = shares.as_client(|| App::unrecorded((Ipv4Addr::LOCALHOST, 0).into(), slow));
        let probe_port = free_port();
        let probe = json!([{
            "port": probe_port,
            "path": "/probe",
            "timeoutSeconds": 1,
            "target": {"http": {"port": probed.address().port(), "path": "/"}},
        }]);
        let mut mesh = shares.as_mesh(|| {
            Mesh::with(Options {
                ports: vec![(MUTUAL_PORT, "http-mutual"), (GRPC_PORT, "grpc")],
                sidecar_arguments: vec!["--probes".to_owned(), probe.to_string()],
                ..Options::default()
            })
        });
        let pod = |name: &str, host| objects::pod(name, name, &mesh.block().ip(host).to_string(), &[]);
        let mut pods = vec![pod(HOG, HOG_HOST)];
        pods.extend((0..=OTHER_CLIENTS).map(|number| pod(&second(number), SECOND_HOST + number as u8)));
        let open = [gateway(), range(&format!("{}/32", mesh.block().ip(ATTACKER_HOST)))];
        let policies = [
            policy("open", &[backend("httpbin", PORT, "http"), backend("httpbin", GRPC_PORT, "http")], &open),
            policy(
                "mutual",
                &[https("httpbin", MUTUAL_PORT, false, &[])],
                &[gateway(), principal(INGRESS_CLIENT)],
            ),
        ];
        mesh.apply("pods", &pods);
        mesh.apply("policies", &policies);
        let bundle = fs::read_to_string(mesh.bundle()).unwrap();
        let api = mesh.block().at(API_HOST, 6443);
        let http = |port| App::unrecorded(mesh.app_port(port), echo);
        // Work of an app for the attacker is not to delay the app of the healthy client.
        let attacked = shares.as_attacker(|| (http(PORT), H2cApp::unrecorded(mesh.app_port(GRPC_PORT))));
        let apps = shares.as_client(|| Apps {
            _attacked: attacked,
            _healthy: http(MUTUAL_PORT),
            _probed: probed,
            _api: api::start(api, &bundle),
        });
        let kubeconfig = mesh.path().join("kubeconfig");
        fs::write(&kubeconfig, api::kubeconfig(api)).unwrap();
        let mut injector = mesh.injector(&kubeconfig);
        shares.as_mesh(|| injector.start_ready());
        Self { mesh, shares, injector, probe_port, _apps: apps }
    }

    /// The process of a target.
    pub(crate) fn daemon(&self, target: AttackTarget) -> &Daemon {
        match target {
            AttackTarget::Sidecar => &self.mesh.sidecar,
            AttackTarget::Ca => &self.mesh.ca,
            AttackTarget::Controller => &self.mesh.controller,
            AttackTarget::Injector => &self.injector,
        }
    }

    /// The attacker, at the port of an HTTP/1 app.
    pub(crate) fn attacker(&self) -> Client {
        Client::to(self.mesh.target()).from(self.attacker_ip())
    }

    /// The attacker, at the port of an HTTP/2 app.
    pub(crate) fn attacker_of_grpc(&self) -> Client {
        Client::to(self.mesh.target_port(GRPC_PORT)).from(self.attacker_ip())
    }

    /// The attacker, at kubelet's port for probes.
    pub(crate) fn attacker_of_probes(&self) -> Client {
        self.prober().from(self.attacker_ip())
    }

    /// The attacker, at the CA.
    pub(crate) fn attacker_of_ca(&self) -> Client {
        self.ca().from(self.attacker_ip())
    }

    /// The attacker, at the injector's webhook.
    pub(crate) fn attacker_of_webhook(&self) -> Client {
        self.webhook().from(self.attacker_ip())
    }

    /// The attacker, at the controller, as a meshed Pod.
    pub(crate) fn attacker_of_controller(&self) -> Client {
        self.controller(HOG).from(self.attacker_ip())
    }

    /// The healthy client of the sidecar, with its certificate.
    pub(crate) fn ingress(&self) -> Client {
        let tls = self.mesh.tls().credentials(self.mesh.gateway_credentials());
        Client::to(self.mesh.target_port(MUTUAL_PORT)).from(self.mesh.gateway()).tls(tls)
    }

    /// kubelet.
    pub(crate) fn prober(&self) -> Client {
        let address = SocketAddr::new(self.mesh.target().ip(), self.probe_port);
        Client::to(address).from(self.mesh.block().ip(HEALTHY_HOST))
    }

    /// A client of the CA.
    pub(crate) fn ca(&self) -> Client {
        let address = self.mesh.ca_address();
        let tls = Tls::new(self.mesh.roots(), &address.ip().to_string()).protocols(&["h2"]);
        Client::to(address).from(self.mesh.block().ip(HEALTHY_HOST)).tls(tls)
    }

    /// The API server, as a client of the webhook.
    pub(crate) fn webhook(&self) -> Client {
        let tls = Tls::new(self.mesh.roots(), webhook::NAME);
        Client::to(self.mesh.webhook_address()).from(self.mesh.block().ip(HEALTHY_HOST)).tls(tls)
    }

    /// The sidecar of a workload, as a client of the controller.
    pub(crate) fn controller(&self, workload: &str) -> Client {
        let credentials = self.mesh.sign(&Leaf::workload("httpbin", workload));
        let tls = Tls::new(self.mesh.roots(), CONTROLLER).credentials(credentials).protocols(&["h2"]);
        Client::to(self.mesh.discovery_address()).from(self.mesh.block().ip(HEALTHY_HOST)).tls(tls)
    }

    /// Waits until the target has released what the attacker held.
    pub(crate) fn recover(&self, target: AttackTarget) {
        let daemon = self.daemon(target);
        wait::until_true("the daemon has released what the attacker held", RECOVERY, || {
            daemon.is_ready() && daemon.open_files().len() < 100
        });
    }

    fn attacker_ip(&self) -> IpAddr {
        self.mesh.block().ip(ATTACKER_HOST)
    }
}

/// A workload of namespace `httpbin` for a healthy client of the controller; the first is watched.
pub(crate) fn second(number: usize) -> String {
    format!("second-{number}")
}

/// The app that delays its answers to probes.
fn slow(conversation: &mut Conversation) -> std::io::Result<()> {
    while conversation.request()?.is_some() && conversation.pause(PROBE) {
        conversation.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
    Ok(())
}

/// A port that is free at every address, as probe ports must be.
fn free_port() -> u16 {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}
