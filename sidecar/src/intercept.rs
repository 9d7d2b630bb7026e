//! `tidegate-sidecar intercept`: rules by which the kernel leads a pod's TCP connections through the sidecar.
//!
//! An init container runs it once the sidecar is ready, which `wait` waits for. `plan` says which rules there are to be,
//! `rule` how they are spelled, `backend` which programs write them, `apply` writes, compares and removes them,
//! `conntrack` keeps connections of the sidecar that are older, `capture` proves that a connection is captured.

mod apply;
mod backend;
mod capture;
mod conntrack;
mod plan;
mod rule;
mod wait;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::{fs, io};

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use tidegate_core::contract::names::SIDECAR_USER;
use tidegate_core::contract::{environment, flags, ports};
use tidegate_runtime::logging::LogOptions;
use tidegate_runtime::signals::Signal;
use tracing::{info, warn};

pub use backend::Backend;
pub use rule::{Interface, InterfaceError};

use crate::options::PodIps;
use apply::Applied;
use backend::Program;
use capture::Captured;
use plan::Plan;
use rule::{Family, restore_text};

/// Redirect a pod's TCP connections to its sidecar: rules of iptables in the pod's network namespace. To be run as
/// root with the capabilities NET_ADMIN and NET_RAW. Running it again changes nothing, or repairs what was lost.
#[derive(Parser, Clone, Debug)]
#[command(name = flags::INTERCEPT)]
pub struct InterceptOptions {
    /// Where connections from others go.
    #[arg(long, env = environment::INBOUND_PORT, value_name = "PORT", default_value_t = ports::INBOUND, value_parser = port())]
    pub inbound_port: u16,

    /// Where the pod's own connections go.
    #[arg(long, env = environment::OUTBOUND_PORT, value_name = "PORT", default_value_t = ports::OUTBOUND, value_parser = port())]
    pub outbound_port: u16,

    /// The sidecar's user: what it sends is not redirected.
    #[arg(long = flags::UID, value_name = "UID", default_value_t = SIDECAR_USER)]
    pub uid: u32,

    /// Ports of the pod that others reach without the sidecar. The sidecar's own are always among them.
    #[arg(long = flags::EXCLUDE_INBOUND_PORTS, value_name = "PORT,PORT", value_delimiter = ',', value_parser = port())]
    pub exclude_inbound_ports: Vec<u16>,

    /// Ports that the pod dials without the sidecar.
    #[arg(long = flags::EXCLUDE_OUTBOUND_PORTS, value_name = "PORT,PORT", value_delimiter = ',', value_parser = port())]
    pub exclude_outbound_ports: Vec<u16>,

    /// Ranges of either family that the pod dials without the sidecar.
    #[arg(long = flags::EXCLUDE_OUTBOUND_RANGES, value_name = "CIDR,CIDR", value_delimiter = ',')]
    pub exclude_outbound_ranges: Vec<IpNet>,

    /// The only ranges that the pod dials through the sidecar [default: all]
    #[arg(long = flags::INCLUDE_OUTBOUND_RANGES, value_name = "CIDR,CIDR", value_delimiter = ',')]
    pub include_outbound_ranges: Vec<IpNet>,

    /// Network interfaces of which nothing is redirected; a + at the end stands for anything.
    #[arg(long = flags::EXCLUDE_INTERFACES, value_name = "NAME,NAME", value_delimiter = ',')]
    pub exclude_interfaces: Vec<Interface>,

    /// Where the app listens: on loopback (or on all addresses), or on the pod's addresses only.
    #[arg(long = flags::LOCAL_PROXY_MODE, value_enum, default_value = "localhost")]
    pub local_proxy_mode: LocalProxyMode,

    /// The pod's addresses, separated by commas.
    #[arg(long = flags::POD_IPS, env = environment::POD_IPS, value_name = "IP,IP", default_value = "")]
    pub pod_ips: PodIps,

    /// Whether the pod may send UDP past the mesh. If refused, what is not DNS, loopback or an answer is rejected and
    /// counted by the rule that does it.
    #[arg(long = flags::UDP, value_enum, default_value = "allow")]
    pub udp: Udp,

    /// Which of the kernel's rule sets.
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: Backend,

    /// Before all else, wait until the sidecar is ready, as its port 15010 says.
    #[arg(long = flags::AFTER_SIDECAR, conflicts_with_all = ["clean", "dry_run"])]
    pub after_sidecar: bool,

    /// Afterwards, prove that a connection is captured.
    #[arg(long = flags::CHECK)]
    pub check: bool,

    /// Change nothing; say whether every rule is there, and prove that a connection is captured.
    #[arg(long, conflicts_with_all = ["check", "clean", "dry_run"])]
    pub check_only: bool,

    /// Remove all rules of ours instead, whatever they are, from both rule sets or from that of --backend.
    #[arg(long, conflicts_with_all = ["check", "dry_run"])]
    pub clean: bool,

    /// Only print what iptables-restore and ip6tables-restore would get.
    #[arg(long, conflicts_with = "check")]
    pub dry_run: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogOptions,
}

/// Where the app listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LocalProxyMode {
    /// On loopback or on all addresses.
    Localhost,
    /// On the pod's addresses: what the sidecar dials at loopback is led there.
    PodIp,
}

/// What becomes of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Udp {
    /// It is left alone.
    Allow,
    /// It is rejected.
    Refuse,
}

/// Why connections are not, or might not be, captured.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The image lacks a program.
    #[error("{program} is neither in PATH nor in {folders}: install iptables in the image")]
    NoProgram {
        /// Its name.
        program: String,
        /// Where it was looked for besides.
        folders: String,
    },
    /// Neither backend can be used.
    #[error("neither backend of iptables can be used; nft: {nft}; legacy: {legacy}")]
    NoBackend {
        /// What is wrong with nft.
        nft: String,
        /// What is wrong with legacy.
        legacy: String,
    },
    /// A program of iptables has failed.
    #[error("{program}: {message}{hint}")]
    Program {
        /// Its path.
        program: String,
        /// What it said.
        message: String,
        /// What to do about it; empty or beginning with a colon.
        hint: &'static str,
    },
    /// The program could not be started again with a lock file that can be written.
    #[error("cannot start anew with another lock file: {0}")]
    StartAnew(#[source] io::Error),
    /// PodIP mode needs to know the pod's addresses.
    #[error("--local-proxy-mode pod-ip needs the pod's addresses: --pod-ips (or POD_IPS) is empty")]
    NoPodIps,
    /// The rules are not there.
    #[error(
        "the rules for {family} are not what they should be: {what}; run tidegate-sidecar intercept again"
    )]
    NotInPlace {
        /// IPv4 or IPv6.
        family: &'static str,
        /// The first difference.
        what: String,
    },
    /// The port that the check listens on is taken.
    #[error("the check cannot listen on port {port}, which is the sidecar's to use: {source}")]
    CheckPort {
        /// The check's port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// A connection was not captured.
    #[error(
        "a connection to {target} by user {user} was not captured: {problem}; other rules of the pod or of its network may come first"
    )]
    NotCaptured {
        /// Where it was made to.
        target: std::net::SocketAddr,
        /// Who made it.
        user: u32,
        /// What happened to it.
        problem: String,
    },
    /// It was told to end before the sidecar was ready.
    #[error("ended by {signal} while the sidecar was not ready: {reason}")]
    Ended {
        /// What told it.
        signal: Signal,
        /// What the sidecar said last, or why it could not be asked.
        reason: String,
    },
    /// Signals or sockets cannot be used.
    #[error("cannot wait for the sidecar: {0}")]
    Wait(#[source] io::Error),
    /// The check would be made as the one user whose connections are never captured.
    #[error("the check must not run as user {0}: it is the sidecar's, whose connections are not redirected")]
    CheckAsSidecar(u32),
}

/// Does what the options say.
pub fn run(options: &InterceptOptions) -> Result<(), InterceptError> {
    let plan = options.plan()?;
    if options.dry_run {
        for family in [Family::V4, Family::V6] {
            println!("# {family}\n{}", restore_text(&plan.rules(family), |_| false));
        }
        return Ok(());
    }
    backend::ensure_lock_file()?;
    if options.clean {
        return clean(options.backend);
    }
    if options.after_sidecar {
        wait::for_sidecar((Ipv4Addr::LOCALHOST, ports::HEALTH).into())?;
    }
    let backend = options.backend.choose()?;
    for (family, need) in families(&options.pod_ips.0) {
        match write_or_compare(options, backend, &plan, family) {
            Ok(()) => {}
            Err(error) if need == Need::Wanted => {
                warn!(%family, %error, "no interception: the pod has no address of this family");
                continue;
            }
            Err(error) => return Err(error),
        }
        if options.check || options.check_only {
            prove(&plan, family)?;
        }
    }
    Ok(())
}

fn write_or_compare(
    options: &InterceptOptions,
    backend: Backend,
    plan: &Plan,
    family: Family,
) -> Result<(), InterceptError> {
    let program = backend.program(family)?;
    let rules = plan.rules(family);
    if options.check_only {
        if let Some(what) = apply::missing(&program, &rules)? {
            return Err(InterceptError::NotInPlace { family: family.name(), what });
        }
        info!(%family, ?backend, "every rule is there");
        return Ok(());
    }
    let keep = || match conntrack::adopt(plan.user, family) {
        Ok(0) => {}
        Ok(connections) => info!(%family, connections, "connections of the sidecar live on"),
        Err(error) => warn!(
            %family, %error,
            "connections that the sidecar has open may break, and are made again: the kernel has to know \
             nf_conntrack_netlink to keep them"
        ),
    };
    match apply::apply(&program, &rules, keep)? {
        Applied::AlreadyThere => info!(%family, ?backend, "every rule is there already"),
        Applied::Written => info!(%family, ?backend, rules = rules.len(), "rules written"),
    }
    Ok(())
}

fn prove(plan: &Plan, family: Family) -> Result<(), InterceptError> {
    if rustix::process::geteuid().as_raw() == plan.user {
        return Err(InterceptError::CheckAsSidecar(plan.user));
    }
    match capture::check(plan, family)? {
        Captured::Yes(target) => info!(%family, %target, "connections are captured"),
        Captured::NoRoute(target) => {
            warn!(%family, %target, "not checked: the pod has no route to other networks");
        }
        Captured::NothingToCapture => warn!(%family, "not checked: nothing is to be captured"),
    }
    Ok(())
}

fn clean(backend: Backend) -> Result<(), InterceptError> {
    let backends = match backend {
        Backend::Auto => vec![Backend::Nft, Backend::Legacy],
        one => vec![one],
    };
    let mut programs = 0;
    let mut last = None;
    for backend in &backends {
        for family in [Family::V4, Family::V6] {
            match backend.program(family).and_then(|program: Program| apply::clean(&program)) {
                Ok(any) => {
                    programs += 1;
                    info!(%family, ?backend, removed = any, "no rule of ours is left");
                }
                // What cannot be asked may be a backend that this kernel does not have; one has to be there.
                Err(error) if backends.len() > 1 || family == Family::V6 => {
                    warn!(%family, ?backend, %error, "not looked at");
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }
    match last {
        Some(error) if programs == 0 => Err(error),
        _ => Ok(()),
    }
}

impl InterceptOptions {
    fn plan(&self) -> Result<Plan, InterceptError> {
        let app_ips = match self.local_proxy_mode {
            LocalProxyMode::Localhost => Vec::new(),
            LocalProxyMode::PodIp if self.pod_ips.0.is_empty() => return Err(InterceptError::NoPodIps),
            LocalProxyMode::PodIp => self.pod_ips.0.to_vec(),
        };
        let set = |ports: &[u16]| ports.iter().copied().collect::<BTreeSet<_>>();
        let nets = |nets: &[IpNet]| nets.iter().map(IpNet::trunc).collect();
        Ok(Plan {
            inbound_port: self.inbound_port,
            outbound_port: self.outbound_port,
            user: self.uid,
            excluded_inbound_ports: set(&self.exclude_inbound_ports),
            excluded_outbound_ports: set(&self.exclude_outbound_ports),
            excluded_ranges: nets(&self.exclude_outbound_ranges),
            included_ranges: nets(&self.include_outbound_ranges),
            excluded_interfaces: self.exclude_interfaces.iter().cloned().collect(),
            app_ips,
            refuses_udp: self.udp == Udp::Refuse,
        })
    }
}

/// Whether rules of a family must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// The pod has addresses of it.
    Must,
    /// It might get some.
    Wanted,
}

/// The families that this network namespace has.
fn families(pod_ips: &[IpAddr]) -> Vec<(Family, Need)> {
    let knows = |family: Family| pod_ips.iter().any(|ip| family.has(ip));
    let mut families =
        vec![(Family::V4, if pod_ips.is_empty() || knows(Family::V4) { Need::Must } else { Need::Wanted })];
    let addresses = fs::read_to_string("/proc/self/net/if_inet6").ok();
    let is_off =
        fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "1");
    match addresses {
        Some(addresses) if !is_off || has_global(&addresses) => {
            let need = if knows(Family::V6) || has_global(&addresses) { Need::Must } else { Need::Wanted };
            families.push((Family::V6, need));
        }
        _ => info!("IPv6 is off here: no rules for it"),
    }
    families
}

/// Whether an interface has an address that reaches beyond its link, by `/proc/net/if_inet6`: the address, then index,
/// length of the prefix, scope (00 is global), flags, name.
fn has_global(if_inet6: &str) -> bool {
    if_inet6.lines().any(|line| line.split_whitespace().nth(3) == Some("00"))
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

fn port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<InterceptOptions, String> {
        let arguments = ["intercept"].iter().chain(arguments);
        InterceptOptions::try_parse_from(arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn a_value_that_is_none_is_refused_with_its_flag() {
        for (flag, value) in [
            ("--exclude-inbound-ports", "80,0"),
            ("--exclude-outbound-ports", "80,http"),
            ("--exclude-outbound-ranges", "10.0.0.0/8,10.1.2.3"),
            ("--include-outbound-ranges", "10.0.0.0/33"),
            ("--exclude-interfaces", "net1,-j"),
            ("--pod-ips", "10.1.2.3,me"),
            ("--local-proxy-mode", "elsewhere"),
            ("--udp", "drop"),
            ("--inbound-port", "65536"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            let bad = value.rsplit(',').next().unwrap();
            assert!(error.contains(flag) && error.contains(bad), "{error}");
        }
        assert!(parse(&["--clean", "--check"]).is_err());
        let options = parse(&["--local-proxy-mode", "pod-ip", "--pod-ips", ""]).unwrap();
        assert!(matches!(options.plan(), Err(InterceptError::NoPodIps)));
    }

    #[test]
    fn ranges_lose_the_bits_that_are_not_theirs() {
        let options = parse(&["--exclude-outbound-ranges", "10.1.2.3/8,fd00::1/16"]).unwrap();
        let ranges = options.plan().unwrap().excluded_ranges;
        assert_eq!(ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::/16"]);
    }

    #[test]
    fn a_global_address_is_told_from_those_of_the_link() {
        let loopback = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link = "fe80000000000000a00000fffe000001 02 40 20 80     eth0\n";
        let global = "fd000000000000000000000000000002 02 40 00 80     eth0\n";
        assert!(!has_global(&format!("{loopback}{link}")));
        assert!(has_global(&format!("{loopback}{link}{global}")));
    }
}
