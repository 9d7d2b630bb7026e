//! The commands that speak to a cluster.
//!
//! [`client`] is the way in: flags, kubeconfig, and errors that say what to do. [`admin`] asks the admin server of a
//! Pod through a port-forward; [`control_plane`] finds the Pods to ask.

pub(crate) mod admin;
pub(crate) mod bug_report;
pub(crate) mod certificate;
pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod conflicts;
pub(crate) mod control_plane;
pub(crate) mod inject;
pub(crate) mod mesh;
pub(crate) mod namespace;
pub(crate) mod proxy;
pub(crate) mod sidecars;
#[cfg(test)]
pub(crate) mod testing;
mod waits;
