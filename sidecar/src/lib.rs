//! The data plane of one workload: accepts every connection, speaks mutual TLS, enforces the policy, and logs and
//! counts what it did.
//!
//! Start at `inbound`, which reads top to bottom as the life of a connection from a client; `outbound` is the same for
//! a connection that the app opens. A `worker` owns the connections of one thread. It receives configuration from the
//! control thread through [`snapshot`], and ends connections through [`lifeline`]. [`mod@sidecar`] puts the parts
//! together.

mod admin;
pub mod authorizer;
mod certificates;
mod connection;
pub mod connection_info;
mod context;
mod destinations;
pub mod detect;
mod discovery;
mod dns;
mod first_bytes;
mod flow;
mod grpc;
mod held;
pub mod http;
mod inbound;
pub mod intercept;
pub mod lifeline;
pub mod limits;
mod listener;
pub mod options;
mod outbound;
mod places;
mod probes;
mod rate_limits;
mod refusal_log;
pub mod remotes;
pub mod sidecar;
pub mod snapshot;
mod socket;
mod span_export;
mod stream;
pub mod telemetry;
mod tls;
mod tunnel;
mod turn;
mod upstream;
pub mod wait;
mod worker;

#[cfg(test)]
mod test_mesh;
#[cfg(test)]
mod test_pki;
