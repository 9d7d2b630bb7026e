//! The `tidegate` command, as a library so that tests can run what it runs.
//!
//! [`commands`] is the map: one variant for each command. [`standalone`] runs the CA, the controller and the sidecars
//! in one process, the same ones as the programs; [`demo`] walks the ingress story on top of it.

mod admin_client;
pub mod commands;
pub mod demo;
mod explain;
mod output;
mod policy;
pub mod standalone;
mod validate;
