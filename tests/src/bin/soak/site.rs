//! What runs: a mesh of separate programs with its apps, and a mesh in one process beside it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::app::{App, echo};
use tidegate_tests::client::{Client, Tls};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::load::SecretFiles;
use tidegate_tests::loopback::Block;
use tidegate_tests::mesh::{Mesh, Options, PORT, SERVER_NAME, example};
use tidegate_tests::objects::{backend, gateway, https, policy, principal, range};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait::{self, SOON};

/// The pod's port that needs a client certificate, besides [`PORT`], which takes plaintext.
const MUTUAL_PORT: u16 = 14002;
/// The pod's port whose app speaks HTTP/2 without TLS.
const GRPC_PORT: u16 = 14003;
/// Life of every certificate: several renewals in an hour.
const LIFE: Duration = Duration::from_secs(600);

/// Everything that runs.
pub(crate) struct Site {
    /// The mesh of separate programs.
    pub(crate) mesh: Mesh,
    /// The mesh in one process.
    pub(crate) standalone: Standalone,
    _apps: [App; 3],
    _grpc: H2cApp,
    edits: u32,
}

/// `tidegate standalone` on the example's manifests.
pub(crate) struct Standalone {
    /// The process.
    pub(crate) process: Daemon,
    folder: TempDir,
    block: Block,
}

/// How to come to one port of the mesh; makes a client of what the Secret holds at the moment.
#[derive(Clone)]
pub(crate) struct Way {
    plain: Client,
    secret: Option<SecretFiles>,
    protocols: &'static [&'static str],
}

impl Site {
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
        let standalone = Standalone::start();
        let apps = [
            App::unrecorded(mesh.app_port(PORT), echo),
            App::unrecorded(mesh.app_port(MUTUAL_PORT), echo),
            App::unrecorded(standalone.block.at(20, PORT), echo),
        ];
        let grpc = H2cApp::unrecorded(mesh.app_port(GRPC_PORT));
        Self { mesh, standalone, _apps: apps, _grpc: grpc, edits: 0 }
    }

    /// To the port that takes plaintext.
    pub(crate) fn plain(&self) -> Way {
        Way { plain: self.mesh.client(), secret: None, protocols: &[] }
    }

    /// To the port that wants a client certificate, offering these protocols.
    pub(crate) fn mutual(&self, protocols: &'static [&'static str]) -> Way {
        self.over_tls(MUTUAL_PORT, protocols)
    }

    /// To the port of the gRPC server.
    pub(crate) fn grpc(&self) -> Way {
        self.over_tls(GRPC_PORT, &["h2"])
    }

    /// To the mesh in one process.
    pub(crate) fn standalone(&self) -> Way {
        Way { plain: self.standalone.client(), secret: None, protocols: &[] }
    }

    /// Changes a policy of each mesh that touches no load; returns when both have it.
    pub(crate) fn edit(&mut self) {
        self.edits += 1;
        let source = range(&format!("10.{}.{}.0/24", self.edits / 256 % 256, self.edits % 256));
        let edited = policy("edited", &[backend("httpbin", PORT, "http")], &[source]);
        self.mesh.apply("edited", std::slice::from_ref(&edited));
        write(&self.standalone.manifests().join("edited.yaml"), &edited.to_string());
    }

    fn over_tls(&self, port: u16, protocols: &'static [&'static str]) -> Way {
        let plain = Client::to(self.mesh.target_port(port)).from(self.mesh.gateway());
        Way { plain, secret: Some(self.mesh.secret_files()), protocols }
    }
}

impl Standalone {
    fn start() -> Self {
        let (folder, block) = (tempfile::tempdir().unwrap(), Block::claim());
        let manifests = folder.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        for file in ["mesh/httpbin", "mesh/ingress-nginx", "mesh/meshconfig", "policies/1-http"] {
            let text = fs::read_to_string(example(&format!("{file}.yaml"))).unwrap();
            let name = file.replace('/', "-");
            write(&manifests.join(format!("{name}.yaml")), &text.replace("127.0.7.", &block.prefix()));
        }
        let admin = block.at(3, 15000);
        let arguments = [
            "standalone".to_owned(),
            format!("--folder={}", manifests.display()),
            format!("--state-dir={}", folder.path().join("state").display()),
            format!("--admin-address={admin}"),
        ];
        let mut process =
            Daemon::new("tidegate", "standalone", folder.path(), arguments.to_vec(), Some(admin));
        process.start_ready();
        let standalone = Self { process, folder, block };
        wait::until_true("the mesh in one process lets the client in", SOON, || {
            standalone.client().connect().is_ok()
        });
        standalone
    }

    fn client(&self) -> Client {
        Client::to(self.block.at(10, PORT)).from(self.block.ip(30))
    }

    fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }
}

impl Way {
    /// The client as it is now.
    pub(crate) fn client(&self) -> Client {
        let client = self.plain.clone();
        match &self.secret {
            None => client,
            Some(secret) => client.tls(
                Tls::new(secret.roots(), SERVER_NAME)
                    .credentials(secret.credentials())
                    .protocols(self.protocols),
            ),
        }
    }

    /// A number that changes when the client does.
    pub(crate) fn version(&self) -> u64 {
        self.secret.as_ref().map_or(0, SecretFiles::version)
    }
}

/// Replaces a file as a whole.
fn write(path: &std::path::Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}
