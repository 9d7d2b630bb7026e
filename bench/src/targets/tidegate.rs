//! Tidegate: only the sidecars are measured; the CA and the controller that they need run beside them.
//!
//! All are the real programs. The CA signs with the run's own root, so that the refused client is the same as for
//! the other proxies; the admitted client has the certificate that the CA issues for the ingress gateway.

mod caller;
mod outside;
mod rules;
mod tokens;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use self::caller::CallerSidecar;
pub(super) use self::outside::{OutsidePolicy, start_outside};
use self::tokens::TokenKey;
use super::{ClientFiles, MtlsListener, PEERS, Running, TargetSite, free_addresses};
use crate::app;
use crate::certificates::{ALLOWED, SERVER};
use crate::http::HttpConnection;
use crate::process::Process;
use crate::template;
use crate::tls::ClientIdentity;
use crate::topology::ProxyTopology;

/// Kubernetes objects of topology "ingress", with placeholders.
const INGRESS: &str = include_str!("../../templates/tidegate.yaml");
/// Kubernetes objects of topology "pair".
const PAIR: &str = include_str!("../../templates/pair.yaml");
/// The pod's address; its sidecar listens there on the port of the app.
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 1));
/// Namespace and name of the ingress gateway's Secret.
const SECRET: &str = "osm-system/osm-nginx-client-cert";
/// Timeout until a program is ready.
const START: Duration = Duration::from_secs(20);
/// Pause between two looks at a program.
const POLL: Duration = Duration::from_millis(20);

/// The three programs of a release.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReleasePrograms {
    /// `tidegate-cert-manager`.
    pub(super) cert_manager: PathBuf,
    /// `tidegate-controller`.
    pub(super) controller: PathBuf,
    /// `tidegate-sidecar`.
    pub(super) sidecar: PathBuf,
}

/// What distinguishes the targets.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairSettings {
    /// What the app's port declares.
    pub(super) protocol: &'static str,
    /// So many routes of the caller's requests, and matches of a TrafficTarget, come before the one that applies; 0: no
    /// routes, and one match.
    pub(super) rules: usize,
    /// Whether 1 % of the traces are recorded and exported.
    pub(super) is_traced: bool,
}

/// Addresses and shared files of one mesh.
#[derive(Debug)]
struct LocalMesh {
    /// The CA's gRPC.
    ca: SocketAddr,
    /// The CA's admin server.
    ca_admin: SocketAddr,
    /// The controller's discovery.
    discovery: SocketAddr,
    /// The controller's admin server.
    controller_admin: SocketAddr,
    /// The sidecar's admin server.
    sidecar_admin: SocketAddr,
    /// Folder of the Kubernetes objects.
    manifests: PathBuf,
    /// The CA's trust bundle.
    trust_bundle: PathBuf,
    /// Public key that verifies tokens.
    token_key_file: PathBuf,
    /// The controller's service account token.
    controller_token: PathBuf,
    /// The sidecar's service account token.
    sidecar_token: PathBuf,
    /// The sidecar beside the client of a pair.
    caller: Option<CallerSidecar>,
    /// Folder that the CA writes the gateway's certificate to.
    secrets: PathBuf,
    /// Folder of the CA's state.
    store: PathBuf,
}

/// A program's flags, each with its value.
struct ProgramFlags(Vec<String>);

/// Starts CA, controller and sidecars, each after the previous one is ready, and waits until a sidecar has its
/// certificate and its policy.
pub(super) async fn start(site: &TargetSite<'_>, settings: PairSettings) -> Result<Running> {
    let programs = site.programs.tidegate()?;
    let collector = match settings.is_traced {
        true => Some(app::start("collector", site.load_core, site.directory, None).await?),
        false => None,
    };
    let mesh = LocalMesh::prepare(site, settings, collector.as_ref().map(|(_, address)| *address))?;
    let collector = collector.map(|(process, _)| process);
    let [controller, ca] = mesh.start_control_plane(site, &programs).await?;
    let sidecar = mesh.sidecar_arguments(site);
    let sidecar = start_sidecar(site, &programs, "sidecar", sidecar, mesh.sidecar_admin).await?;
    let gateway = mesh.secrets.join(SECRET);

    let Some(caller) = &mesh.caller else {
        return Ok(Running {
            measured: vec![sidecar.id()],
            processes: vec![sidecar, controller, ca],
            address: listen(site),
            tls: Some(ClientFiles {
                ca: gateway.join("ca.crt"),
                server_name: SERVER.to_owned(),
                allowed: ClientIdentity {
                    certificate: gateway.join("tls.crt"),
                    key: gateway.join("tls.key"),
                },
                foreign: site.certificates.foreign.clone(),
            }),
            inner: None,
            collector,
        });
    };
    let outbound =
        start_sidecar(site, &programs, "caller", caller.arguments(site, &mesh), caller.admin).await?;
    Ok(Running {
        measured: vec![outbound.id(), sidecar.id()],
        processes: vec![outbound, sidecar, controller, ca],
        address: caller.outbound,
        tls: None,
        inner: Some(MtlsListener {
            address: listen(site),
            files: ClientFiles::of(site.certificates, &site.certificates.caller),
            // What is not parsed meets no rule that distinguishes requests.
            protocols: if settings.protocol == "tcp" { &[b"tidegate/tcp"] } else { &[b"tidegate/h1"] },
        }),
        collector,
    })
}

/// Starts a sidecar, and waits until it is ready.
async fn start_sidecar(
    site: &TargetSite<'_>,
    programs: &ReleasePrograms,
    name: &str,
    arguments: ProgramFlags,
    admin: SocketAddr,
) -> Result<Process> {
    let mut sidecar = Process::start(name, site.core, site.directory, &programs.sidecar, arguments.0)?;
    until(name, &mut sidecar, async || ready(admin).await).await?;
    Ok(sidecar)
}

impl ReleasePrograms {
    /// `place` is the folder of the programs, or one of the programs in it.
    pub(super) fn find(place: &Path) -> Result<Self> {
        let folder = match place.parent() {
            _ if place.is_dir() => place,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            // A bare name would be searched in PATH.
            _ => Path::new("."),
        };
        let program = |name: &str| {
            let program = folder.join(name);
            if !program.is_file() {
                bail!(
                    "{} does not exist; build it with `cargo build --release`, or give its folder with --tidegate",
                    program.display()
                );
            }
            Ok(program)
        };
        Ok(Self {
            cert_manager: program("tidegate-cert-manager")?,
            controller: program("tidegate-controller")?,
            sidecar: program("tidegate-sidecar")?,
        })
    }
}

impl LocalMesh {
    /// For the client of an app in the mesh, or for an ingress controller. Spans go to `collector`.
    fn prepare(site: &TargetSite<'_>, settings: PairSettings, collector: Option<SocketAddr>) -> Result<Self> {
        let PairSettings { protocol, rules, .. } = settings;
        let port = site.app.port();
        let dialled = (site.topology == ProxyTopology::Pair).then(|| SocketAddr::new(caller::SERVICE, port));
        let mesh = Self::with_manifests(site, &render(site, protocol, collector)?, dialled)?;
        if mesh.caller.is_some() {
            fs::write(mesh.manifests.join("rules.yaml"), rules::manifests(rules, port, protocol))?;
        }
        Ok(mesh)
    }

    /// Writes the programs' input: manifests, tokens and the key that signs the tokens. With an address that a client
    /// dials, the mesh has a sidecar beside it.
    fn with_manifests(site: &TargetSite<'_>, manifests: &str, dialled: Option<SocketAddr>) -> Result<Self> {
        let [ca, ca_admin, discovery, controller_admin, sidecar_admin] = free_addresses()?;
        let path = |name: &str| site.directory.join(name);
        let key = TokenKey::generate()?;
        let mesh = Self {
            ca,
            ca_admin,
            discovery,
            controller_admin,
            sidecar_admin,
            manifests: path("manifests"),
            trust_bundle: path("trust-bundle.pem"),
            token_key_file: path("token-key.pub"),
            controller_token: path("controller.token"),
            sidecar_token: path("sidecar.token"),
            caller: dialled.map(|dialled| CallerSidecar::prepare(site, &key, dialled)).transpose()?,
            secrets: path("secrets"),
            store: path("store"),
        };
        fs::create_dir(&mesh.manifests)?;
        fs::write(mesh.manifests.join("httpbin.yaml"), manifests)?;
        fs::write(&mesh.token_key_file, key.public_pem())?;
        fs::write(&mesh.controller_token, key.token("tidegate-system", "tidegate-controller")?)?;
        fs::write(&mesh.sidecar_token, key.token("httpbin", "httpbin")?)?;
        Ok(mesh)
    }

    /// Starts controller and CA, the latter first, and waits until both are ready.
    async fn start_control_plane(
        &self,
        site: &TargetSite<'_>,
        programs: &ReleasePrograms,
    ) -> Result<[Process; 2]> {
        let start = |name, program: &Path, arguments: ProgramFlags| {
            Process::start(name, site.load_core, site.directory, program, arguments.0)
        };
        let mut ca = start("cert-manager", &programs.cert_manager, self.ca_arguments(site))?;
        let gateway = self.secrets.join(SECRET);
        until("cert-manager", &mut ca, async || {
            ready(self.ca_admin).await && has_content(&gateway, ["ca.crt", "tls.crt", "tls.key"])
        })
        .await?;
        let mut controller = start("controller", &programs.controller, self.controller_arguments())?;
        until("controller", &mut controller, async || ready(self.controller_admin).await).await?;
        Ok([controller, ca])
    }

    /// Flags of the cert-manager.
    fn ca_arguments(&self, site: &TargetSite<'_>) -> ProgramFlags {
        ProgramFlags(Vec::new())
            .with("--listen", self.ca)
            .with("--admin-address", self.ca_admin)
            .with("--serving-name", self.ca.ip())
            .with("--store-dir", self.store.display())
            .with("--ca-certificate", site.certificates.ca.display())
            .with("--ca-key", site.certificates.ca_key.display())
            .with("--bundle-file", self.trust_bundle.display())
            .with("--jwt-keys-file", self.token_key_file.display())
            .with("--jwt-issuer", tokens::ISSUER)
            .with("--jwt-audience", tokens::AUDIENCE)
            .with("--gateway-san", ALLOWED)
            .with("--gateway-secret", SECRET)
            .with("--gateway-dir", self.secrets.display())
    }

    /// Flags of the controller.
    fn controller_arguments(&self) -> ProgramFlags {
        ProgramFlags(Vec::new())
            .with("--folder", self.manifests.display())
            .with("--listen", self.discovery)
            .with("--admin-address", self.controller_admin)
            .with("--ca-address", format!("https://{}", self.ca))
            .with("--ca-trust-bundle", self.trust_bundle.display())
            .with("--token-file", self.controller_token.display())
    }

    /// Flags of the sidecar in front of the app.
    fn sidecar_arguments(&self, site: &TargetSite<'_>) -> ProgramFlags {
        self.workload_arguments(site, "httpbin/httpbin", self.sidecar_admin, &self.sidecar_token)
            .with("--inbound", format!("{}={}", listen(site), site.app))
    }

    /// Flags of any sidecar.
    fn workload_arguments(
        &self,
        site: &TargetSite<'_>,
        workload: &str,
        admin: SocketAddr,
        token: &Path,
    ) -> ProgramFlags {
        let flags = ProgramFlags(Vec::new())
            .with("--workload", workload)
            .with("--discovery-address", format!("https://{}", self.discovery))
            .with("--admin-address", admin)
            .with("--ca-address", format!("https://{}", self.ca))
            .with("--ca-trust-bundle", self.trust_bundle.display())
            .with("--token-file", token.display())
            .with("--workers", 1);
        match site.has_access_log {
            true => flags.with("--access-log-format", "json").with("--access-log-file", "/dev/null"),
            false => flags.with("--access-log-format", "off"),
        }
    }
}

impl ProgramFlags {
    /// Adds a flag.
    fn with(mut self, flag: &str, value: impl ToString) -> Self {
        self.0.extend([flag.to_owned(), value.to_string()]);
        self
    }
}

/// The Kubernetes objects of a run; `protocol` is what the app's port declares. In a pair, only TrafficTargets admit the
/// caller, and 1 % of the traces are recorded for the collector, if there is one.
fn render(site: &TargetSite<'_>, protocol: &str, collector: Option<SocketAddr>) -> Result<String> {
    let mut values = vec![
        ("port", site.app.port().to_string()),
        ("pod_address", POD.to_string()),
        ("protocol", protocol.to_owned()),
    ];
    match site.topology {
        ProxyTopology::Ingress => {
            values.push(("allowed", ALLOWED.to_owned()));
            template::render(INGRESS, &values).context("tidegate.yaml")
        }
        ProxyTopology::Pair | ProxyTopology::Egress => {
            values.push(("tracing", tracing(collector).to_string()));
            values.push(("caller_address", caller::POD.to_string()));
            values.push(("service_address", caller::SERVICE.to_string()));
            template::render(PAIR, &values).context("pair.yaml")
        }
    }
}

/// The MeshConfig's `observability.tracing`.
fn tracing(collector: Option<SocketAddr>) -> Value {
    match collector {
        None => json!({"enable": false}),
        Some(address) => json!({
            "enable": true, "address": address.ip(), "port": address.port(), "sampledFraction": "0.01",
        }),
    }
}

/// Address of the listener of the sidecar in front of the app.
fn listen(site: &TargetSite<'_>) -> SocketAddr {
    SocketAddr::new(POD, site.app.port())
}

/// Waits until `holds`, while the process runs.
async fn until(name: &str, process: &mut Process, mut holds: impl AsyncFnMut() -> bool) -> Result<()> {
    let wait = async {
        loop {
            process.ensure_running()?;
            if holds().await {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    if let Ok(result) = tokio::time::timeout(START, wait).await {
        return result;
    }
    bail!("{name} is not ready after {START:?}: {}", process.log_tail())
}

/// Whether a program's admin server reports ready.
async fn ready(admin: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect(admin).await else { return false };
    let request = format!("GET /ready HTTP/1.1\r\nhost: {PEERS}\r\n\r\n");
    HttpConnection::new(stream).exchange(request.as_bytes()).await.is_ok_and(|answer| answer.status == 200)
}

/// Whether each of these files exists and is not empty.
fn has_content<const COUNT: usize>(folder: &Path, files: [&str; COUNT]) -> bool {
    files.iter().all(|file| fs::metadata(folder.join(file)).is_ok_and(|file| file.len() > 0))
}

#[cfg(test)]
mod tests;
