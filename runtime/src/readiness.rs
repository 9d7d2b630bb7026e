//! Readiness of a process, as the set of reasons why it is not ready yet.
//!
//! A component that must finish something first holds a [`Blocker`]; the process is ready when none is held. Dropping a
//! blocker releases it, so that an early return or a panic cannot leave the process unready forever, and blockers can
//! be listed by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The blockers of one process. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<String, usize>>>);

/// Keeps the process unready until it is dropped.
#[derive(Debug)]
#[must_use = "readiness is blocked only while this is held"]
pub struct Blocker {
    readiness: Readiness,
    name: String,
}

impl Readiness {
    /// Ready until something blocks.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }

    /// Blocks readiness for the reason `name`, which operators see. Several blockers may share a name.
    pub fn block(&self, name: impl Into<String>) -> Blocker {
        let name = name.into();
        self.0.send_modify(|blockers| *blockers.entry(name.clone()).or_default() += 1);
        Blocker { readiness: self.clone(), name }
    }

    /// Whether nothing blocks.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The names of the blockers, sorted, without duplicates.
    pub fn blocked_by(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    /// Returns once nothing blocks.
    pub async fn ready(&self) {
        // Never an error: `self` keeps the sender alive.
        let _ = self.0.subscribe().wait_for(BTreeMap::is_empty).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|blockers| match blockers.get_mut(&self.name) {
            Some(1) => {
                blockers.remove(&self.name);
            }
            Some(count) => *count -= 1,
            None => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_no_blocker_is_held() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let policy = readiness.block("policy");
        let certificate = readiness.block("certificate");
        assert_eq!(readiness.blocked_by(), ["certificate", "policy"]);
        drop(policy);
        assert!(!readiness.is_ready());
        drop(certificate);
        assert!(readiness.is_ready());
    }

    #[test]
    fn blockers_of_one_name_are_counted() {
        let readiness = Readiness::new();
        let first = readiness.block("worker");
        let second = readiness.block("worker");
        drop(first);
        assert_eq!(readiness.blocked_by(), ["worker"]);
        drop(second);
        assert!(readiness.is_ready());
    }

    #[tokio::test]
    async fn waiting_ends_when_the_last_blocker_goes() {
        let readiness = Readiness::new();
        let blocker = readiness.block("certificate");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(blocker);
        waiting.await.unwrap();
    }
}
