//! The command line of `tidegate-controller`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use tidegate_core::TrustDomain;
use tidegate_crds::injection::DEFAULT_MESH_NAME;
use tidegate_kubernetes::client::ClientOptions;
use tidegate_runtime::identity::CaOptions;
use tidegate_runtime::logging::LogOptions;

/// Compiles IngressBackends and Services into one policy per workload and streams it to sidecars over mutual TLS.
///
/// Never in the path of a request: while it is away, sidecars serve on with the policy they have.
#[derive(Parser, Clone, Debug)]
#[command(name = "tidegate-controller", version)]
pub struct Options {
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
    #[arg(long, env = "TIDEGATE_KUBERNETES")]
    pub kubernetes: bool,

    /// The API server.
    #[command(flatten)]
    pub client: ClientOptions,

    /// The mesh that namespaces name in their label openservicemesh.io/monitored-by.
    #[arg(long, env = "TIDEGATE_MESH_NAME", value_name = "NAME", default_value = DEFAULT_MESH_NAME)]
    pub mesh_name: String,

    /// The name of the controller's own pod: one of several replicas writes statuses, and it is known by this name.
    #[arg(long, env = "TIDEGATE_POD_NAME", value_name = "NAME", required_if_eq("kubernetes", "true"))]
    pub pod_name: Option<String>,

    /// Where sidecars connect.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:15128")]
    pub listen: SocketAddr,

    /// Where the admin server listens; a loopback address.
    #[arg(long, env = "TIDEGATE_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:9091")]
    pub admin_address: SocketAddr,

    /// Where kubelet's probes and Prometheus come to (/live, /ready, /metrics), such as [::]:9091. Default: nowhere
    /// but the admin server.
    #[arg(long, env = "TIDEGATE_HEALTH_ADDRESS", value_name = "ADDRESS")]
    pub health_address: Option<SocketAddr>,

    /// Where the API server asks about policies [default: none, nobody is asked]
    #[arg(long, env = "TIDEGATE_WEBHOOK_ADDRESS", value_name = "ADDRESS", requires = "kubernetes")]
    pub webhook_address: Option<SocketAddr>,

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
    fn objects_come_from_a_folder_or_from_kubernetes() {
        let parse = |flags: &[&str]| {
            let ca = ["--ca-address=https://ca:1", "--ca-trust-bundle=ca.crt", "--token-file=token"];
            Options::try_parse_from(["tidegate-controller"].iter().chain(&ca).chain(flags))
        };
        assert!(parse(&["--folder=objects"]).is_ok());
        let options = parse(&["--kubernetes", "--pod-name=tidegate-controller-0"]).unwrap();
        assert_eq!((options.mesh_name.as_str(), options.folder), ("osm", None));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--kubernetes"]).is_err());
        assert!(parse(&["--folder=objects", "--kubernetes", "--pod-name=x"]).is_err());
    }

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
