//! From objects to policy: pure functions of an [`Index`](crate::index::Index).
//!
//! [`workload`] joins everything that decides about one Pod into one
//! [`InboundPolicy`](tidegate_core::policy::InboundPolicy); [`status`](mod@status) says of each policy whether it is in
//! force. Both read a rule through the same functions, so that what a status says is what sidecars do. Each kind
//! that is compiled has a file of its own.

mod audit;
mod backend;
pub(crate) mod destination;
pub(crate) mod egress;
pub(crate) mod egress_proxy;
mod endpoint_choice;
mod external_authorization;
mod fault;
mod fronts;
pub(crate) mod gateway_route;
mod http_route_group;
mod ingress_backend;
mod mesh_config;
mod peers;
mod ports;
pub(crate) mod retry;
pub(crate) mod route_features;
pub(crate) mod routes_key;
pub(crate) mod service_entry;
pub(crate) mod service_routes;
pub(crate) mod status;
mod targets;
mod tcp_route;
mod traffic_split;
mod traffic_target;
mod upstream_traffic_setting;
mod workload;

pub use backend::bypasses_sidecar;
pub(crate) use egress_proxy::NamespaceEgress;
#[cfg(test)]
pub(crate) use ingress_backend::ingress_backend;
pub(crate) use mesh_config::{NO_MESH_CONFIG, egress_mode};
pub(crate) use targets::Targets;
pub(crate) use workload::workload;
pub(crate) use workload::{CompiledWorkload, NamespaceRules, imagined_pod, workload_by};

#[cfg(test)]
mod tests;
