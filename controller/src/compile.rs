//! From objects to policy: pure functions of an [`Index`](crate::index::Index).
//!
//! [`workload`] joins everything that decides about one Pod into one
//! [`InboundPolicy`](tidegate_core::policy::InboundPolicy); [`status`](mod@status) says of each IngressBackend whether it
//! is in force. Both read a rule through `ingress_backend::rules`, so that what a status says is what sidecars do. Each kind
//! that is compiled has a file of its own.

mod backend;
pub(crate) mod destination;
mod fronts;
mod ingress_backend;
mod mesh_config;
mod ports;
pub(crate) mod status;
mod targets;
mod workload;

#[cfg(test)]
pub(crate) use ingress_backend::ingress_backend;
pub(crate) use mesh_config::NO_MESH_CONFIG;
pub(crate) use targets::Targets;
pub(crate) use workload::workload;
pub(crate) use workload::{CompiledWorkload, NamespaceRules, imagined_pod, workload_by};

#[cfg(test)]
mod tests;
