//! Shared by every daemon's process: logs, metrics, readiness, the admin server, signals, drain, the workload's
//! certificate and gRPC over mutual TLS.
//!
//! It uses [`tidegate_core`] and [`tidegate_proto`], and neither Kubernetes nor any daemon. Start reading at
//! [`identity`]: how a process gets and renews its certificate. [`grpc`] connects processes, [`admin`] shows a process
//! to its operator, [`drain`] shuts it down without cutting connections.

pub mod admin;
pub mod backoff;
pub mod chain;
pub mod connections;
pub mod credentials;
pub mod drain;
pub mod forward_proxy;
pub mod grpc;
pub mod identity;
pub mod listen;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod options;
pub mod readiness;
pub mod signals;
pub(crate) mod tcp;
pub mod tls;
pub mod trust_bundle;

#[cfg(test)]
mod test_ca;
#[cfg(test)]
mod test_pki;
