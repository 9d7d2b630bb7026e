//! A real Kubernetes, as its users see it: with `kubectl` and `tidegate`.
//!
//! [`Cluster::get`] returns the cluster that all suites of a run share: the one of `KUBECONFIG`, or else the one that
//! `tests/cluster/cluster` starts. [`mesh::Mesh::get`] installs Tidegate there, once. A test creates its own
//! [`namespace::Namespace`], puts [`workload`]s into it and has them send requests to each other. When a test fails,
//! the content of its namespace is printed.

pub mod cluster;
pub mod forward;
pub mod ingress;
pub mod load;
pub mod mesh;
pub mod namespace;
pub mod pod;
mod process;
pub mod workload;

use std::time::Duration;

pub use self::cluster::Cluster;
pub use self::process::PodProcess;

/// How long ordinary changes of a cluster may take: a rollout, a volume that follows its ConfigMap.
pub const ROLLOUT: Duration = Duration::from_secs(120);
