//! What mesh peers may do at the ports of a workload: permissive mode, or TrafficTargets.

use std::sync::Arc;

use tidegate_core::TrustDomain;
use tidegate_core::policy::{AppProtocol, MeshRule, PeerRule};

use super::mesh_config::PeerMode;
use super::traffic_target::rules::NamespaceTargets;
use crate::index::Index;

/// What is the same for all workloads of a namespace.
pub(super) struct NamespacePeers {
    mode: PeerMode,
    targets: NamespaceTargets,
}

impl NamespacePeers {
    /// What TrafficTargets and the MeshConfig say of peers in this namespace.
    pub(super) fn new(index: &Index, namespace: &str, trust_domain: &TrustDomain) -> Self {
        Self { mode: PeerMode::of(index), targets: NamespaceTargets::new(index, namespace, trust_domain) }
    }

    /// The rule of a port of the workloads of a service account. A target in audit mode never admits more than targets that
    /// are enforced at the same port.
    pub(super) fn rule(&self, account: &str, port: u16, protocol: AppProtocol) -> MeshRule {
        let about_it =
            || self.targets.of(account).filter_map(|target| Some((target, target.rule(port, protocol)?)));
        let rules = |is_wanted: fn(bool) -> bool| -> Vec<Arc<PeerRule>> {
            about_it()
                .filter(|(target, _)| is_wanted(target.is_audit))
                .map(|(_, rule)| rule.clone())
                .collect()
        };
        match &self.mode {
            PeerMode::Closed(reason) => MeshRule::Deny(reason.clone()),
            PeerMode::Permissive if about_it().any(|(target, _)| target.is_audit) => {
                MeshRule::Audit(rules(|_| true))
            }
            PeerMode::Permissive => MeshRule::AnyPeer,
            PeerMode::Targets(otherwise) => {
                let enforced = rules(|is_audit| !is_audit);
                if !enforced.is_empty() {
                    return MeshRule::Rules(enforced);
                }
                match rules(|is_audit| is_audit) {
                    audit if audit.is_empty() => self.closed(account, protocol, otherwise),
                    audit => MeshRule::Audit(audit),
                }
            }
        }
    }

    /// The rule of a port that no target is about.
    fn closed(&self, account: &str, protocol: AppProtocol, otherwise: &Arc<str>) -> MeshRule {
        if self.targets.of(account).next().is_none() {
            return MeshRule::Deny(otherwise.clone());
        }
        let hint =
            if protocol.is_opaque() { "; bytes that are not HTTP need one with a TCPRoute" } else { "" };
        let reason = format!(
            "permissive mode is off and no TrafficTarget of service account {account} is about the port{hint}"
        );
        MeshRule::Deny(reason.into())
    }
}
