//! The mesh that is attacked, and who may reach it.

use std::net::IpAddr;
use std::time::Duration;

use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::app::{App, echo};
use tidegate_tests::client::Client;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, gateway, https, policy, principal, range};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait;

/// The pod's port that wants a client certificate; the healthy client's.
const MUTUAL_PORT: u16 = 14002;
/// The pod's port whose app speaks HTTP/2.
const GRPC_PORT: u16 = 14003;
/// How long a daemon may take to be as it was.
const RECOVERY: Duration = Duration::from_secs(60);

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Sidecar,
    Ca,
    Controller,
}

/// The mesh.
pub(crate) struct Site {
    pub(crate) mesh: Mesh,
    _apps: [App; 2],
    _grpc: H2cApp,
}

impl Site {
    /// Starts it. The attacker's address is let in where the healthy client's is, as outsiders are behind an ingress
    /// controller; it has no certificate.
    pub(crate) fn start() -> Self {
        let mut mesh = Mesh::with(Options {
            ports: vec![(MUTUAL_PORT, "http-mutual"), (GRPC_PORT, "grpc")],
            own_root: true,
            ..Options::default()
        });
        let attacker = range(&format!("{}/32", attacker(&mesh)));
        let open = [gateway(), attacker];
        mesh.apply(
            "policies",
            &[
                policy(
                    "open",
                    &[backend("httpbin", PORT, "http"), backend("httpbin", GRPC_PORT, "http")],
                    &open,
                ),
                policy(
                    "mutual",
                    &[https("httpbin", MUTUAL_PORT, false, &[])],
                    &[gateway(), principal(INGRESS_CLIENT)],
                ),
            ],
        );
        let apps = [PORT, MUTUAL_PORT].map(|port| App::unrecorded(mesh.app_port(port), echo));
        let grpc = H2cApp::unrecorded(mesh.app_port(GRPC_PORT));
        Self { mesh, _apps: apps, _grpc: grpc }
    }

    /// The process of a target.
    pub(crate) fn daemon(&self, target: Target) -> &Daemon {
        match target {
            Target::Sidecar => &self.mesh.sidecar,
            Target::Ca => &self.mesh.ca,
            Target::Controller => &self.mesh.controller,
        }
    }

    /// The attacker, at the port of an HTTP/1 app.
    pub(crate) fn attacker(&self) -> Client {
        Client::to(self.mesh.target()).from(attacker(&self.mesh))
    }

    /// The attacker, at the port of an HTTP/2 app.
    pub(crate) fn attacker_of_grpc(&self) -> Client {
        Client::to(self.mesh.target_port(GRPC_PORT)).from(attacker(&self.mesh))
    }

    /// The healthy client, with its certificate.
    pub(crate) fn healthy(&self) -> Client {
        let tls = self.mesh.tls().credentials(self.mesh.gateway_credentials());
        Client::to(self.mesh.target_port(MUTUAL_PORT)).from(self.mesh.gateway()).tls(tls)
    }

    /// Waits until the target has let go of the attacker.
    pub(crate) fn recover(&self, target: Target) {
        let daemon = self.daemon(target);
        wait::until_true("the daemon has let go of the attacker", RECOVERY, || {
            daemon.is_ready() && daemon.open_files().len() < 100
        });
    }
}

fn attacker(mesh: &Mesh) -> IpAddr {
    mesh.block().ip(97)
}
