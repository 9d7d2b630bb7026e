//! Flags that every daemon of the control plane shares.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tidegate_core::contract::names::{DEFAULT_CONTROL_PLANE, DEFAULT_MESH_NAME};
use tidegate_core::contract::{environment, flags};
use tidegate_runtime::options::TrustDomainOptions;

use crate::client::ClientOptions;

/// The mesh, its place in the cluster, and the health and shutdown settings of the process.
#[derive(Args, Clone, Debug)]
pub struct ControlPlaneOptions {
    /// The mesh's name, as on the label openservicemesh.io/monitored-by of its namespaces
    #[arg(long = flags::MESH_NAME, env = environment::MESH_NAME, value_name = "NAME", default_value = DEFAULT_MESH_NAME)]
    pub mesh_name: String,

    /// The control plane's namespace, in which this process runs
    #[arg(long, env = environment::NAMESPACE, value_name = "NAME", default_value = DEFAULT_CONTROL_PLANE)]
    pub namespace: String,

    /// This process's pod, whose name identifies the replica that holds a Lease
    #[arg(long, env = environment::POD_NAME, value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Address for kubelet's probes and Prometheus: /live, /ready, /metrics; such as [::]:9091 [default: none]
    #[arg(long = flags::HEALTH_ADDRESS, env = environment::HEALTH_ADDRESS, value_name = "ADDRESS")]
    pub health_address: Option<SocketAddr>,

    /// Maximum duration of a drain before the process exits anyway
    #[arg(
        long,
        env = environment::DRAIN_TIMEOUT,
        value_name = "DURATION",
        default_value = "15s",
        value_parser = humantime::parse_duration
    )]
    pub drain_timeout: Duration,

    /// The trust domain of identities.
    #[command(flatten)]
    pub trust: TrustDomainOptions,

    /// The cluster.
    #[command(flatten)]
    pub client: ClientOptions,
}
