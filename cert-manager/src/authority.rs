//! The certificate authority over time: generated or given once, kept in a store, rotated in steps.
//!
//! [`AuthorityState`] is a plain value: the state at one moment, and which step may follow. [`Authority`] keeps that value
//! equal to the store's, publishes the trusted roots, and takes the steps.

mod given;
mod keeper;
mod state;

pub(crate) use crate::issuer::RequiredNames;
pub use given::GivenFiles;
pub(crate) use keeper::Authority;
pub use keeper::{Advance, AuthorityError, NewRoot, RootStatus, RotationStatus};
pub(crate) use state::{AuthorityState, RotationTiming};
pub use state::{Farewell, NotAllowed, StateError, Vouched};
