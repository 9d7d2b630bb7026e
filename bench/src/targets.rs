//! The measured targets: each one's configuration, start and addresses.

mod envoy;
mod haproxy;
mod nginx;
mod target;
mod tidegate;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub(crate) use self::target::Target;
use crate::certificates::{OUTSIDE, RunCertificates, SERVER};
use crate::process::{Process, usage};
use crate::tls::ClientIdentity;
use crate::topology::ProxyTopology;

/// Address of the compared proxies: outgoing connections do not take their ports from it.
const PEERS: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 10);

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

/// The folder of this program.
fn default_tidegate() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.to_owned()))
        .unwrap_or_else(|| PathBuf::from("target/release"))
}

#[cfg(test)]
mod tests;
