//! What the daemons share when they run on Kubernetes: the [`client`], [`watch`]es that heal and decode [no more than is
//! read](lean), [`lease`]s, [`webhook`]s.
//!
//! Never a dependency of the sidecar: a test holds its tree free of Kubernetes' types. Start reading at
//! [`client::connect`].

pub mod client;
#[cfg(any(test, feature = "fake-api"))]
pub mod fake_api;
pub mod lean;
pub mod lease;
pub mod options;
pub mod watch;
pub mod webhook;
