//! Tidegate's certificate authority.

pub mod csr;
pub mod issuer;
pub mod rules;
mod x509;
