//! A real Kubernetes, as its users see it: with `kubectl` and `tidegate`.
//!
//! [`Cluster::get`] gives the cluster that all suites of a run share: the one of `KUBECONFIG`, or else the one that
//! `tests/cluster/cluster` starts. [`mesh::Mesh::get`] installs Tidegate there, once. A test makes a
//! [`namespace::Namespace`] of its own, puts [`workload`]s into it and asks them to ask each other. What a namespace
//! held is printed when its test fails.

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

/// How long anything may take that a cluster does soon: a rollout, a volume that follows its ConfigMap.
pub const ROLLOUT: Duration = Duration::from_secs(120);
