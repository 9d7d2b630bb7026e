//! Which endpoints of a backend a client uses, by where both run.
//!
//! The rules are kube-proxy's for a Service's cluster IP (Kubernetes, `pkg/proxy/topology.go`). `trafficDistribution` needs
//! none of its own: Kubernetes' EndpointSlice controller turns it into hints, and kube-proxy reads only these. One thing
//! differs: kube-proxy never leaves the endpoints that the hints of a client lead to; here the others are left for when
//! none of these can be reached, because hints are a preference and a slice is late by seconds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::endpoint::Endpoint;

/// Where a workload runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Locality {
    /// The name of its node. `None` outside Kubernetes, as in a folder; all workloads without a node count as being on the same
    /// one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Arc<str>>,
    /// The node's zone, its label `topology.kubernetes.io/zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Arc<str>>,
}

/// How the endpoints that a client uses depend on where it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Topology {
    /// Not at all.
    #[default]
    Any,
    /// `internalTrafficPolicy: Local`: clients use the endpoints on their own node and no others. The node of each
    /// endpoint that has one.
    SameNode(BTreeMap<SocketAddr, Arc<str>>),
    /// EndpointSlice hints: the hints of each endpoint that has any.
    Hints(BTreeMap<SocketAddr, TopologyHints>),
}

/// Which clients an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopologyHints {
    /// Those on these nodes (`hints.forNodes`).
    pub nodes: Vec<Arc<str>>,
    /// Those in these zones (`hints.forZones`).
    pub zones: Vec<Arc<str>>,
}

/// The endpoints that a client uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsableEndpoints<'b> {
    /// Those that it uses first.
    pub preferred: Vec<&'b Endpoint>,
    /// Those that it uses while none of the preferred ones can be reached.
    pub others: Vec<&'b Endpoint>,
}

#[derive(Clone, Copy)]
enum HintKind {
    Node,
    Zone,
}

impl Topology {
    /// The endpoints for a client. `None`: where it runs is not known, which is not any node.
    pub fn usable<'b>(&self, endpoints: &'b [Endpoint], client: Option<&Locality>) -> UsableEndpoints<'b> {
        let (preferred, others) = match self {
            Self::Any => (endpoints.iter().collect(), Vec::new()),
            Self::SameNode(nodes) => {
                let is_local = |endpoint: &&Endpoint| {
                    client.is_some_and(|client| client.node.as_ref() == nodes.get(&endpoint.address))
                };
                (endpoints.iter().filter(is_local).collect(), Vec::new())
            }
            Self::Hints(hints) => {
                let [ipv4, ipv6] =
                    [true, false].map(|is_ipv4| deciding_hint(hints, endpoints, is_ipv4, client?));
                endpoints.iter().partition(|endpoint| {
                    let hint = if endpoint.address.is_ipv4() { ipv4 } else { ipv6 };
                    hint.is_none_or(|(kind, place)| of(hints, endpoint, kind).contains(place))
                })
            }
        };
        UsableEndpoints { preferred, others }
    }

    /// The name of the rule that leaves endpoints out or prefers some.
    pub fn rule(&self) -> Option<&'static str> {
        match self {
            Self::Any => None,
            Self::SameNode(_) => Some("internalTrafficPolicy: Local"),
            Self::Hints(_) => Some("EndpointSlice hints"),
        }
    }
}

/// The hints that decide for a client: those for nodes, else those for zones, of which every endpoint of the family must
/// have one, and one of them the client's. `None`: all endpoints are for it.
fn deciding_hint<'c>(
    hints: &BTreeMap<SocketAddr, TopologyHints>,
    endpoints: &[Endpoint],
    is_ipv4: bool,
    client: &'c Locality,
) -> Option<(HintKind, &'c Arc<str>)> {
    let places = [(HintKind::Node, &client.node), (HintKind::Zone, &client.zone)];
    places.into_iter().filter_map(|(kind, place)| Some((kind, place.as_ref()?))).find(|(kind, place)| {
        let mut of_family = endpoints
            .iter()
            .filter(|endpoint| endpoint.address.is_ipv4() == is_ipv4)
            .map(|endpoint| of(hints, endpoint, *kind));
        of_family.clone().all(|places| !places.is_empty()) && of_family.any(|places| places.contains(place))
    })
}

fn of<'h>(
    hints: &'h BTreeMap<SocketAddr, TopologyHints>,
    endpoint: &Endpoint,
    kind: HintKind,
) -> &'h [Arc<str>] {
    match (hints.get(&endpoint.address), kind) {
        (Some(hints), HintKind::Node) => &hints.nodes,
        (Some(hints), HintKind::Zone) => &hints.zones,
        (None, _) => &[],
    }
}

#[cfg(test)]
mod tests;
