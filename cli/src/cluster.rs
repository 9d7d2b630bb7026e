//! Commands that talk to a cluster.
//!
//! [`client`] connects: flags, kubeconfig, and errors that say what to do. [`admin`] queries the admin server of a Pod
//! through a port-forward; [`control_plane`] finds the Pods to query.
//!
//! Every command has a file with its flags (`…Options`), `run`, and the text of its table. Commands read through
//! [`client::Cluster`], which pages lists and whose errors say which request failed.

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
mod transient;
mod waits;
