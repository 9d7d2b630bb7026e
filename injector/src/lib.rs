//! The mutating webhook that adds the sidecar to pods of the mesh.

mod annotations;
mod containers;
mod decision;
mod inject;
mod patch;
mod ports;
mod probes;
mod refusal;
pub mod settings;

pub use decision::{Decision, DecisionError, NamespaceView, Reason, decide};
pub use inject::{Injection, inject};
pub use refusal::Refusal;
