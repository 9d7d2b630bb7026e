//! What has to be recomputed after a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::object::ObjectName;

/// What a change may affect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Affected {
    /// Everything.
    pub(crate) all: bool,
    /// Every workload and every IngressBackend of these namespaces.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// These workloads, and the status of the IngressBackends in their namespaces.
    pub(crate) pods: BTreeSet<ObjectName>,
    /// The workloads on these nodes.
    pub(crate) nodes: BTreeSet<Arc<str>>,
    /// The status of the IngressBackends of these namespaces.
    pub(crate) policies: BTreeSet<Arc<str>>,
    /// What workloads reach at these addresses: cluster IPs and addresses of Pods.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// What workloads reach in these ranges.
    pub(crate) ranges: BTreeSet<IpNet>,
    /// The backends and the status of these ServiceEntries.
    pub(crate) entries: BTreeSet<ObjectName>,
    /// The backends of these Services.
    pub(crate) services: BTreeSet<ObjectName>,
    /// The routes that clients of these Services get.
    pub(crate) routed: BTreeSet<ObjectName>,
    /// The status of Gateway API's routes with these names.
    pub(crate) routes: BTreeSet<ObjectName>,
    /// How many policies of each namespace were searched for the Pods behind them.
    looked_through: BTreeMap<Arc<str>, usize>,
}

/// Policies of a namespace that are searched for the Pods behind them. Beyond this number, compiling the whole
/// namespace is cheaper.
const MOST_LOOKED_THROUGH: usize = 16;

impl Affected {
    /// Whether to search a policy of this namespace for the Pods behind it: not if the whole namespace is affected,
    /// which it becomes after too many policies.
    pub(super) fn looks_through(&mut self, namespace: &Arc<str>) -> bool {
        if self.namespaces.contains(namespace) {
            return false;
        }
        let looked_through = self.looked_through.entry(namespace.clone()).or_default();
        *looked_through += 1;
        let is_looked_through = *looked_through <= MOST_LOOKED_THROUGH;
        if !is_looked_through {
            self.namespaces.insert(namespace.clone());
        }
        is_looked_through
    }
}
