//! Tidegate's certificate authority: a CSR and a service account token in, a short-lived certificate out.
//!
//! It also owns the root and its rotation, publishes the trust bundle, and keeps the client certificate for an ingress
//! controller outside the mesh. It is independent of policy, and of Kubernetes except for [`kubernetes`], which implements
//! its traits.
//!
//! Start reading at [`rules`], which decides which certificate a caller gets; [`csr`] checks the request before. [`manager`]
//! shows how the parts run together. [`authenticate`] authenticates callers, [`authority`] keeps and rotates the root,
//! [`ingress_gateway`] keeps the ingress controller's certificate, and [`store`] defines where all of it is stored.

mod admin;
pub mod authenticate;
pub mod authority;
mod check_schedule;
mod csr;
pub mod ingress_gateway;
mod issuer;
pub mod kubernetes;
pub mod manager;
mod options;
pub mod rate_limit;
pub mod rules;
mod service;
pub mod service_names;
mod serving;
pub mod store;
mod telemetry;
#[cfg(test)]
mod testing;
mod x509;

pub use check_schedule::CheckSchedule;
pub use csr::check_csr;
pub use ingress_gateway::GatewayDependencies;
pub use manager::{
    CertManager, CertManagerConfig, CertManagerDependencies, CertManagerHandle, CertManagerStartError,
};
pub use options::CertManagerOptions;
pub use serving::ServingError;
pub use x509::WriteError;
