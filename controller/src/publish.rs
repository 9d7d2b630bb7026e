//! What sidecars are sent: the newest version of each policy and of each destination, and who follows it.
//!
//! Compilation writes here, streams read. Neither waits for the other: a slow stream skips the versions that it did not
//! take in time.

pub(crate) mod destinations;
pub(crate) mod policies;
pub(crate) mod shares;
mod version;
