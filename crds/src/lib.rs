//! The custom resources that Tidegate reads, as Rust types, as CRD manifests, and as checks.
//!
//! Groups, names, fields and defaults are those of Open Service Mesh, so that its users' manifests apply unchanged.
//! This crate may know Kubernetes' types and [`tidegate_core`]'s; it talks to nobody.
//!
//! Start reading at [`ingress_backend`] and [`mesh_config`]. [`validate`] says what is wrong with an object beyond
//! its schema, in the words that OSM's admission webhook used; [`schema`] checks any YAML against a CRD's schema as
//! the API server would, and [`stored`] reads what no check has seen. The manifests in `crds/yaml` are written by [`manifest`] and held to it by a test.

mod bounded;
pub mod ingress_backend;
pub mod injection;
pub mod manifest;
pub mod mesh_config;
pub mod not_enforced;
pub mod quantity;
pub mod schema;
pub mod stored;
pub mod validate;

pub use ingress_backend::{IngressBackend, IngressBackendSpec, IngressBackendStatus};
pub use mesh_config::{MeshConfig, MeshConfigSpec, MeshConfigStatus};
pub use validate::{Finding, Severity};
