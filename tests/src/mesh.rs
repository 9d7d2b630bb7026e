//! A mesh of processes: CA, controller, sidecars; objects in a folder that the controller follows.
//!
//! [`Mesh::start`] starts the mesh of `examples/ingress` at the test's own addresses: a pod `httpbin/httpbin` behind a
//! Service with port 14001, and the ingress controller's Service with one endpoint. [`Mesh::apply`] changes objects and
//! returns when every sidecar has the resulting policy. The CA's root belongs to the test, so that a test can sign what
//! the CA never would.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, Tls};
use crate::daemon::Daemon;
use crate::files::replace;
use crate::load::SecretFiles;
use crate::loopback::Block;
use crate::pki::{Authority, Credentials, INGRESS_CLIENT, Leaf};
use crate::tokens::TokenKey;
use crate::wait::{self, SOON};
use crate::{objects, tokens};

/// The port of the example's app.
pub const PORT: u16 = 14001;
/// The name in the example app's certificate.
pub const SERVER_NAME: &str = "httpbin.httpbin.cluster.local";

/// Namespace and name of the ingress controller's Secret.
const SECRET: &str = "osm-system/osm-nginx-client-cert";

/// The last part of each process's address in the test's block; ports are those of a cluster.
const CA: u8 = 2;
const CONTROLLER: u8 = 3;
const POD: u8 = 10;
const CALLER: u8 = 11;
const APP: u8 = 20;
const GATEWAY: u8 = 30;
const INJECTOR: u8 = 40;

/// Options of a mesh.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ports of the pod besides 14001, each with the name of its Service port.
    pub ports: Vec<(u16, &'static str)>,
    /// Name of the Service port 14001.
    pub port_name: &'static str,
    /// Life of workload certificates.
    pub certificate_life: Duration,
    /// Life of the ingress controller's certificate.
    pub gateway_life: Duration,
    /// How long the CA waits for a new bundle to spread before the next step of a rotation.
    pub propagation: Duration,
    /// Whether the CA creates its own root.
    pub own_root: bool,
    /// Further arguments of the sidecar.
    pub sidecar_arguments: Vec<String>,
    /// The sidecar's limit of open files.
    pub sidecar_file_limit: Option<u32>,
    /// Whether the sidecar is started.
    pub starts_sidecar: bool,
    /// Whether the objects are those of `examples/ingress/mesh`, with other addresses.
    pub example_files: bool,
}

/// A running mesh. Its processes end when it is dropped.
#[derive(Debug)]
pub struct Mesh {
    /// The CA.
    pub ca: Daemon,
    /// The controller.
    pub controller: Daemon,
    /// The sidecar of pod `httpbin/httpbin`.
    pub sidecar: Daemon,
    /// The CA's root, unless it created its own.
    pub root: Authority,
    /// Signs tokens that the CA accepts.
    pub token_key: TokenKey,
    options: Options,
    generations: BTreeMap<String, usize>,
    folder: TempDir,
    block: Block,
}

impl Default for Options {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            ports: Vec::new(),
            port_name: "http",
            certificate_life: day,
            gateway_life: day,
            propagation: Duration::from_secs(1),
            own_root: false,
            sidecar_arguments: Vec::new(),
            sidecar_file_limit: None,
            starts_sidecar: true,
            example_files: false,
        }
    }
}

impl Mesh {
    /// The example's mesh; returns when all of it is ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// [`Mesh::start`], with options.
    #[track_caller]
    pub fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let block = Block::claim();
        let (root, token_key) = (Authority::root("Mesh Root"), TokenKey::generate());
        let path = folder.path();
        for name in ["objects", "tokens", "given", "state", "secrets"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        replace(&path.join("given/ca.crt"), &root.pem());
        replace(&path.join("given/ca.key"), &root.key_pem());
        replace(&path.join("token.pub"), &token_key.public_pem());
        replace(&path.join("tokens/controller"), &token_key.token("tidegate-system", "tidegate-controller"));
        replace(&path.join("tokens/httpbin"), &token_key.token("httpbin", "httpbin"));
        let ca = Daemon::new(
            "tidegate-cert-manager",
            "ca",
            path,
            ca_arguments(path, &block, &options),
            Some(block.at(CA, 15014)),
        );
        let controller = controller_arguments(path, &block, &options);
        let controller = Daemon::new(
            "tidegate-controller",
            "controller",
            path,
            controller,
            Some(block.at(CONTROLLER, 15014)),
        );
        let sidecar = sidecar(path, &block, &options);
        let mut mesh = Self {
            ca,
            controller,
            sidecar,
            root,
            token_key,
            options,
            generations: BTreeMap::new(),
            folder,
            block,
        };
        mesh.write_example();
        mesh.ca.start_ready();
        mesh.controller.start();
        if mesh.options.starts_sidecar {
            mesh.sidecar.start();
            mesh.sidecar.wait_ready();
        }
        mesh.controller.wait_ready();
        mesh
    }

    /// Replaces the documents of a file, and waits until every sidecar has applied the resulting policy.
    #[track_caller]
    pub fn apply(&mut self, file: &str, documents: &[Value]) {
        let texts: Vec<_> = documents.iter().map(ToString::to_string).collect();
        self.apply_text(file, &texts.join("\n---\n"));
    }

    /// [`Mesh::apply`] of a text.
    #[track_caller]
    pub fn apply_text(&mut self, file: &str, text: &str) {
        let marker = self.write_objects(file, text);
        self.wait_applied(file, &marker);
    }

    /// Writes without waiting; returns where the controller will see the file's marker.
    pub fn write_objects(&mut self, file: &str, text: &str) -> String {
        let generation = self.generations.get(file).copied().unwrap_or_default() + 1;
        self.generations.insert(file.to_owned(), generation);
        // A policy for no workload, on another line each time: its status shows that this version of the file was read.
        let mut marker =
            objects::policy(file, &[objects::backend("marker", 1, "http")], &[objects::gateway()]);
        marker["metadata"]["namespace"] = "marker".into();
        let content = format!("{}{marker}\n---\n{text}\n", "\n".repeat(generation));
        let path = self.path().join("objects").join(format!("{file}.yaml"));
        replace(&path, &content);
        format!("{file}.yaml:{}", generation + 1)
    }

    /// The status of an object, once it has one: those of several kinds are not written at once.
    #[track_caller]
    pub fn status_of(&self, kind: &str, name: &str) -> Value {
        wait::until(&format!("{kind} {name} has a status"), SOON, || {
            let policies = self.controller.admin_json("/policies");
            let mut all = policies.as_array()?.iter();
            all.find(|policy| policy["kind"] == *kind && policy["name"] == *name).cloned()
        })
    }

    /// Writes a file byte for byte. Waits for the policy to change, which it must.
    #[track_caller]
    pub fn apply_verbatim(&self, file: &str, text: &str) {
        let before = self.versions();
        replace(&self.path().join("objects").join(file), text);
        wait::until_true(&format!("{file} changes the policy"), SOON, || self.versions() != before);
        self.wait_acknowledged();
    }

    /// The version of each workload's policy.
    fn versions(&self) -> Vec<Value> {
        let workloads = self.controller.admin_json("/workloads");
        workloads.as_array().unwrap().iter().map(|workload| workload["version"].clone()).collect()
    }

    /// Waits until the sidecar holds what the controller compiled from the version of the file with this marker.
    #[track_caller]
    pub(crate) fn wait_applied(&self, file: &str, marker: &str) {
        wait::until_true(&format!("the controller reads {file}"), SOON, || {
            let policies = self.controller.admin_json("/policies");
            policies.as_array().unwrap().iter().any(|policy| {
                policy["namespace"] == "marker" && policy["name"] == *file && policy["file"] == *marker
            })
        });
        self.wait_acknowledged();
    }

    /// Waits until each connected sidecar has the newest policy.
    #[track_caller]
    pub fn wait_acknowledged(&self) {
        wait::until_true("every sidecar has the newest policy", SOON, || {
            let workloads = self.controller.admin_json("/workloads");
            workloads.as_array().unwrap().iter().all(|workload| {
                let sidecar = &workload["sidecar"];
                sidecar["connected"] != true || sidecar["ackedVersion"] == workload["version"]
            })
        });
    }

    /// Waits until the sidecar's stream to the controller is open, and its policy is the newest.
    #[track_caller]
    pub fn wait_connected(&self) {
        wait::until_true("the sidecar is connected", 2 * SOON, || {
            let workloads = self.controller.admin_json("/workloads");
            workloads.as_array().unwrap().iter().any(|workload| workload["sidecar"]["connected"] == true)
        });
        self.wait_acknowledged();
    }

    /// Removes a file of objects, and waits until its marker's status is gone.
    #[track_caller]
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path().join("objects").join(format!("{file}.yaml"))).unwrap();
        wait::until_true(&format!("the controller forgets {file}"), SOON, || {
            let policies = self.controller.admin_json("/policies");
            !policies.as_array().unwrap().iter().any(|p| p["namespace"] == "marker" && p["name"] == *file)
        });
        self.wait_acknowledged();
    }

    /// `currentStatus` and `reason` of an IngressBackend of namespace `httpbin`.
    #[track_caller]
    pub fn status(&self, name: &str) -> (String, String) {
        let policies = self.controller.admin_json("/policies");
        let policy = policies.as_array().unwrap().iter().find(|policy| {
            policy["kind"] == "IngressBackend" && policy["namespace"] == "httpbin" && policy["name"] == *name
        });
        let policy = policy.unwrap_or_else(|| panic!("no status of {name} in {policies}"));
        let text = |field: &str| policy[field].as_str().unwrap_or_default().to_owned();
        (text("currentStatus"), text("reason"))
    }

    /// The folder of everything.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The test's addresses.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Where the sidecar listens.
    pub fn target(&self) -> SocketAddr {
        self.target_port(PORT)
    }

    /// Where the sidecar listens for another port of the pod.
    pub fn target_port(&self, port: u16) -> SocketAddr {
        self.block.at(POD, port)
    }

    /// Where the app listens.
    pub fn app_address(&self) -> SocketAddr {
        self.app_port(PORT)
    }

    /// Where the app listens for another port of the pod.
    pub fn app_port(&self, port: u16) -> SocketAddr {
        self.block.at(APP, port)
    }

    /// The ingress controller's address.
    pub fn gateway(&self) -> IpAddr {
        self.block.ip(GATEWAY)
    }

    /// An address that no object names.
    pub fn stranger(&self) -> IpAddr {
        self.block.ip(99)
    }

    /// Where the ingress controller may listen.
    pub fn front(&self) -> SocketAddr {
        self.block.at(GATEWAY, 8080)
    }

    /// Where the CA listens.
    pub fn ca_address(&self) -> SocketAddr {
        self.block.at(CA, 15012)
    }

    /// Where the controller listens.
    pub fn discovery_address(&self) -> SocketAddr {
        self.block.at(CONTROLLER, 15128)
    }

    /// A plaintext client at the ingress controller's address.
    pub fn client(&self) -> Client {
        Client::to(self.target()).from(self.gateway())
    }

    /// What TLS clients trust and require: the mesh's roots, the app's name.
    pub fn tls(&self) -> Tls {
        Tls::new(self.roots(), SERVER_NAME)
    }

    /// A client at the ingress controller's address, with its certificate.
    pub fn tls_client(&self) -> Client {
        self.client().tls(self.tls().credentials(self.gateway_credentials()))
    }

    /// The ingress controller's certificate as the CA wrote it.
    pub fn gateway_credentials(&self) -> Credentials {
        self.secret_files().credentials()
    }

    /// A client certificate that the test itself signs with the mesh's root.
    pub fn sign(&self, leaf: &Leaf) -> Credentials {
        assert!(!self.options.own_root, "the root's key is the CA's");
        self.root.issue(leaf)
    }

    /// The folder to which the CA writes the ingress controller's certificate.
    pub fn secret(&self) -> PathBuf {
        self.path().join("secrets").join(SECRET)
    }

    /// [`Mesh::secret`] for a client that follows it.
    pub fn secret_files(&self) -> SecretFiles {
        SecretFiles(self.secret())
    }

    /// The trust bundle as the CA publishes it.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        crate::pki::certificates(&fs::read_to_string(self.bundle()).unwrap())
    }

    /// The file of the trust bundle.
    pub fn bundle(&self) -> PathBuf {
        self.path().join("bundle.pem")
    }

    /// A sidecar like the mesh's own, for another instance of the same pod; not started. It listens at `host`.
    pub fn another_sidecar(&self, name: &str, host: u8) -> Daemon {
        let arguments = sidecar_arguments(self.path(), &self.block, &self.options, host);
        Daemon::new("tidegate-sidecar", name, self.path(), arguments, Some(self.block.at(host, 15000)))
    }

    /// A sidecar of the same pod that takes what the kernel redirects, run by this user; not started.
    pub fn transparent_sidecar(&self, user: u32, further: &[&str]) -> Daemon {
        self.transparent("httpbin", user, further)
    }

    /// [`Mesh::transparent_sidecar`] of another pod of namespace `httpbin`, whose account has the same name.
    pub fn another_transparent_sidecar(&self, name: &str, user: u32, further: &[&str]) -> Daemon {
        replace(&self.path().join("tokens").join(name), &self.token_key.token("httpbin", name));
        self.transparent(name, user, further)
    }

    /// A sidecar of a pod in transparent mode, as user `user`, so that the interception's rule for its own traffic
    /// applies.
    fn transparent(&self, pod: &str, user: u32, further: &[&str]) -> Daemon {
        let mut arguments = workload_arguments(self.path(), &self.block, &self.options, pod, POD);
        arguments.0.push("--transparent".to_owned());
        arguments.0.extend(further.iter().map(ToString::to_string));
        let name = if pod == "httpbin" { "sidecar" } else { pod };
        Daemon::new("tidegate-sidecar", name, self.path(), arguments.0, Some(self.block.at(POD, 15000)))
            .with_user(user)
    }

    /// The sidecar of another pod, `httpbin/caller`, which runs as a service account of the same name; not started. Its
    /// app dials `destination` at [`Mesh::way_out`].
    pub fn caller(&mut self, destination: &str) -> Daemon {
        self.caller_in("httpbin", destination)
    }

    /// [`Mesh::caller`] in this namespace.
    pub fn caller_in(&mut self, namespace: &str, destination: &str) -> Daemon {
        replace(&self.path().join("tokens/caller"), &self.token_key.token(namespace, "caller"));
        let mut pod = objects::pod("caller", "caller", &self.block.ip(CALLER).to_string(), &[]);
        pod["metadata"]["namespace"] = namespace.into();
        self.write_objects("caller", &pod.to_string());
        let block = &self.block;
        let mut arguments = Arguments::default();
        arguments
            .add("--workload", format!("{namespace}/caller"))
            .add("--discovery-address", format!("https://{}", block.at(CONTROLLER, 15128)))
            .add("--admin-address", block.at(CALLER, 15000))
            .add("--inbound", format!("{}={}", block.at(CALLER, PORT), block.at(APP, PORT + 1000)))
            .add("--outbound", format!("{}={destination}", self.way_out()))
            .ca(self.path(), block, &self.options, "caller");
        Daemon::new("tidegate-sidecar", "caller", self.path(), arguments.0, Some(block.at(CALLER, 15000)))
    }

    /// The injector of a cluster, with a certificate of this mesh; not started.
    pub fn injector(&self, kubeconfig: &Path) -> Daemon {
        let token = self.token_key.token("tidegate-system", "tidegate-injector");
        replace(&self.path().join("tokens/injector"), &token);
        let admin = self.block.at(INJECTOR, 15000);
        let mut arguments = Arguments::default();
        arguments
            .add("--kubeconfig", kubeconfig.display())
            .add("--sidecar-image", "tidegate/sidecar:1.0.0")
            .add("--webhook-address", self.webhook_address())
            .add("--admin-address", admin)
            .ca(self.path(), &self.block, &self.options, "injector");
        Daemon::new("tidegate-injector", "injector", self.path(), arguments.0, Some(admin))
    }

    /// Where [`Mesh::injector`] listens.
    pub fn webhook_address(&self) -> SocketAddr {
        self.block.at(INJECTOR, 9443)
    }

    /// Where the app of [`Mesh::caller`] connects instead of its destination.
    pub fn way_out(&self) -> SocketAddr {
        self.block.at(CALLER, 15001)
    }

    /// Writes the example's objects, either generated with the options or translated from the files in `examples/`.
    fn write_example(&mut self) {
        if self.options.example_files {
            for name in ["httpbin", "ingress-nginx", "meshconfig"] {
                let text = fs::read_to_string(example(&format!("mesh/{name}.yaml"))).unwrap();
                self.write_objects(name, &text.replace("127.0.7.", &self.block.prefix()));
            }
            return;
        }
        let mut ports = vec![(PORT, self.options.port_name)];
        ports.extend(&self.options.ports);
        let mesh = [
            objects::service("httpbin", "httpbin", &ports),
            objects::pod("httpbin", "httpbin", &self.block.ip(POD).to_string(), &[]),
        ];
        let texts: Vec<_> = mesh.iter().chain(&objects::gateway_service()).map(ToString::to_string).collect();
        self.write_objects("mesh", &texts.join("\n---\n"));
        self.write_objects("config", &objects::mesh_config(true).to_string());
        let endpoints = objects::gateway_endpoints(&[self.gateway().to_string()]);
        self.write_objects("endpoints", &endpoints.to_string());
    }
}

/// A file below `examples/ingress`.
pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/ingress").join(name)
}

/// The CA's command line; without `own_root` it is given the test's root.
fn ca_arguments(path: &Path, block: &Block, options: &Options) -> Vec<String> {
    let mut arguments = Arguments::default();
    let life = seconds(options.certificate_life);
    arguments
        .add("--listen", block.at(CA, 15012))
        .add("--admin-address", block.at(CA, 15014))
        .add("--serving-name", block.ip(CA))
        .add("--store-dir", path.join("state").display())
        .add("--bundle-file", path.join("bundle.pem").display())
        .add("--jwt-keys-file", path.join("token.pub").display())
        .add("--jwt-issuer", tokens::ISSUER)
        .add("--default-lifetime", &life)
        .add("--max-lifetime", &life)
        .add("--bundle-propagation", seconds(options.propagation))
        .add("--gateway-san", INGRESS_CLIENT)
        .add("--gateway-validity", seconds(options.gateway_life))
        .add("--gateway-secret", SECRET)
        .add("--gateway-dir", path.join("secrets").display());
    if !options.own_root {
        arguments
            .add("--ca-certificate", path.join("given/ca.crt").display())
            .add("--ca-key", path.join("given/ca.key").display());
    }
    arguments.0
}

/// The controller's command line: the folder as its source, and a certificate from the CA like any daemon's.
fn controller_arguments(path: &Path, block: &Block, options: &Options) -> Vec<String> {
    let mut arguments = Arguments::default();
    arguments
        .add("--folder", path.join("objects").display())
        .add("--listen", block.at(CONTROLLER, 15128))
        .add("--admin-address", block.at(CONTROLLER, 15014))
        .ca(path, block, options, "controller");
    arguments.0
}

fn sidecar(path: &Path, block: &Block, options: &Options) -> Daemon {
    let arguments = sidecar_arguments(path, block, options, POD);
    let daemon = Daemon::new("tidegate-sidecar", "sidecar", path, arguments, Some(block.at(POD, 15000)));
    match options.sidecar_file_limit {
        Some(files) => daemon.with_file_limit(files),
        None => daemon,
    }
}

/// What every sidecar of pod `pod` has in common; `host` selects where its admin server listens.
fn workload_arguments(path: &Path, block: &Block, options: &Options, pod: &str, host: u8) -> Arguments {
    let mut arguments = Arguments::default();
    arguments
        .add("--workload", format!("httpbin/{pod}"))
        .add("--discovery-address", format!("https://{}", block.at(CONTROLLER, 15128)))
        .add("--admin-address", block.at(host, 15000))
        .ca(path, block, options, pod);
    arguments
}

/// The example's sidecar: a listener for each port of the pod, at `host`, in front of the app's.
fn sidecar_arguments(path: &Path, block: &Block, options: &Options, host: u8) -> Vec<String> {
    let mut arguments = workload_arguments(path, block, options, "httpbin", host);
    for port in options.ports.iter().map(|(port, _)| *port).chain([PORT]) {
        arguments.add("--inbound", format!("{}={}", block.at(host, port), block.at(APP, port)));
    }
    arguments.0.extend(options.sidecar_arguments.iter().cloned());
    arguments.0
}

/// A command line under construction.
#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, flag: &str, value: impl ToString) -> &mut Self {
        self.0.extend([flag.to_owned(), value.to_string()]);
        self
    }

    /// The flags of a client of the CA, with the token file `tokens/<token>`.
    fn ca(&mut self, path: &Path, block: &Block, options: &Options, token: &str) -> &mut Self {
        self.add("--ca-address", format!("https://{}", block.at(CA, 15012)))
            .add("--ca-trust-bundle", path.join("bundle.pem").display())
            .add("--token-file", path.join("tokens").join(token).display())
            .add("--certificate-lifetime", seconds(options.certificate_life))
    }
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs())
}
