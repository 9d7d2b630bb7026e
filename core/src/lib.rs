//! The foundation of Tidegate: identities, authorization, and routes.
//!
//! Identities and trust domains, the names in a certificate, principals that match those names, address sets, the
//! inbound policy with its evaluator, and the one model of routes and backends. Everything here is a pure function of
//! its input: no I/O, no clock, no async runtime, no Kubernetes, no TLS library. Every other crate may use this one; it
//! uses no other crate of Tidegate.
//!
//! Start reading at [`policy`], which decides whether a connection or request is admitted, and at [`route`], which decides
//! where a request goes. [`identity`] and [`certificate`] say who sends it. [`contract`] has the names and ports that the
//! parts of an installation share.

pub mod backend;
pub mod certificate;
pub mod cidr;
pub mod contract;
pub mod destination;
pub mod dns_name;
pub mod egress;
pub mod forward_proxy;
pub mod go_duration;
mod hex;
pub mod identity;
mod interface;
pub mod object_ref;
pub mod path;
pub mod policy;
pub mod port_protocol;
pub mod principal;
pub mod route;
pub mod san;
mod service_retry;
pub mod telemetry;
pub mod tls_origination;
pub mod token_bucket;
pub mod weighted;

pub use certificate::PeerCertificate;
pub use cidr::CidrSet;
pub use destination::Destination;
pub use dns_name::DnsName;
pub use egress::EgressMode;
pub use hex::hex;
pub use identity::{Identity, TrustDomain};
pub use interface::is_interface;
pub use object_ref::ObjectRef;
pub use port_protocol::PortProtocol;
pub use principal::Principal;
pub use san::San;
pub use service_retry::ServiceRetry;

pub use weighted::WeightedSequence;
