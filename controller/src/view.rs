//! Policies as JSON, for people and for the command line.

use serde::Serialize;
use tidegate_core::policy::{
    ActiveIngressRule, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule, PortPolicy,
    RuleState,
};

/// A workload's inbound policy.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyView {
    ports: Vec<PortView>,
}

#[derive(Debug, Serialize)]
struct PortView {
    port: u16,
    protocol: String,
    services: Vec<String>,
    mesh: String,
    ingress: Vec<RuleView>,
}

#[derive(Debug, Serialize)]
struct RuleView {
    policy: String,
    backend: String,
    /// Why the rule admits nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    invalid: Option<String>,
    #[serde(flatten)]
    active: Option<ActiveView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ActiveView {
    sources: String,
    transport: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sni_hosts: Vec<String>,
    /// What the client's certificate must hold; absent where none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    principals: Option<Vec<String>>,
}

impl PolicyView {
    pub(crate) fn new(policy: &InboundPolicy) -> Self {
        Self { ports: policy.ports.iter().map(|(port, policy)| PortView::new(*port, policy)).collect() }
    }
}

impl PortView {
    fn new(port: u16, policy: &PortPolicy) -> Self {
        Self {
            port,
            protocol: policy.protocol.to_string(),
            services: policy.services.iter().map(ToString::to_string).collect(),
            mesh: match &policy.mesh {
                MeshRule::AnyPeer => "any peer".to_owned(),
                MeshRule::Deny(reason) => format!("nobody: {reason}"),
                MeshRule::Principals(names) => texts(names).join(", "),
            },
            ingress: policy.ingress.iter().map(RuleView::new).collect(),
        }
    }
}

impl RuleView {
    fn new(rule: &IngressRule) -> Self {
        let (invalid, active) = match &rule.state {
            RuleState::Invalid(reason) => (Some(reason.to_string()), None),
            RuleState::Active(active) => (None, Some(ActiveView::new(active))),
        };
        Self { policy: rule.policy.to_string(), backend: rule.backend.to_string(), invalid, active }
    }
}

impl ActiveView {
    fn new(rule: &ActiveIngressRule) -> Self {
        let (transport, sni_hosts, principals) = match &rule.transport {
            IngressTransport::Http => ("http", Vec::new(), None),
            IngressTransport::Tcp => ("tcp", Vec::new(), None),
            IngressTransport::Https { sni_hosts, client } => {
                let principals = match client {
                    ClientCheck::Skip => None,
                    ClientCheck::Principals(principals) => Some(texts(principals)),
                };
                ("https", texts(sni_hosts), principals)
            }
        };
        Self { sources: rule.sources.to_string(), transport, sni_hosts, principals }
    }
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}
