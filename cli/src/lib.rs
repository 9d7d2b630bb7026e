//! The `tidegate` command, as a library so that tests can run what it runs.
//!
//! [`commands`] is the map: one variant for each command. [`standalone`] runs the CA, the controller and the sidecars
//! in one process, the same ones as the programs; [`demo`] walks the ingress story on top of it. `cluster` holds the
//! commands that speak to Kubernetes.

mod admin_client;
mod cluster;
pub mod commands;
pub mod completion;
pub mod demo;
mod explain;
mod install;
mod output;
mod policy;
pub mod standalone;
mod validate;
