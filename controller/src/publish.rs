//! What sidecars are sent: the newest value of each resource, and who follows it.
//!
//! [`store`] holds every kind in one map. Listeners come from the engine, for each workload ([`policies`]); destinations,
//! backends and routes are made when the first sidecar follows them ([`on_demand`]). Compilation writes, streams read.
//! Neither waits for the other: a slow stream skips the versions that it did not take in time.

pub(crate) mod on_demand;
pub(crate) mod policies;
pub(crate) mod shares;
pub(crate) mod store;
mod version;
