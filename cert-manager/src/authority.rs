//! The certificate authority over time: generated or given once, kept in a store, rotated in steps.
//!
//! [`AuthorityState`] is a plain value: the state at one moment, and which step may follow. [`Authority`] keeps that value
//! equal to the store's, publishes the trusted roots, and takes the steps.

mod given;
mod keeper;
mod state;

pub use crate::issuer::RequiredNames;
pub use given::GivenFiles;
pub use keeper::{Advance, Authority, AuthorityError, NewRoot, RootStatus, RotationStatus};
pub use state::{AuthorityState, Farewell, NotAllowed, RotationStep, RotationTiming, StateError, Vouched};
