//! Admission webhooks: what the API server asks before it stores an object (`admission.k8s.io/v1`).
//!
//! A daemon implements [`Reviewer`], from request to verdict, and starts a [`WebhookServer`] with it.
//! The server shows the daemon's certificate of the mesh's CA, whichever is newest. [`CaBundleKeeper`] writes the
//! mesh's roots into the daemon's own webhook configuration, so that the API server accepts that certificate.
//!
//! Anybody who reaches the port can ask, so a reviewer acts on nothing but what it is shown and its answer holds
//! nothing that the asker did not know. Bodies, their memory, connections and time are bounded, and each address has a
//! share of them.

mod answer;
mod bodies;
mod ca_bundle;
mod metrics;
mod review;
mod server;
mod tls;

pub use ca_bundle::{CaBundleKeeper, WebhookConfiguration};
pub use futures_util::future::BoxFuture;
pub use review::{AdmissionRequest, Operation, Outcome, Reviewer, Verdict};
pub use server::{Limits, StartError, WebhookServer};

#[cfg(any(test, feature = "fake-api"))]
pub mod testing;
#[cfg(test)]
mod tests;
