//! Tidegate's certificate authority.

pub mod csr;
pub mod issuer;
pub mod rules;
#[cfg(test)]
mod testing;
mod x509;
