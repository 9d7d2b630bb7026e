//! The `tidegate` command, whose `main` calls [`commands::main`].
//!
//! Start with [`commands`]: one variant for each command. `standalone` runs the CA, the controller and the sidecars
//! in one process, with the same code as the programs; `demo` runs the ingress story on top of it. `cluster` holds
//! the commands that talk to Kubernetes.

mod admin_client;
mod admin_target;
mod candidates;
mod cluster;
pub mod commands;
mod completion;
mod demo;
mod egress;
mod egress_check;
mod explain;
mod helm;
mod install;
mod output;
mod patience;
mod policy;
mod standalone;
mod validate;
