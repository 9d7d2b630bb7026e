//! Choice of an endpoint by the weights that an operator has set, instead of by how fast endpoints respond.

use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_core::WeightedSequence;
use tidegate_core::backend::{Backend, Endpoint};

/// The weights of a backend's endpoints. All workers share the sequence.
#[derive(Debug)]
pub(super) struct EndpointWeights {
    /// Of places in the list of endpoints.
    sequence: WeightedSequence,
    position: AtomicU64,
}

impl EndpointWeights {
    /// The weights of these endpoints of a backend; `None` if it has none.
    pub(super) fn new(backend: &Backend, endpoints: &[&Endpoint]) -> Option<Box<Self>> {
        if backend.weights.is_empty() {
            return None;
        }
        let weight = |endpoint: &&Endpoint| backend.weights.get(&endpoint.address).copied().unwrap_or(1);
        let weights: Vec<u32> = endpoints.iter().map(weight).collect();
        // Sidecars that send one request each are not to choose the same endpoint.
        let position = AtomicU64::new(rand::random::<u32>().into());
        Some(Box::new(Self { sequence: WeightedSequence::new(&weights), position }))
    }

    /// The place of the next endpoint.
    pub(super) fn next(&self) -> Option<usize> {
        self.sequence.at(self.position.fetch_add(1, Ordering::Relaxed))
    }
}
