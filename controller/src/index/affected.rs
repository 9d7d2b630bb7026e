//! What has to be worked out again after a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::object::ObjectName;

/// What a change may have an effect on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Affected {
    /// Everything.
    pub(crate) all: bool,
    /// Every workload and every IngressBackend of these namespaces.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// These workloads, and the status of the IngressBackends in their namespaces.
    pub(crate) pods: BTreeSet<ObjectName>,
    /// The status of the IngressBackends of these namespaces.
    pub(crate) policies: BTreeSet<Arc<str>>,
    /// What workloads find when they dial these: cluster IPs and addresses of Pods.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// How many policies of a namespace were looked through for the Pods behind them.
    looked_through: BTreeMap<Arc<str>, usize>,
}

/// Policies of a namespace that are looked through for the Pods behind them; after more, all of the namespace is
/// compiled anew, which then costs less.
const MOST_LOOKED_THROUGH: usize = 16;

impl Affected {
    /// Whether the Pods behind a policy of this namespace are to be looked for. Not if all of the namespace is affected,
    /// and after many policies all of it is.
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
