//! The mesh of a target: addresses, files, and the flags of its programs.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::caller::{self, CallerSidecar};
use super::programs::{ReleasePrograms, has_content, ready, until};
use super::tokens::{self, TokenKey};
use super::{PairSettings, TargetSite, rules};
use crate::certificates::ALLOWED;
use crate::process::Process;
use crate::targets::free_addresses;
use crate::template;
use crate::topology::ProxyTopology;

/// Kubernetes objects of topology "ingress", with placeholders.
const INGRESS: &str = include_str!("../../../templates/tidegate.yaml");
/// Kubernetes objects of topology "pair".
const PAIR: &str = include_str!("../../../templates/pair.yaml");
/// The pod's address; its sidecar listens there on the port of the app.
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 1));
/// Namespace and name of the ingress gateway's Secret.
const SECRET: &str = "osm-system/osm-nginx-client-cert";

/// Addresses and shared files of one mesh.
#[derive(Debug)]
pub(super) struct LocalMesh {
    /// The CA's gRPC.
    ca: SocketAddr,
    /// The CA's admin server.
    ca_admin: SocketAddr,
    /// The controller's discovery.
    discovery: SocketAddr,
    /// The controller's admin server.
    controller_admin: SocketAddr,
    /// The sidecar's admin server.
    pub(super) sidecar_admin: SocketAddr,
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
    pub(super) caller: Option<CallerSidecar>,
    /// Folder that the CA writes the gateway's certificate to.
    secrets: PathBuf,
    /// Folder of the CA's state.
    store: PathBuf,
}

/// A program's flags, each with its value.
pub(super) struct ProgramFlags(pub(super) Vec<String>);

impl LocalMesh {
    /// For the client of an app in the mesh, or for an ingress controller. Spans go to `collector`.
    pub(super) fn prepare(
        site: &TargetSite<'_>,
        settings: PairSettings,
        collector: Option<SocketAddr>,
    ) -> Result<Self> {
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
    pub(super) fn with_manifests(
        site: &TargetSite<'_>,
        manifests: &str,
        dialled: Option<SocketAddr>,
    ) -> Result<Self> {
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

    /// Folder of the certificate that the CA issues for the ingress gateway.
    pub(super) fn gateway(&self) -> PathBuf {
        self.secrets.join(SECRET)
    }

    /// Starts controller and CA, the latter first, and waits until both are ready.
    pub(super) async fn start_control_plane(
        &self,
        site: &TargetSite<'_>,
        programs: &ReleasePrograms,
    ) -> Result<[Process; 2]> {
        let start = |name, program: &Path, arguments: ProgramFlags| {
            Process::start(name, site.load_core, site.directory, program, arguments.0)
        };
        let mut ca = start("cert-manager", &programs.cert_manager, self.ca_arguments(site))?;
        let gateway = self.gateway();
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
    pub(super) fn sidecar_arguments(&self, site: &TargetSite<'_>) -> ProgramFlags {
        self.workload_arguments(site, "httpbin/httpbin", self.sidecar_admin, &self.sidecar_token)
            .with("--inbound", format!("{}={}", listen(site), site.app))
    }

    /// Flags of any sidecar.
    pub(super) fn workload_arguments(
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
    pub(super) fn with(mut self, flag: &str, value: impl ToString) -> Self {
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
pub(super) fn listen(site: &TargetSite<'_>) -> SocketAddr {
    SocketAddr::new(POD, site.app.port())
}

#[cfg(test)]
mod tests;
