//! Admission webhooks, which the API server calls before it stores an object (`admission.k8s.io/v1`).
//!
//! A daemon implements [`AdmissionReviewer`], from request to verdict, and starts a [`WebhookServer`] with it. The server
//! presents the daemon's newest certificate of the mesh's CA. [`CaBundleKeeper`] writes the mesh's roots into the
//! daemon's own webhook configuration, so that the API server accepts that certificate.
//!
//! Any client that reaches the port can send requests, so a reviewer acts only on the submitted object, and its
//! response reveals nothing that the client did not know. Bodies, their memory, connections and time are limited, with
//! a share for each address.

mod answer;
mod bodies;
mod ca_bundle;
mod metrics;
mod review;
mod server;
mod tls;

pub use ca_bundle::{CaBundleKeeper, WebhookConfiguration};
pub use futures_util::future::BoxFuture;
pub use review::{AdmissionRequest, AdmissionReviewer, Operation, ReviewOutcome, Verdict};
pub use server::{WebhookLimits, WebhookServer, WebhookStartError};

#[cfg(any(test, feature = "fake-api"))]
pub mod testing;
#[cfg(test)]
mod tests;
