//! `tidegate-sidecar intercept`: writes iptables rules that redirect a pod's TCP connections to the sidecar.
//!
//! An init container runs it once the sidecar is ready, which `wait` waits for. `plan` decides which rules are needed,
//! `rule` formats them, `backend` runs the iptables programs, `apply` writes, compares and removes rules, `conntrack`
//! preserves the sidecar's existing connections, `capture` proves that a connection is captured.

mod apply;
mod backend;
mod capture;
mod conntrack;
mod error;
mod plan;
mod rule;
mod wait;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use tidegate_core::contract::names::SIDECAR_USER;
use tidegate_core::contract::{environment, flags, ports};
use tidegate_runtime::logging::LogOptions;
use tracing::{info, warn};

pub use backend::IptablesBackend;
pub use error::InterceptError;
pub use rule::{Interface, InterfaceError};

use crate::options::PodIps;
use apply::Applied;
use backend::IptablesProgram;
use capture::Captured;
use plan::Plan;
use rule::{IpFamily, restore_text};

/// Redirect a pod's TCP connections to its sidecar, by iptables rules in the pod's network namespace. Run as root with
/// the capabilities NET_ADMIN and NET_RAW. Running it again changes nothing, or restores missing rules.
#[derive(Parser, Clone, Debug)]
#[command(name = flags::INTERCEPT)]
pub struct InterceptOptions {
    /// The sidecar's port for connections from other hosts.
    #[arg(long, env = environment::INBOUND_PORT, value_name = "PORT", default_value_t = ports::INBOUND, value_parser = port())]
    pub inbound_port: u16,

    /// The sidecar's port for the pod's own connections.
    #[arg(long, env = environment::OUTBOUND_PORT, value_name = "PORT", default_value_t = ports::OUTBOUND, value_parser = port())]
    pub outbound_port: u16,

    /// The sidecar's user ID: its traffic is not redirected.
    #[arg(long = flags::UID, value_name = "UID", default_value_t = SIDECAR_USER)]
    pub uid: u32,

    /// Ports of the pod that bypass the sidecar for connections from other hosts. The sidecar's own ports always do.
    #[arg(long = flags::EXCLUDE_INBOUND_PORTS, value_name = "PORT,PORT", value_delimiter = ',', value_parser = port())]
    pub exclude_inbound_ports: Vec<u16>,

    /// Destination ports that the pod dials without the sidecar.
    #[arg(long = flags::EXCLUDE_OUTBOUND_PORTS, value_name = "PORT,PORT", value_delimiter = ',', value_parser = port())]
    pub exclude_outbound_ports: Vec<u16>,

    /// Destination ranges, IPv4 or IPv6, that the pod dials without the sidecar.
    #[arg(long = flags::EXCLUDE_OUTBOUND_RANGES, value_name = "CIDR,CIDR", value_delimiter = ',')]
    pub exclude_outbound_ranges: Vec<IpNet>,

    /// The only destination ranges that the pod dials through the sidecar [default: all]
    #[arg(long = flags::INCLUDE_OUTBOUND_RANGES, value_name = "CIDR,CIDR", value_delimiter = ',')]
    pub include_outbound_ranges: Vec<IpNet>,

    /// Network interfaces whose traffic is not redirected; a trailing + matches any suffix.
    #[arg(long = flags::EXCLUDE_INTERFACES, value_name = "NAME,NAME", value_delimiter = ',')]
    pub exclude_interfaces: Vec<Interface>,

    /// Where the app listens: on loopback (or on all addresses), or on the pod's addresses only.
    #[arg(long = flags::LOCAL_PROXY_MODE, value_enum, default_value = "localhost")]
    pub local_proxy_mode: LocalProxyMode,

    /// The pod's addresses, separated by commas.
    #[arg(long = flags::POD_IPS, env = environment::POD_IPS, value_name = "IP,IP", default_value = "")]
    pub pod_ips: PodIps,

    /// Whether the pod may send UDP past the mesh. If refused, everything except DNS, loopback and replies is rejected
    /// and counted by the rejecting rule.
    #[arg(long = flags::UDP, value_enum, default_value = "allow")]
    pub udp: UdpMode,

    /// The iptables backend to use.
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: IptablesBackend,

    /// First wait until the sidecar is ready, according to its port 15010.
    #[arg(long = flags::AFTER_SIDECAR, conflicts_with_all = ["clean", "dry_run"])]
    pub after_sidecar: bool,

    /// Afterwards, verify that a connection is captured.
    #[arg(long = flags::CHECK)]
    pub check: bool,

    /// Change nothing; verify that every rule is in place and that a connection is captured.
    #[arg(long, conflicts_with_all = ["check", "clean", "dry_run"])]
    pub check_only: bool,

    /// Instead, remove all Tidegate rules, from both backends or from that of --backend.
    #[arg(long, conflicts_with_all = ["check", "dry_run"])]
    pub clean: bool,

    /// Only print the input for iptables-restore and ip6tables-restore.
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
    /// On the pod's addresses: what the sidecar dials at loopback is redirected there.
    PodIp,
}

/// What happens to UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UdpMode {
    /// It is not touched.
    Allow,
    /// It is rejected.
    Refuse,
}

/// Runs the command.
///
/// # Errors
///
/// If rules cannot be written, or if a connection is not captured.
pub fn run(options: &InterceptOptions) -> Result<(), InterceptError> {
    let plan = options.plan()?;
    if options.dry_run {
        for family in [IpFamily::V4, IpFamily::V6] {
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
            Err(error) if need == FamilyNeed::Optional => {
                warn!(%family, %error, "no interception: the pod has no address of this family");
                continue;
            }
            Err(error) => return Err(error),
        }
        if options.check || options.check_only {
            verify_capture(&plan, family)?;
        }
    }
    Ok(())
}

/// Writes the rules of one family, or with --check-only compares them.
fn write_or_compare(
    options: &InterceptOptions,
    backend: IptablesBackend,
    plan: &Plan,
    family: IpFamily,
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

/// Verifies that a connection of this family is captured.
fn verify_capture(plan: &Plan, family: IpFamily) -> Result<(), InterceptError> {
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

/// Removes all Tidegate rules.
fn clean(backend: IptablesBackend) -> Result<(), InterceptError> {
    let backends = match backend {
        IptablesBackend::Auto => vec![IptablesBackend::Nft, IptablesBackend::Legacy],
        one => vec![one],
    };
    let mut programs = 0;
    let mut last = None;
    for backend in &backends {
        for family in [IpFamily::V4, IpFamily::V6] {
            match backend.program(family).and_then(|program: IptablesProgram| apply::clean(&program)) {
                Ok(any) => {
                    programs += 1;
                    info!(%family, ?backend, removed = any, "no rule of ours is left");
                }
                // A backend that cannot be run may not exist on this kernel; one of them must.
                Err(error) if backends.len() > 1 || family == IpFamily::V6 => {
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
    /// The options as the plan of the rules: each list without repetitions, address ranges without host bits.
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
            refuses_udp: self.udp == UdpMode::Refuse,
        })
    }
}

/// Whether a family must have rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FamilyNeed {
    /// The pod has addresses of the family.
    Required,
    /// The pod might get addresses of the family.
    Optional,
}

/// The address families of this network namespace.
fn families(pod_ips: &[IpAddr]) -> Vec<(IpFamily, FamilyNeed)> {
    let has_address = |family: IpFamily| pod_ips.iter().any(|ip| family.has(ip));
    let mut families = vec![(
        IpFamily::V4,
        if pod_ips.is_empty() || has_address(IpFamily::V4) {
            FamilyNeed::Required
        } else {
            FamilyNeed::Optional
        },
    )];
    let addresses = fs::read_to_string("/proc/self/net/if_inet6").ok();
    let is_off =
        fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "1");
    match addresses {
        Some(addresses) if !is_off || has_global(&addresses) => {
            let need = if has_address(IpFamily::V6) || has_global(&addresses) {
                FamilyNeed::Required
            } else {
                FamilyNeed::Optional
            };
            families.push((IpFamily::V6, need));
        }
        _ => info!("IPv6 is off here: no rules for it"),
    }
    families
}

/// Whether an interface has a global address, according to `/proc/net/if_inet6`: address, interface index, prefix
/// length, scope (00 is global), flags, name.
fn has_global(if_inet6: &str) -> bool {
    if_inet6.lines().any(|line| line.split_whitespace().nth(3) == Some("00"))
}

impl IpFamily {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A port number other than zero.
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
    fn an_invalid_value_is_refused_with_its_flag() {
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
    fn host_bits_of_ranges_are_cleared() {
        let options = parse(&["--exclude-outbound-ranges", "10.1.2.3/8,fd00::1/16"]).unwrap();
        let ranges = options.plan().unwrap().excluded_ranges;
        assert_eq!(ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::/16"]);
    }

    #[test]
    fn a_global_address_is_distinguished_from_link_local_ones() {
        let loopback = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link = "fe80000000000000a00000fffe000001 02 40 20 80     eth0\n";
        let global = "fd000000000000000000000000000002 02 40 00 80     eth0\n";
        assert!(!has_global(&format!("{loopback}{link}")));
        assert!(has_global(&format!("{loopback}{link}{global}")));
    }
}
