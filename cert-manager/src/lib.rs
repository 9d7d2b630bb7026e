//! Tidegate's certificate authority: a CSR and a service account token in, a short-lived certificate out.
//!
//! It also owns the root and its rotation, publishes the trust bundle, and keeps the client certificate that an
//! ingress controller outside the mesh shows. It knows nothing of policy, and Kubernetes only through traits, but for
//! [`kubernetes`], which implements them.
//!
//! Start reading at [`rules`], which decides who gets what; [`csr`] says what a request must be before. [`manager`]
//! shows how the parts run together. [`authenticate`] finds out who asks, [`authority`] keeps and rotates the root,
//! [`ingress_gateway`] keeps the ingress controller's certificate, [`store`] says where all of it lies.

pub mod admin;
pub mod authenticate;
pub mod authority;
pub mod csr;
pub mod ingress_gateway;
pub mod issuer;
pub mod kubernetes;
pub mod manager;
pub mod options;
pub mod rate_limit;
pub mod rules;
mod service;
pub mod service_names;
mod serving;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
mod x509;

pub use csr::check_csr;
pub use manager::{CertManager, CertManagerHandle, Config, Dependencies, GatewayDependencies, StartError};
pub use options::Options;
pub use serving::ServingError;
pub use x509::WriteError;
