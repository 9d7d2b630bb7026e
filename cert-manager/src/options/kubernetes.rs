//! The flags for a certificate authority on Kubernetes.

use clap::Args;
use tidegate_core::contract::{environment, flags};

/// The API server in place of folders.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesOptions {
    /// Keep everything in the API server: callers' tokens are reviewed by it, the root lies in the Secret
    /// tidegate-ca-bundle, the trust bundle goes to a ConfigMap of each namespace of the mesh, MeshConfig says what
    /// the ingress controller's certificate is
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
