//! What the daemons share when they run on Kubernetes: the client, webhooks and their CA bundles, leases.
//!
//! Never a dependency of the sidecar.

pub mod webhook;
