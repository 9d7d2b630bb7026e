//! What is made of each namespace's objects, counted in bytes and held to a share.
//!
//! One object can be part of many results: a rule of many workloads, an endpoint of many destinations. So results are
//! counted as well as objects. What came first keeps its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::metrics::NamespaceGauge;

/// The most bytes that the results of one kind take for one namespace.
pub(crate) const SHARE: usize = 48 << 20;
/// Results that may turn out to be too large before no more are made for a namespace, until there is more room.
const MOST_FAILURES: usize = 16;

/// The shares of all namespaces in results that keys of type `K` name.
#[derive(Debug)]
pub(crate) struct NamespaceShares<K> {
    share: usize,
    left_out: NamespaceGauge,
    namespaces: HashMap<Arc<str>, NamespaceResults<K>>,
}

/// One namespace: the bytes of each result that is held, and the results that have no place.
///
/// `failures` counts results that were made and did not fit; `has_new_room` is set when bytes are given back, so that
/// those left out are tried again.
#[derive(Debug)]
struct NamespaceResults<K> {
    bytes: usize,
    held: BTreeMap<K, usize>,
    left_out: BTreeSet<K>,
    failures: usize,
    has_new_room: bool,
}

impl<K: Ord + Clone> NamespaceShares<K> {
    /// Nothing is held yet. `share` is in bytes; `left_out` counts what has no place.
    pub(crate) fn new(share: usize, left_out: NamespaceGauge) -> Self {
        Self { share, left_out, namespaces: HashMap::new() }
    }

    /// Whether to leave this result out without making it, because the namespace's share is used up.
    pub(crate) fn is_used_up(&mut self, namespace: &Arc<str>, key: &K) -> bool {
        let Some(results) = self.namespaces.get_mut(namespace) else { return false };
        if results.failures < MOST_FAILURES || results.held.contains_key(key) {
            return false;
        }
        results.left_out.insert(key.clone());
        self.left_out.set(namespace, results.left_out.len());
        true
    }

    /// Counts a result, in the place of the one before. Returns whether it fits; it is left out otherwise.
    pub(crate) fn admit(&mut self, namespace: &Arc<str>, key: &K, bytes: usize) -> bool {
        let results = self.namespaces.entry(namespace.clone()).or_insert_with(NamespaceResults::new);
        let before = results.take(key);
        let fits = results.bytes + bytes <= self.share;
        results.has_new_room |= if fits { bytes < before } else { before > 0 };
        if fits {
            results.bytes += bytes;
            results.held.insert(key.clone(), bytes);
        } else {
            results.failures += 1;
            results.left_out.insert(key.clone());
        }
        self.left_out.set(namespace, results.left_out.len());
        fits
    }

    /// Forgets a result.
    pub(crate) fn release(&mut self, namespace: &Arc<str>, key: &K) {
        let Some(results) = self.namespaces.get_mut(namespace) else { return };
        results.has_new_room |= results.take(key) > 0;
        self.left_out.set(namespace, results.left_out.len());
        if results.held.is_empty() && results.left_out.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// What was left out of namespaces that have had room given back since the last call, so that it may fit now.
    pub(crate) fn take_new_room(&mut self) -> Vec<(Arc<str>, K)> {
        let mut again = Vec::new();
        for (namespace, results) in &mut self.namespaces {
            if std::mem::take(&mut results.has_new_room) && !results.left_out.is_empty() {
                results.failures = 0;
                again.extend(results.left_out.iter().map(|key| (namespace.clone(), key.clone())));
            }
        }
        again
    }

    /// Why a result is left out. `what` is in the plural, such as `policies`.
    pub(crate) fn reason(&self, what: &str) -> String {
        let share = self.share >> 20;
        format!(
            "all {what} of one namespace may take {share} MiB of the controller's memory, and those that were there \
             before leave no room: it needs fewer Pods, ports or rules, or several namespaces"
        )
    }
}

impl<K: Ord> NamespaceResults<K> {
    fn new() -> Self {
        Self { bytes: 0, held: BTreeMap::new(), left_out: BTreeSet::new(), failures: 0, has_new_room: false }
    }

    /// Forgets a result; the bytes that it took.
    fn take(&mut self, key: &K) -> usize {
        self.left_out.remove(key);
        let bytes = self.held.remove(key).unwrap_or_default();
        self.bytes -= bytes;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_first_keeps_its_place_and_what_was_left_out_comes_in_once_there_is_room() {
        let gauge = NamespaceGauge::default();
        let mut shares = NamespaceShares::new(100, gauge.clone());
        let (shop, other): (Arc<str>, Arc<str>) = ("shop".into(), "other".into());
        assert!(shares.admit(&shop, &1, 60) && !shares.admit(&shop, &2, 60) && shares.admit(&shop, &3, 40));
        assert!(shares.admit(&other, &1, 100), "another namespace has its own share");
        assert!(shares.admit(&shop, &1, 60), "the same again takes nothing more");
        assert_eq!((gauge.value("shop"), gauge.value("other")), (1, 0));
        shares.take_new_room();
        assert!(shares.take_new_room().is_empty());
        shares.release(&shop, &1);
        assert_eq!(shares.take_new_room(), [(shop.clone(), 2)]);
        assert!(shares.admit(&shop, &2, 60));
        assert_eq!(gauge.value("shop"), 0);
        for key in [1, 2, 3] {
            shares.release(&shop, &key);
        }
        shares.release(&other, &1);
        assert!(shares.namespaces.is_empty());
    }

    #[test]
    fn results_that_do_not_fit_are_made_a_few_times_only() {
        let mut shares = NamespaceShares::new(100, NamespaceGauge::default());
        let shop: Arc<str> = "shop".into();
        assert!(shares.admit(&shop, &0, 90));
        for key in 1..=MOST_FAILURES {
            assert!(!shares.is_used_up(&shop, &key) && !shares.admit(&shop, &key, 20));
        }
        assert!(shares.is_used_up(&shop, &100) && !shares.is_used_up(&shop, &0));
        shares.release(&shop, &0);
        assert_eq!(shares.take_new_room().len(), MOST_FAILURES + 1);
        assert!(!shares.is_used_up(&shop, &100));
    }
}
