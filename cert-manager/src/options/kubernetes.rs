//! The flags for a certificate authority on Kubernetes.

use clap::Args;
use tidegate_core::contract::{environment, flags};

/// The API server instead of folders.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesOptions {
    /// Keep everything in the API server: it reviews callers' tokens, the root is in the Secret tidegate-ca-bundle, the trust
    /// bundle in a ConfigMap of each namespace of the mesh, and MeshConfig configures the ingress controller's certificate
    #[arg(
        long = flags::KUBERNETES,
        env = environment::KUBERNETES,
        requires = "pod_name",
        conflicts_with_all = [
            "store_dir", "bundle_file", "jwt_keys_files", "jwt_issuer", "gateway_sans", "gateway_validity",
            "gateway_secret", "gateway_dir",
        ]
    )]
    pub kubernetes: bool,
}
