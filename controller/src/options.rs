//! The command line of `tidegate-controller`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use tidegate_core::contract::{environment, flags, names, ports};
use tidegate_kubernetes::options::ControlPlaneOptions;
use tidegate_runtime::identity::CaOptions;
use tidegate_runtime::logging::LogOptions;

/// Compiles IngressBackends and Services into one policy per workload and streams it to sidecars over mutual TLS.
///
/// Never in the path of a request: while it is down, sidecars keep serving with the policy they have.
#[derive(Parser, Clone, Debug)]
#[command(name = names::CONTROLLER, version)]
pub struct ControllerOptions {
    /// Folder of manifests (.yaml, .yml, .json) to read and follow.
    #[arg(
        long,
        env = "TIDEGATE_FOLDER",
        value_name = "DIR",
        required_unless_present = "kubernetes",
        conflicts_with = "kubernetes"
    )]
    pub folder: Option<PathBuf>,

    /// Read and follow the objects of a Kubernetes API server, and write their status back.
    #[arg(long = flags::KUBERNETES, env = environment::KUBERNETES, requires = "pod_name")]
    pub kubernetes: bool,

    /// Where sidecars connect.
    #[arg(
        long = flags::LISTEN,
        env = "TIDEGATE_LISTEN",
        value_name = "ADDRESS",
        default_value_t = (Ipv4Addr::UNSPECIFIED, ports::DISCOVERY).into()
    )]
    pub listen: SocketAddr,

    /// Where the admin server listens; a loopback address.
    #[arg(long = flags::ADMIN_ADDRESS, env = environment::ADMIN_ADDRESS, value_name = "ADDRESS", default_value_t = (Ipv4Addr::LOCALHOST, ports::DAEMON_HEALTH).into())]
    pub admin_address: SocketAddr,

    /// Where the API server calls the validating webhook [default: none, no webhook]
    #[arg(long = flags::WEBHOOK_ADDRESS, env = environment::WEBHOOK_ADDRESS, value_name = "ADDRESS", requires = "kubernetes")]
    pub webhook_address: Option<SocketAddr>,

    /// The most connections from sidecars at a time; one address may have a quarter of them.
    #[arg(long, env = "TIDEGATE_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = 10_000)]
    pub max_connections: usize,

    /// Options common to the control plane's daemons.
    #[command(flatten)]
    pub common: ControlPlaneOptions,

    /// Where the controller's own certificate comes from.
    #[command(flatten)]
    pub ca: CaOptions,

    /// What is logged.
    #[command(flatten)]
    pub log: LogOptions,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn objects_come_from_a_folder_or_from_kubernetes() {
        let parse = |flags: &[&str]| {
            let ca = ["--ca-address=https://ca:1", "--ca-trust-bundle=ca.crt", "--token-file=token"];
            ControllerOptions::try_parse_from(["tidegate-controller"].iter().chain(&ca).chain(flags))
        };
        assert!(parse(&["--folder=objects"]).is_ok());
        let options = parse(&["--kubernetes", "--pod-name=tidegate-controller-0"]).unwrap();
        assert_eq!((options.common.mesh_name.as_str(), options.folder), ("osm", None));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--kubernetes"]).is_err());
        assert!(parse(&["--folder=objects", "--kubernetes", "--pod-name=x"]).is_err());
    }

    #[test]
    fn every_flag_has_help_and_can_be_set_by_environment() {
        let command = ControllerOptions::command();
        command.clone().debug_assert();
        for argument in command.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version"))
        {
            assert!(argument.get_help().is_some(), "{argument} has no help");
            assert!(argument.get_env().is_some(), "{argument} has no variable");
        }
    }
}
