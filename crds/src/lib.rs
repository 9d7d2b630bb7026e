//! The custom resources that Tidegate reads, as Rust types, as CRD manifests, and as checks.
//!
//! Groups, names, fields and defaults are those of Open Service Mesh, of the Service Mesh Interface and of Istio, so that
//! their users' manifests apply unchanged.
//! This crate may use Kubernetes' types and [`tidegate_core`]'s; it does no I/O.
//!
//! Start reading at [`ingress_backend`], [`traffic_target`], [`service_entry`] and [`mesh_config`]; [`gateway_api`] has kinds whose
//! definitions are the cluster's. [`validate`] reports what is wrong with an object beyond
//! its schema, in the words that OSM's admission webhook used; [`schema`] checks any YAML against a CRD's schema as the
//! API server would, and [`stored`] reads objects that were stored unchecked. [`manifest`] writes the manifests in
//! `crds/yaml`, and a test compares them.

mod bounded;
mod call_timeout;
pub mod common_status;
pub mod egress;
pub mod egress_proxy;
pub mod gateway_api;
pub mod http_route_group;
pub mod ingress_backend;
pub mod injection;
pub mod manifest;
pub mod mesh_config;
pub mod not_enforced;
mod numbers;
pub mod quantity;
pub mod retry;
pub mod schema;
pub mod service_entry;
pub mod stored;
pub mod tcp_route;
pub mod traffic_split;
pub mod traffic_target;
pub mod upstream_traffic_setting;
pub mod validate;

pub use common_status::CommonStatus;
pub use egress::{Egress, EgressSpec};
pub use egress_proxy::{EgressProxy, EgressProxySpec};
pub use http_route_group::{HTTPRouteGroup, HTTPRouteGroupSpec};
pub use ingress_backend::{IngressBackend, IngressBackendSpec, IngressBackendStatus};
pub use mesh_config::{MeshConfig, MeshConfigSpec};
pub use retry::{Retry, RetrySpec};
pub use service_entry::{ServiceEntry, ServiceEntrySpec, ServiceEntryStatus};
pub use tcp_route::{TCPRoute, TCPRouteSpec};
pub use traffic_split::{TrafficSplit, TrafficSplitSpec};
pub use traffic_target::{TrafficTarget, TrafficTargetSpec};
pub use upstream_traffic_setting::{UpstreamTrafficSetting, UpstreamTrafficSettingSpec};
pub use validate::{Finding, Severity};
