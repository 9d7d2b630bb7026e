//! The command line of `tidegate-controller`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use tidegate_core::TrustDomain;
use tidegate_runtime::identity::CaOptions;
use tidegate_runtime::logging::LogOptions;

/// Compiles IngressBackends and Services into one policy per workload and streams it to sidecars over mutual TLS.
///
/// Never in the path of a request: while it is away, sidecars serve on with the policy they have.
#[derive(Parser, Clone, Debug)]
#[command(name = "tidegate-controller", version)]
pub struct Options {
    /// Folder of manifests (.yaml, .yml, .json) to read and follow.
    #[arg(long, env = "TIDEGATE_FOLDER", value_name = "DIR")]
    pub folder: PathBuf,

    /// Where sidecars connect.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:15128")]
    pub listen: SocketAddr,

    /// Where the admin server listens; a loopback address.
    #[arg(long, env = "TIDEGATE_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:9091")]
    pub admin_address: SocketAddr,

    /// The mesh's trust domain.
    #[arg(
        long,
        env = "TIDEGATE_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local",
        value_parser = |text: &str| TrustDomain::parse(text)
    )]
    pub trust_domain: TrustDomain,

    /// The namespace that the controller itself runs in.
    #[arg(long, env = "TIDEGATE_NAMESPACE", value_name = "NAME", default_value = "tidegate-system")]
    pub namespace: String,

    /// The most connections of sidecars at a time.
    #[arg(long, env = "TIDEGATE_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = 10_000)]
    pub max_connections: usize,

    /// How long a drain may take before the process ends all the same.
    #[arg(
        long,
        env = "TIDEGATE_DRAIN_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub drain_timeout: Duration,

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
    fn every_flag_has_help_and_can_be_set_by_environment() {
        let command = Options::command();
        command.clone().debug_assert();
        for argument in command.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version"))
        {
            assert!(argument.get_help().is_some(), "{argument} has no help");
            assert!(argument.get_env().is_some(), "{argument} has no variable");
        }
    }
}
