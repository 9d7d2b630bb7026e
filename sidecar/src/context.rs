//! What connections use of the worker that carries them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::certificates::Certificates;
use crate::destinations::Destinations;
use crate::http::HttpContext;
use crate::refusal_log::RefusalLog;
use crate::snapshot::{Snapshot, Snapshots};

/// One for each worker, shared by its connections.
pub(crate) struct WorkerContext {
    /// What the control thread knows.
    pub(crate) snapshots: Snapshots,
    /// What is known of the addresses that the app dials.
    pub(crate) destinations: Arc<Destinations>,
    /// Limits, telemetry, pools and buffers.
    pub(crate) http: Rc<HttpContext>,
    /// Certificates of peers.
    pub(crate) certificates: RefCell<Certificates>,
    /// Where refused connections are told.
    pub(crate) refusals: RefusalLog,
    /// The workload's SPIFFE URI, with the generation of the policy that it is from.
    identity: RefCell<(u64, Arc<str>)>,
}

impl WorkerContext {
    /// Without any connection's.
    pub(crate) fn new(snapshots: Snapshots, destinations: Arc<Destinations>, http: Rc<HttpContext>) -> Self {
        Self {
            snapshots,
            destinations,
            http,
            certificates: RefCell::default(),
            refusals: RefusalLog::default(),
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

    /// What is due on every tick of the worker.
    pub(crate) fn tick(&self) {
        self.certificates.borrow_mut().sweep();
        self.http.tick();
    }
}
