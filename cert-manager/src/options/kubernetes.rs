//! The flags for a certificate authority on Kubernetes.

use clap::Args;
use tidegate_crds::injection::DEFAULT_MESH_NAME;
use tidegate_kubernetes::client::ClientOptions;

/// The API server in place of folders.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesOptions {
    /// Keep everything in the API server: callers' tokens are reviewed by it, the root lies in the Secret
    /// tidegate-ca-bundle, the trust bundle goes to a ConfigMap of each namespace of the mesh, MeshConfig says what
    /// the ingress controller's certificate is
    #[arg(
        long,
        env = "TIDEGATE_KUBERNETES",
        requires = "pod_name",
        conflicts_with_all = [
            "store_dir", "bundle_file", "jwt_keys_files", "jwt_issuer", "gateway_sans", "gateway_validity",
            "gateway_secret", "gateway_dir",
        ]
    )]
    pub kubernetes: bool,

    /// The control plane's namespace
    #[arg(long, env = "TIDEGATE_NAMESPACE", value_name = "NAME", default_value = "tidegate-system")]
    pub namespace: String,

    /// The mesh that namespaces name in their label openservicemesh.io/monitored-by
    #[arg(long, env = "TIDEGATE_MESH_NAME", value_name = "NAME", default_value = DEFAULT_MESH_NAME)]
    pub mesh_name: String,

    /// This replica's pod: one of several replicas holds the Lease by this name
    #[arg(long, env = "TIDEGATE_POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Which cluster.
    #[command(flatten)]
    pub client: ClientOptions,
}
