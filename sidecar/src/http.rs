//! HTTP, both codecs. Policy, header rules and logs see one request type and never the codec.
//!
//! `h1` is a path of our own, one task that drives both sides; [`h2`] is hyper's.

pub mod h2;

use std::rc::Rc;

use crate::limits::Limits;
use crate::telemetry::Telemetry;

/// What a worker lends to each HTTP connection.
pub struct Env {
    /// How much and how long.
    pub limits: Rc<Limits>,
    /// Where each request is told.
    pub telemetry: Rc<Telemetry>,
    /// Connections to the app that hyper drives.
    pub h2: h2::Upstreams,
}
