//! The `tidegate` command, as a library so that tests can run the same code.
//!
//! Start with [`commands`]: one variant for each command. [`standalone`] runs the CA, the controller and the sidecars
//! in one process, with the same code as the programs; [`demo`] runs the ingress story on top of it. `cluster` holds
//! the commands that talk to Kubernetes.

mod admin_client;
mod admin_target;
mod candidates;
mod cluster;
pub mod commands;
mod completion;
pub mod demo;
mod explain;
mod helm;
mod install;
mod output;
mod patience;
mod policy;
pub mod standalone;
mod validate;
