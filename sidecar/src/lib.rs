//! The data plane of one workload: takes every connection, speaks mutual TLS, enforces the policy, and says what it
//! did.
//!
//! Start at `inbound`: a connection's story, top to bottom; `outbound` is that of one that the app opens. A [`worker`] owns the connections of one thread;
//! [`snapshot`] is how it learns what the control thread knows; [`lifeline`] is how it ends what may not go on.
//! [`mod@sidecar`] puts the parts together.

mod admin;
pub mod authorizer;
mod certificates;
mod connection;
pub mod connection_info;
mod context;
pub mod destinations;
pub mod detect;
pub mod discovery;
mod flow;
mod held;
pub mod http;
mod inbound;
pub mod intercept;
pub mod lifeline;
pub mod limits;
pub mod listener;
pub mod options;
mod outbound;
mod places;
pub mod probes;
mod refusal_log;
pub mod sidecar;
pub mod snapshot;
mod socket;
pub mod stream;
pub mod telemetry;
pub mod tls;
mod tunnel;
mod turn;
mod upstream;
pub mod wait;
pub mod worker;

#[cfg(test)]
mod test_mesh;
#[cfg(test)]
mod test_pki;
