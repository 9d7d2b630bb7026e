//! The measured targets: each one's configuration, start and addresses.

mod envoy;
mod haproxy;
mod nginx;
mod tidegate;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use self::tidegate::{MeshSettings, OutsidePolicy};
use crate::certificates::{OUTSIDE, RunCertificates, SERVER};
use crate::process::{Process, usage};
use crate::tls::ClientIdentity;
use crate::topology::ProxyTopology;

/// Address of the compared proxies: outgoing connections do not take their ports from it.
const PEERS: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 10);

/// A measured target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// Client → app, plaintext: without a proxy.
    Direct,
    /// Tidegate's sidecar, and HTTP.
    Tidegate,
    /// Tidegate's sidecar, for which the bytes are opaque.
    TidegateTcp,
    /// Tidegate's sidecar and HTTP, with its access log.
    TidegateLog,
    /// Tidegate's sidecars and HTTP; of the traces, 1 % are recorded and exported.
    TidegateTraces,
    /// Tidegate's sidecars and HTTP, with 100 rules at either side, of which the last one applies.
    #[value(name = "tidegate-100-rules")]
    #[serde(rename = "tidegate-100-rules")]
    Tidegate100Rules,
    /// The same with 1,000 rules.
    #[value(name = "tidegate-1000-rules")]
    #[serde(rename = "tidegate-1000-rules")]
    Tidegate1000Rules,
    /// Tidegate's sidecar, and ServiceEntries for the names of the app outside the mesh.
    #[value(name = "tidegate-3-entries")]
    #[serde(rename = "tidegate-3-entries")]
    Tidegate3Entries,
    /// The same among 1,000 ServiceEntries.
    #[value(name = "tidegate-1000-entries")]
    #[serde(rename = "tidegate-1000-entries")]
    Tidegate1000Entries,
    /// The same among 10,000 ServiceEntries.
    #[value(name = "tidegate-10000-entries")]
    #[serde(rename = "tidegate-10000-entries")]
    Tidegate10000Entries,
    /// Tidegate's sidecar, and Egresses with 1,000 hosts.
    #[value(name = "tidegate-1000-hosts")]
    #[serde(rename = "tidegate-1000-hosts")]
    Tidegate1000Hosts,
    /// The same with 10,000 hosts.
    #[value(name = "tidegate-10000-hosts")]
    #[serde(rename = "tidegate-10000-hosts")]
    Tidegate10000Hosts,
    Nginx,
    /// nginx with its access log.
    NginxLog,
    Haproxy,
    /// Envoy, and HTTP.
    Envoy,
    /// Envoy and HTTP, with its access log.
    EnvoyLog,
    /// Envoy, for which the bytes are opaque.
    EnvoyTcp,
}

/// Paths of the programs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Programs {
    /// Folder of Tidegate's programs, or one of the programs in it; by default this program's own folder.
    #[arg(long, value_name = "DIR_OR_FILE", default_value_os_t = default_tidegate())]
    tidegate: PathBuf,
    /// nginx; by default searched in PATH and the sbin folders.
    #[arg(long)]
    nginx: Option<PathBuf>,
    /// HAProxy; by default searched in PATH and the sbin folders.
    #[arg(long)]
    haproxy: Option<PathBuf>,
    /// Envoy; by default the one that bench/setup.sh installed, otherwise searched in PATH.
    #[arg(long)]
    envoy: Option<PathBuf>,
}

/// What a target is started with.
pub(crate) struct TargetSite<'a> {
    /// How the target is connected with client and app.
    pub(crate) topology: ProxyTopology,
    /// An empty folder for configuration, state and logs.
    pub(crate) directory: &'a Path,
    /// Certificates of the proxy, and of the clients that it admits and refuses.
    pub(crate) certificates: &'a RunCertificates,
    /// Address of the app.
    pub(crate) app: SocketAddr,
    /// Core of the measured processes.
    pub(crate) core: usize,
    /// Core of load and app, and of a target's other processes.
    pub(crate) load_core: usize,
    /// Paths of the programs.
    pub(crate) programs: &'a Programs,
    /// Whether proxies and app speak HTTP/2 among themselves instead of HTTP/1.1.
    pub(crate) is_http2: bool,
    /// Whether the proxies write an access log, to /dev/null.
    pub(crate) has_access_log: bool,
}

/// A started target. Its processes stop when it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its processes, the measured ones first.
    processes: Vec<Process>,
    /// The processes that carry the traffic, the client's side first. CPU time is that of all, memory that of the
    /// first, including their children's.
    pub(crate) measured: Vec<u32>,
    /// The address that clients connect to.
    pub(crate) address: SocketAddr,
    /// How clients connect; `None` for plaintext.
    pub(crate) tls: Option<ClientFiles>,
    /// The mTLS listener between the two sides of a pair; `None` without one.
    pub(crate) inner: Option<MtlsListener>,
    /// The collector of spans; `None` if nothing is traced.
    pub(crate) collector: Option<Process>,
}

/// A listener that admits one client by its certificate.
#[derive(Debug, Clone)]
pub(crate) struct MtlsListener {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// How clients connect.
    pub(crate) files: ClientFiles,
    /// The protocols that they offer by ALPN.
    pub(crate) protocols: &'static [&'static [u8]],
}

/// A started proxy, and where it listens.
struct StartedProxy {
    process: Process,
    listen: SocketAddr,
}

/// What a client needs to connect to a target.
#[derive(Debug, Clone)]
pub(crate) struct ClientFiles {
    /// The CA of the target's certificate.
    pub(crate) ca: PathBuf,
    /// A name in the target's certificate.
    pub(crate) server_name: String,
    /// A client that is admitted.
    pub(crate) allowed: ClientIdentity,
    /// A client that is refused.
    pub(crate) foreign: ClientIdentity,
}

impl Target {
    /// The targets that are measured in a topology, in the order of the columns.
    pub(crate) fn all(topology: ProxyTopology) -> &'static [Self] {
        match topology {
            ProxyTopology::Ingress => {
                &[Self::Direct, Self::Tidegate, Self::Nginx, Self::Haproxy, Self::Envoy]
            }
            ProxyTopology::Pair => &[
                Self::Direct,
                Self::Tidegate,
                Self::TidegateTcp,
                Self::Tidegate100Rules,
                Self::Tidegate1000Rules,
                Self::Nginx,
                Self::Haproxy,
                Self::Envoy,
                Self::EnvoyTcp,
            ],
            ProxyTopology::Egress => &[
                Self::Tidegate,
                Self::Tidegate3Entries,
                Self::Tidegate1000Entries,
                Self::Tidegate10000Entries,
                Self::Tidegate1000Hosts,
                Self::Tidegate10000Hosts,
                Self::Envoy,
            ],
        }
    }

    /// The targets that an extended run measures in addition, in the order of the columns.
    pub(crate) fn extended(topology: ProxyTopology) -> &'static [Self] {
        match topology {
            ProxyTopology::Ingress => &[Self::TidegateLog, Self::NginxLog, Self::EnvoyLog],
            ProxyTopology::Egress => &[],
            ProxyTopology::Pair => &[Self::TidegateLog, Self::TidegateTraces, Self::NginxLog, Self::EnvoyLog],
        }
    }

    /// Whether its proxies write an access log.
    pub(crate) fn has_access_log(self) -> bool {
        matches!(self, Self::TidegateLog | Self::NginxLog | Self::EnvoyLog)
    }

    /// Whether it differs from another target by one setting only, so that its main measurements say enough.
    pub(crate) fn is_variant(self) -> bool {
        self.has_access_log()
            || matches!(self, Self::TidegateTraces | Self::Tidegate100Rules | Self::Tidegate1000Rules)
    }

    /// Whether it can carry HTTP/2 from the client of a pair to the app.
    pub(crate) fn carries_http2(self) -> bool {
        matches!(self, Self::Direct | Self::Tidegate | Self::Haproxy | Self::Envoy)
    }

    /// The version that its program reports; `None` without a program. If it is missing, the error says how to get it.
    pub(crate) fn version(self, programs: &Programs) -> Result<Option<String>> {
        let (program, flag) = match self {
            Self::Direct => return Ok(None),
            Self::Nginx | Self::NginxLog => (programs.nginx()?, "-v"),
            Self::Haproxy => (programs.haproxy()?, "-v"),
            Self::Envoy | Self::EnvoyLog | Self::EnvoyTcp => (programs.envoy()?, "--version"),
            _ => (programs.tidegate()?.sidecar, "--version"),
        };
        let output = Command::new(&program)
            .arg(flag)
            .output()
            .with_context(|| format!("cannot execute {}", program.display()))?;
        let text =
            String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout })
                .into_owned();
        let number =
            version_number(&text).with_context(|| format!("{self} does not report a version: {text}"))?;
        Ok(Some(format!("{} {number}", self.program())))
    }

    /// Starts the target. It may not serve yet.
    pub(crate) async fn start(self, site: &TargetSite<'_>) -> Result<Running> {
        let http = MeshSettings {
            protocol: if site.is_http2 { "grpc" } else { "http" },
            rules: 0,
            is_traced: false,
        };
        match self {
            Self::Direct => Ok(Running::without_proxy(site.app)),
            Self::Tidegate | Self::Envoy if site.topology == ProxyTopology::Egress => match self {
                Self::Envoy => envoy::start_tunnels(site),
                _ => tidegate::start_outside(site, OutsidePolicy::ForwardProxy).await,
            },
            Self::Tidegate3Entries => tidegate::start_outside(site, OutsidePolicy::Entries(3)).await,
            Self::Tidegate1000Entries => tidegate::start_outside(site, OutsidePolicy::Entries(1000)).await,
            Self::Tidegate10000Entries => tidegate::start_outside(site, OutsidePolicy::Entries(10_000)).await,
            Self::Tidegate1000Hosts => tidegate::start_outside(site, OutsidePolicy::Hosts(1000)).await,
            Self::Tidegate10000Hosts => tidegate::start_outside(site, OutsidePolicy::Hosts(10_000)).await,
            Self::Tidegate | Self::TidegateLog => tidegate::start(site, http).await,
            Self::TidegateTcp => tidegate::start(site, MeshSettings { protocol: "tcp", ..http }).await,
            Self::TidegateTraces => tidegate::start(site, MeshSettings { is_traced: true, ..http }).await,
            Self::Tidegate100Rules => tidegate::start(site, MeshSettings { rules: 100, ..http }).await,
            Self::Tidegate1000Rules => tidegate::start(site, MeshSettings { rules: 1000, ..http }).await,
            Self::Nginx | Self::NginxLog => start_peer(site, nginx::inbound, nginx::outbound),
            Self::Haproxy => start_peer(site, haproxy::inbound, haproxy::outbound),
            Self::Envoy | Self::EnvoyLog => start_peer(site, envoy::http_inbound, envoy::http_outbound),
            Self::EnvoyTcp => start_peer(site, envoy::tcp_inbound, envoy::tcp_outbound),
        }
    }

    /// The name of its program.
    fn program(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx | Self::NginxLog => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy | Self::EnvoyLog | Self::EnvoyTcp => "Envoy",
            _ => "Tidegate",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.program())?;
        formatter.write_str(match self {
            Self::TidegateTcp | Self::EnvoyTcp => " TCP",
            Self::TidegateLog | Self::NginxLog | Self::EnvoyLog => " log",
            Self::TidegateTraces => " traces",
            Self::Tidegate100Rules => " 100 rules",
            Self::Tidegate1000Rules => " 1,000 rules",
            Self::Tidegate3Entries => " 3 entries",
            Self::Tidegate1000Entries => " 1,000 entries",
            Self::Tidegate10000Entries => " 10,000 entries",
            Self::Tidegate1000Hosts => " 1,000 hosts",
            Self::Tidegate10000Hosts => " 10,000 hosts",
            _ => "",
        })
    }
}

impl Programs {
    /// Tidegate's programs.
    fn tidegate(&self) -> Result<tidegate::ReleasePrograms> {
        tidegate::ReleasePrograms::find(&self.tidegate)
    }

    /// nginx's program.
    fn nginx(&self) -> Result<PathBuf> {
        find(self.nginx.as_deref(), "nginx", &[])
    }

    /// HAProxy's program.
    fn haproxy(&self) -> Result<PathBuf> {
        find(self.haproxy.as_deref(), "haproxy", &[])
    }

    /// Envoy's program.
    fn envoy(&self) -> Result<PathBuf> {
        let cache = std::env::var_os("TIDEGATE_BENCH_CACHE")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("out"), PathBuf::from);
        find(self.envoy.as_deref(), "envoy", &[cache.join("envoy/bin")])
    }
}

impl Running {
    /// The app without a proxy.
    pub(crate) fn without_proxy(app: SocketAddr) -> Self {
        Self { processes: vec![], measured: vec![], address: app, tls: None, inner: None, collector: None }
    }

    /// One proxy that carries all traffic, with clients identified by the run's own certificates.
    fn single(proxy: StartedProxy, site: &TargetSite<'_>) -> Self {
        let tls = ClientFiles::of(site.certificates, &site.certificates.allowed);
        Self {
            measured: vec![proxy.process.id()],
            processes: vec![proxy.process],
            address: proxy.listen,
            tls: Some(tls),
            inner: None,
            collector: None,
        }
    }

    /// A proxy beside a client of the app outside the mesh, whose TLS is its own.
    fn outside(proxy: StartedProxy, others: Vec<Process>, site: &TargetSite<'_>) -> Self {
        let files = ClientFiles::of(site.certificates, &site.certificates.allowed);
        Self {
            measured: vec![proxy.process.id()],
            processes: std::iter::once(proxy.process).chain(others).collect(),
            address: proxy.listen,
            tls: Some(ClientFiles { server_name: OUTSIDE[0].to_owned(), ..files }),
            inner: None,
            collector: None,
        }
    }

    /// Two proxies, the second one identified by the run's own certificates.
    fn pair(outbound: StartedProxy, inbound: StartedProxy, site: &TargetSite<'_>) -> Self {
        let files = ClientFiles::of(site.certificates, &site.certificates.caller);
        Self {
            measured: vec![outbound.process.id(), inbound.process.id()],
            processes: vec![outbound.process, inbound.process],
            address: outbound.listen,
            tls: None,
            inner: Some(MtlsListener { address: inbound.listen, files, protocols: &[] }),
            collector: None,
        }
    }

    /// The listener that admits one client; `None` without a proxy.
    pub(crate) fn guarded(&self) -> Option<MtlsListener> {
        let own = |files: &ClientFiles| MtlsListener {
            address: self.address,
            files: files.clone(),
            protocols: &[],
        };
        self.inner.clone().or_else(|| self.tls.as_ref().map(own))
    }

    /// Resident memory of the client's side; `None` without a proxy.
    pub(crate) fn resident_kib(&self) -> Result<Option<u64>> {
        let first = self.measured.first().copied();
        first.map(|pid| usage::resident_kib(&usage::family(pid)?)).transpose()
    }

    /// Fails, with the end of its log, if one of its processes has exited.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::ensure_running)
    }

    /// The ends of its processes' logs.
    pub(crate) fn log_tails(&self) -> String {
        self.processes.iter().map(Process::log_tail).collect::<Vec<_>>().join("\n")
    }
}

impl ClientFiles {
    /// A proxy with the run's own certificates that admits `allowed`.
    pub(crate) fn of(certificates: &RunCertificates, allowed: &ClientIdentity) -> Self {
        Self {
            ca: certificates.ca.clone(),
            server_name: SERVER.to_owned(),
            allowed: allowed.clone(),
            foreign: certificates.foreign.clone(),
        }
    }
}

/// Starts the proxy in front of the app, and for a pair the one beside the client, which connects to it.
fn start_peer(
    site: &TargetSite<'_>,
    inbound: fn(&TargetSite<'_>) -> Result<StartedProxy>,
    outbound: fn(&TargetSite<'_>, SocketAddr) -> Result<StartedProxy>,
) -> Result<Running> {
    let inbound = inbound(site)?;
    match site.topology {
        ProxyTopology::Ingress => Ok(Running::single(inbound, site)),
        ProxyTopology::Pair | ProxyTopology::Egress => {
            Ok(Running::pair(outbound(site, inbound.listen)?, inbound, site))
        }
    }
}

/// `named` must exist; without it the program is searched in `folders`, PATH and the sbin folders.
fn find(named: Option<&Path>, program: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    if let Some(named) = named {
        if !named.is_file() {
            bail!("{} does not exist", named.display());
        }
        return Ok(named.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!("{program} is not installed; run bench/setup.sh, or give its path with --{program}")
        })
}

/// An unused port of [`PEERS`].
fn free_address() -> Result<SocketAddr> {
    free_addresses().map(|[address]| address)
}

/// Several different unused ports.
fn free_addresses<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    let mut listeners = Vec::with_capacity(COUNT);
    let mut addresses = [SocketAddr::from((PEERS, 0)); COUNT];
    for address in &mut addresses {
        let listener = TcpListener::bind(*address).context("cannot listen on a loopback address")?;
        *address = listener.local_addr()?;
        // Held until all are chosen, so that none is chosen twice.
        listeners.push(listener);
    }
    Ok(addresses)
}

/// The first word, or `/`-separated part of a word, that starts like 1.2.
fn version_number(text: &str) -> Option<&str> {
    text.split(|character: char| character.is_whitespace() || character == '/').find(|part| {
        let mut numbers =
            part.split('.').map(|number| number.starts_with(|first: char| first.is_ascii_digit()));
        numbers.next() == Some(true) && numbers.next() == Some(true)
    })
}

/// The folder of this program.
fn default_tidegate() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.to_owned()))
        .unwrap_or_else(|| PathBuf::from("target/release"))
}

#[cfg(test)]
mod tests;
