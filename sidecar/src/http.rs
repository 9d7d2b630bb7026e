//! HTTP, both codecs. Policy, header rules and logs see one request type and never the codec.
//!
//! [`handler`] decides what becomes of a request; the codecs read requests, do what it says, and carry the answers.
//! [`h1`] is a path of our own, one task that drives both sides; [`h2`] is the h2 crate's. What they speak to is in
//! [`crate::upstream`]. [`headers`] has the rules for what is believed of a client, `target` for what a request may be,
//! [`local_reply`] the answers that are ours.

pub mod buffer;
pub mod client_certificate;
pub mod clock;
pub mod h1;
pub mod h2;
pub mod handler;
pub mod headers;
pub mod local_reply;
pub mod request;
mod target;

use std::rc::Rc;
use std::time::Instant;

use crate::limits::Limits;
use crate::snapshot::Snapshots;
use crate::telemetry::Telemetry;
use crate::upstream::Upstreams;

/// What a worker lends to each HTTP connection; one for each worker.
pub struct HttpContext {
    /// How much and how long.
    pub limits: Rc<Limits>,
    /// Where each request is logged and counted.
    pub telemetry: Rc<Telemetry>,
    /// Connections to upstreams.
    pub upstreams: Upstreams,
    /// The streams of clients that speak HTTP/2.
    pub streams: h2::Streams,
    /// Spare memory for bytes on their way.
    pub buffers: buffer::Buffers,
    /// The `date` of our own answers.
    pub clock: clock::Clock,
}

impl HttpContext {
    /// A context with nothing in its pools. TLS towards upstreams is spoken as the newest snapshot has it.
    pub fn new(limits: Rc<Limits>, telemetry: Rc<Telemetry>, snapshots: Snapshots) -> Self {
        Self {
            upstreams: Upstreams::new(limits.clone(), snapshots),
            limits,
            telemetry,
            streams: h2::Streams::default(),
            buffers: buffer::Buffers::default(),
            clock: clock::Clock::new(),
        }
    }

    /// What is due on every tick of the worker.
    pub fn tick(&self) {
        let now = Instant::now();
        self.upstreams.sweep(now);
        self.streams.expire(now);
        self.telemetry.flush();
    }
}
