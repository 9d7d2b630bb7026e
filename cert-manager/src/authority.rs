//! The certificate authority over time: made or given once, kept in a store, rotated in steps.
//!
//! [`AuthorityState`] is what holds at one moment and which step may follow, as a plain value. [`Authority`] keeps
//! that value equal to the store's, publishes the roots it trusts, and takes the steps.

mod given;
mod keeper;
mod state;

pub use crate::issuer::RequiredNames;
pub use given::GivenFiles;
pub use keeper::{Advance, Authority, AuthorityError, NewRoot, RootStatus, RotationStatus};
pub use state::{AuthorityState, Farewell, NotAllowed, RotationTiming, StateError, Step, Vouched};
