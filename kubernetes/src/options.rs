//! The flags that every daemon of the control plane has, spelled out once.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tidegate_crds::injection::DEFAULT_MESH_NAME;
use tidegate_runtime::options::TrustDomainOptions;

use crate::client::ClientOptions;

/// Which mesh, where in the cluster, and how the process is asked how it is and how it ends.
#[derive(Args, Clone, Debug)]
pub struct ControlPlaneOptions {
    /// The mesh's name, as on the label openservicemesh.io/monitored-by of its namespaces
    #[arg(long, env = "TIDEGATE_MESH_NAME", value_name = "NAME", default_value = DEFAULT_MESH_NAME)]
    pub mesh_name: String,

    /// The control plane's namespace, in which this process runs
    #[arg(long, env = "TIDEGATE_NAMESPACE", value_name = "NAME", default_value = "tidegate-system")]
    pub namespace: String,

    /// This process's pod: of several replicas one holds a Lease, by this name
    #[arg(long, env = "TIDEGATE_POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Where kubelet's probes and Prometheus come to: /live, /ready, /metrics; such as [::]:9091 [default: nowhere]
    #[arg(long, env = "TIDEGATE_HEALTH_ADDRESS", value_name = "ADDRESS")]
    pub health_address: Option<SocketAddr>,

    /// How long a drain may take before the process ends all the same
    #[arg(
        long,
        env = "TIDEGATE_DRAIN_TIMEOUT",
        value_name = "DURATION",
        default_value = "15s",
        value_parser = humantime::parse_duration
    )]
    pub drain_timeout: Duration,

    /// Where identities end.
    #[command(flatten)]
    pub trust: TrustDomainOptions,

    /// Which cluster.
    #[command(flatten)]
    pub client: ClientOptions,
}
