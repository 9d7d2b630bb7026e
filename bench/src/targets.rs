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

use crate::certificates::{RunCertificates, SERVER};
use crate::process::Process;
use crate::tls::ClientIdentity;

/// Address of the compared proxies: outgoing connections do not take their ports from it.
const PEERS: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 10);

/// A measured target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Target {
    /// Client → app, plaintext: without a proxy.
    Direct,
    /// Tidegate's sidecar.
    Tidegate,
    Nginx,
    Haproxy,
    Envoy,
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
    /// An empty folder for configuration, state and logs.
    pub(crate) directory: &'a Path,
    /// Certificates of the proxy, and of the clients that it admits and refuses.
    pub(crate) certificates: &'a RunCertificates,
    /// Address of the app.
    pub(crate) app: SocketAddr,
    /// Core of the measured process.
    pub(crate) core: usize,
    /// Core of load and app, and of a target's other processes.
    pub(crate) load_core: usize,
    /// Paths of the programs.
    pub(crate) programs: &'a Programs,
}

/// A started target. Its processes stop when it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its processes, the measured one first.
    processes: Vec<Process>,
    /// The process that carries the traffic, whose CPU time and memory are measured, including its children's.
    pub(crate) measured: Option<u32>,
    /// The address that clients connect to.
    pub(crate) address: SocketAddr,
    /// How clients connect; `None` for plaintext.
    pub(crate) tls: Option<ClientFiles>,
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
    /// All targets, in the order of the columns.
    pub(crate) const ALL: [Self; 5] = [Self::Direct, Self::Tidegate, Self::Nginx, Self::Haproxy, Self::Envoy];

    /// The version that its program reports; `None` without a program. If it is missing, the error says how to get it.
    pub(crate) fn version(self, programs: &Programs) -> Result<Option<String>> {
        let (program, flag) = match self {
            Self::Direct => return Ok(None),
            Self::Tidegate => (programs.tidegate()?.sidecar, "--version"),
            Self::Nginx => (programs.nginx()?, "-v"),
            Self::Haproxy => (programs.haproxy()?, "-v"),
            Self::Envoy => (programs.envoy()?, "--version"),
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
        Ok(Some(format!("{self} {number}")))
    }

    /// Starts the target. It may not serve yet.
    pub(crate) async fn start(self, site: &TargetSite<'_>) -> Result<Running> {
        match self {
            Self::Direct => Ok(Running::without_proxy(site.app)),
            Self::Tidegate => tidegate::start(site).await,
            Self::Nginx => nginx::start(site),
            Self::Haproxy => haproxy::start(site),
            Self::Envoy => envoy::start(site),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Direct => "direct",
            Self::Tidegate => "Tidegate",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
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
        Self { processes: vec![], measured: None, address: app, tls: None }
    }

    /// A single process that carries all traffic, with clients identified by the run's own certificates.
    fn single(process: Process, address: SocketAddr, certificates: &RunCertificates) -> Self {
        let tls = ClientFiles {
            ca: certificates.ca.clone(),
            server_name: SERVER.to_owned(),
            allowed: certificates.allowed.clone(),
            foreign: certificates.foreign.clone(),
        };
        Self { measured: Some(process.id()), processes: vec![process], address, tls: Some(tls) }
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
