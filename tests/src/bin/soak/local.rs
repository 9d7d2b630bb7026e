//! On this machine's loopback: a mesh of separate programs with its apps, and a mesh in one process.

use std::time::Duration;

use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::app::{App, echo};
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::files::replace;
use tidegate_tests::mesh::{Mesh, Options, PORT, SERVER_NAME};
use tidegate_tests::objects::{backend, gateway, https, policy, principal, range};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::standalone::StandaloneProcess;

use crate::client_factory::ClientFactory;
use crate::loads::{self, Loads};
use crate::site::{ChangesMade, SoakSite};

/// The pod's port that requires a client certificate, besides [`PORT`], which takes plaintext.
const MUTUAL_PORT: u16 = 14002;
/// The pod's port whose app speaks HTTP/2 without TLS.
const GRPC_PORT: u16 = 14003;
/// Life of every certificate: several renewals per hour.
const LIFE: Duration = Duration::from_secs(600);

/// Both meshes with their apps.
pub(crate) struct Local {
    mesh: Mesh,
    standalone: StandaloneProcess,
    _apps: [App; 3],
    _grpc: H2cApp,
    edits: u32,
    done: ChangesMade,
}

impl Local {
    /// Starts it all.
    pub(crate) fn start() -> Self {
        let mut mesh = Mesh::with(Options {
            ports: vec![(MUTUAL_PORT, "http-mutual"), (GRPC_PORT, "grpc")],
            certificate_life: LIFE,
            gateway_life: LIFE,
            own_root: true,
            ..Options::default()
        });
        mesh.apply(
            "policies",
            &[
                policy("plain", &[backend("httpbin", PORT, "http")], &[gateway()]),
                policy(
                    "mutual",
                    &[https("httpbin", MUTUAL_PORT, false, &[]), https("httpbin", GRPC_PORT, false, &[])],
                    &[gateway(), principal(INGRESS_CLIENT)],
                ),
            ],
        );
        let standalone = StandaloneProcess::start();
        let apps = [mesh.app_port(PORT), mesh.app_port(MUTUAL_PORT), standalone.app_address()];
        let apps = apps.map(|address| App::unrecorded(address, echo));
        let grpc = H2cApp::unrecorded(mesh.app_port(GRPC_PORT));
        standalone.apply_example("1-http");
        standalone.wait_for(&standalone.plain(), &RequestOutcome::Status(200));
        Self { mesh, standalone, _apps: apps, _grpc: grpc, edits: 0, done: ChangesMade::default() }
    }

    fn over_tls(&self, port: u16, protocols: &'static [&'static str]) -> ClientFactory {
        let client = Client::to(self.mesh.target_port(port)).from(self.mesh.gateway());
        ClientFactory::over_tls(client, self.mesh.secret_files(), SERVER_NAME, protocols)
    }
}

impl SoakSite for Local {
    fn start_loads(&self) -> Loads {
        let plain = || ClientFactory::plain(self.mesh.client());
        let mutual = |protocols| self.over_tls(MUTUAL_PORT, protocols);
        let standalone = ClientFactory::plain(self.standalone.plain());
        let mut loads = Loads::default();
        loads.add("HTTP/1.1 in plaintext", 2, plain(), loads::keep_alive);
        loads.add("HTTP/1.1 over mutual TLS", 2, mutual(&[]), loads::keep_alive);
        loads.add("HTTP/1.1 to the mesh in one process", 2, standalone, loads::keep_alive);
        loads.add("HTTP/2 over mutual TLS", 2, mutual(&["h2"]), loads::http2);
        loads.add("gRPC with trailers", 2, self.over_tls(GRPC_PORT, &["h2"]), loads::grpc);
        loads.add("websockets", 4, mutual(&[]), loads::websocket);
        loads.add("event streams", 4, plain(), loads::event_stream);
        loads.add("clients that leave", 2, plain(), loads::leave);
        loads.add("slow readers", 4, mutual(&[]), loads::slow_reader);
        loads
    }

    fn edit(&mut self) {
        self.edits += 1;
        let source = range(&format!("10.{}.{}.0/24", self.edits / 256 % 256, self.edits % 256));
        let edited = policy("edited", &[backend("httpbin", PORT, "http")], &[source]);
        self.mesh.apply("edited", std::slice::from_ref(&edited));
        replace(&self.standalone.manifest("edited.yaml"), &edited.to_string());
    }

    fn rotate(&mut self) {
        // 409: not every process has the new bundle yet.
        let answer = self.mesh.ca.admin_post("/rotation/next", "").unwrap();
        self.done.rotation_steps += u32::from(answer.status() == 200);
    }

    fn restart(&mut self) {
        let is_controller_next = self.done.restarts.is_multiple_of(2);
        let daemon = if is_controller_next { &mut self.mesh.controller } else { &mut self.mesh.ca };
        daemon.kill();
        daemon.start_ready();
        self.mesh.wait_connected();
        self.done.restarts += 1;
    }

    fn finish(&mut self) -> ChangesMade {
        self.done.clone()
    }

    fn restarted(&self) -> &'static str {
        "a daemon of the control plane"
    }

    fn processes(&self) -> Vec<(String, u32)> {
        let daemons = [
            ("sidecar", &self.mesh.sidecar),
            ("controller", &self.mesh.controller),
            ("cert-manager", &self.mesh.ca),
            ("standalone", &self.standalone.process),
        ];
        daemons.map(|(name, daemon)| (name.to_owned(), daemon.pid())).to_vec()
    }
}
