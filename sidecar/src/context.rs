//! Per-worker state that connections share.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::certificates::Certificates;
use crate::destinations::Destinations;
use crate::http::HttpContext;
use crate::refusal_log::RefusalLog;
use crate::remotes::Remotes;
use crate::snapshot::{Snapshot, Snapshots};

/// State of one worker that its connections use.
pub(crate) struct WorkerContext {
    /// Configuration that the control thread publishes.
    pub(crate) snapshots: Snapshots,
    /// Destinations that the app has dialled.
    pub(crate) destinations: Arc<Destinations>,
    /// Limits, telemetry, pools and buffers.
    pub(crate) http: Rc<HttpContext>,
    /// Names the workloads at the other end of connections.
    pub(crate) remotes: Remotes,
    /// Interned certificates of peers.
    pub(crate) certificates: RefCell<Certificates>,
    /// Log of refused connections.
    pub(crate) refusals: Rc<RefusalLog>,
    /// The workload's SPIFFE URI, with the snapshot generation that it comes from.
    identity: RefCell<(u64, Arc<str>)>,
}

impl WorkerContext {
    /// State of a worker that has no connections yet.
    pub(crate) fn new(snapshots: Snapshots, destinations: Arc<Destinations>, http: Rc<HttpContext>) -> Self {
        Self {
            snapshots,
            remotes: destinations.remotes(),
            destinations,
            http,
            certificates: RefCell::default(),
            refusals: Rc::default(),
            identity: RefCell::new((0, Arc::default())),
        }
    }

    /// The workload's SPIFFE URI, by the policy of this snapshot.
    pub(crate) fn identity(&self, snapshot: &Snapshot) -> Arc<str> {
        let mut identity = self.identity.borrow_mut();
        if identity.0 != snapshot.generation {
            let uri = snapshot.policy.as_ref().map(|policy| policy.identity.spiffe_uri()).unwrap_or_default();
            if *identity.1 != *uri {
                identity.1 = uri.into();
            }
            identity.0 = snapshot.generation;
        }
        identity.1.clone()
    }

    /// Periodic work, on every tick of the worker.
    pub(crate) fn tick(&self) {
        self.certificates.borrow_mut().sweep();
        self.http.tick();
    }
}
