//! HTTP, both codecs. Policy, header rules and logs see one request type and never the codec.
//!
//! `h1` is a path of our own, one task that drives both sides; `h2` is hyper's.

use std::rc::Rc;

use crate::limits::Limits;
use crate::telemetry::Telemetry;

pub mod client_certificate;
pub mod clock;
pub mod h1;
pub mod h2;

/// What a worker lends to each HTTP connection.
pub struct Env {
    /// How much and how long.
    pub limits: Rc<Limits>,
    /// Where each request is told.
    pub telemetry: Rc<Telemetry>,
    /// The `date` of our own answers.
    pub clock: clock::Clock,
}

impl Env {
    /// An environment with nothing in its pools.
    pub fn new(limits: Rc<Limits>, telemetry: Rc<Telemetry>) -> Self {
        Self { limits, telemetry, clock: clock::Clock::new() }
    }

    /// What is due on every tick of the worker.
    pub fn tick(&self) {
        self.telemetry.flush();
    }
}
