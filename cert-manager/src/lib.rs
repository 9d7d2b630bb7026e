//! Tidegate's certificate authority.

pub mod csr;
pub mod issuer;
pub mod rules;
pub mod store;
#[cfg(test)]
mod testing;
mod x509;
