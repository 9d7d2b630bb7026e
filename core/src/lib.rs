//! The ground floor of Tidegate: who is who, and who may do what.
//!
//! Identities and trust domains, the names in a certificate, principals that match those names, address sets,
//! and the inbound policy model with its evaluator. Everything here is a pure function of its input: no I/O, no
//! clock, no async runtime, no Kubernetes, no TLS library. Every other crate may use this one; it uses none of ours.
//!
//! Start reading at [`policy`]: it decides every connection and request. [`identity`] and [`certificate`] say what
//! it decides about.

pub mod certificate;
pub mod cidr;
pub mod destination;
pub mod dns_name;
pub mod go_duration;
mod hex;
pub mod identity;
mod interface;
pub mod policy;
pub mod principal;
pub mod san;

pub use certificate::PeerCertificate;
pub use cidr::CidrSet;
pub use destination::Destination;
pub use dns_name::DnsName;
pub use hex::hex;
pub use identity::{Identity, TrustDomain};
pub use interface::is_interface;
pub use principal::Principal;
pub use san::San;
