//! What the control thread knows, as the data workers see it: an immutable value and a generation number.
//!
//! A worker compares one atomic number per connection or request; only when it differs does it take the new value.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_core::policy::InboundPolicy;
use tokio::sync::watch;

use crate::rate_limits::PortLimiters;
use crate::tls::{OriginTls, PeerTls, ServerTls};

/// All that decides about connections, at one moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Counts up with every change. Zero: nothing is known yet.
    pub generation: u64,
    /// The workload's policy; without one everything is refused.
    pub policy: Option<Arc<InboundPolicy>>,
    /// The buckets of the policy's rate limits.
    pub(crate) limiters: PortLimiters,
    /// TLS for the certificate and trust bundle of this moment; without it no TLS is spoken.
    pub tls: Option<Arc<ServerTls>>,
    /// TLS towards other sidecars, for the same certificate and trust bundle.
    pub peer_tls: Option<Arc<PeerTls>>,
    /// TLS towards servers outside the mesh.
    pub origin_tls: Arc<OriginTls>,
}

/// The control thread's end.
pub struct Publisher {
    sender: watch::Sender<Arc<Snapshot>>,
    generation: Arc<AtomicU64>,
}

/// A worker's end. Clone one for each worker.
#[derive(Clone)]
pub struct Snapshots {
    receiver: watch::Receiver<Arc<Snapshot>>,
    generation: Arc<AtomicU64>,
}

/// A pair of ends, with an empty snapshot in between.
pub fn channel() -> (Publisher, Snapshots) {
    let (sender, receiver) = watch::channel(Arc::default());
    let generation = Arc::new(AtomicU64::new(0));
    (Publisher { sender, generation: generation.clone() }, Snapshots { receiver, generation })
}

impl Publisher {
    /// Changes the snapshot and tells every worker.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.sender.send_modify(|snapshot| {
            let mut next = Snapshot::clone(snapshot);
            change(&mut next);
            if next.policy.as_ref().map(Arc::as_ptr) != snapshot.policy.as_ref().map(Arc::as_ptr) {
                next.limiters = PortLimiters::new(next.policy.as_deref(), &snapshot.limiters);
            }
            next.generation += 1;
            let generation = next.generation;
            *snapshot = Arc::new(next);
            // After the value: who sees the number finds at least that value.
            self.generation.store(generation, Ordering::Release);
        });
    }

    /// An end for a reader.
    pub fn subscribe(&self) -> Snapshots {
        Snapshots { receiver: self.sender.subscribe(), generation: self.generation.clone() }
    }

    /// The snapshot as it is.
    pub fn current(&self) -> Arc<Snapshot> {
        self.sender.borrow().clone()
    }
}

impl Snapshots {
    /// The newest generation there is.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The newest snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        self.receiver.borrow().clone()
    }

    /// Waits for a snapshot that this receiver has not seen; `None` once the publisher is gone.
    pub async fn changed(&mut self) -> Option<Arc<Snapshot>> {
        self.receiver.changed().await.ok()?;
        Some(self.receiver.borrow_and_update().clone())
    }
}
