//! Where workloads and endpoints are, and which endpoints that leaves.
//!
//! On the wire each endpoint carries what the backend's policy needs of it, and most backends need nothing. An absent policy
//! means all endpoints, as in Kubernetes and from controllers without these fields. One that this version does not define
//! refuses the backend: it may leave endpoints out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::backend::{Endpoint, Locality, Topology, TopologyHints};

use super::{ConversionError, bad};
use crate::discovery as wire;

/// Absent names are empty, which no node and no zone is.
pub(super) fn locality_to_wire(locality: &Locality) -> wire::Locality {
    let name = |name: &Option<Arc<str>>| name.as_deref().unwrap_or_default().to_owned();
    wire::Locality { node: name(&locality.node), zone: name(&locality.zone) }
}

/// Never fails.
pub(super) fn locality_from_wire(locality: wire::Locality) -> Locality {
    Locality { node: name(locality.node), zone: name(locality.zone) }
}

/// Adds a topology to a backend's message, which has these endpoints in the same order.
pub(super) fn topology_to_wire(topology: &Topology, endpoints: &[Endpoint], message: &mut wire::Backend) {
    let endpoints = endpoints.iter().zip(&mut message.endpoints);
    match topology {
        Topology::Any => {}
        Topology::SameNode(nodes) => {
            message.internal_traffic_policy = wire::InternalTrafficPolicy::Local.into();
            for (endpoint, message) in endpoints {
                message.node = nodes.get(&endpoint.address).map(ToString::to_string).unwrap_or_default();
            }
        }
        Topology::Hints(hints) => {
            let texts = |names: &[Arc<str>]| names.iter().map(ToString::to_string).collect();
            for (endpoint, message) in endpoints {
                message.hints = hints.get(&endpoint.address).map(|hints| wire::TopologyHints {
                    nodes: texts(&hints.nodes),
                    zones: texts(&hints.zones),
                });
            }
        }
    }
}

/// The topology of a backend with these endpoints, whose messages are in the same order.
pub(super) fn topology_from_wire(
    policy: i32,
    endpoints: &[Endpoint],
    messages: Vec<EndpointPlace>,
) -> Result<Topology, ConversionError> {
    let addresses = endpoints.iter().map(|endpoint| endpoint.address);
    match wire::InternalTrafficPolicy::try_from(policy) {
        Ok(wire::InternalTrafficPolicy::Local) => {
            let nodes = addresses.zip(messages).filter_map(|(address, place)| Some((address, place.node?)));
            Ok(Topology::SameNode(nodes.collect()))
        }
        Ok(wire::InternalTrafficPolicy::Cluster) => {
            let hints: BTreeMap<SocketAddr, TopologyHints> = addresses
                .zip(messages)
                .filter_map(|(address, place)| Some((address, place.hints?)))
                .collect();
            Ok(if hints.is_empty() { Topology::Any } else { Topology::Hints(hints) })
        }
        Err(_) => Err(bad("internal_traffic_policy", format!("unknown value {policy}"))),
    }
}

/// What an endpoint's message says about its place.
pub(super) struct EndpointPlace {
    node: Option<Arc<str>>,
    hints: Option<TopologyHints>,
}

impl EndpointPlace {
    /// Takes it out of the message.
    pub(super) fn take(message: &mut wire::Endpoint) -> Self {
        let texts = |names: Vec<String>| names.into_iter().map(Into::into).collect();
        let hints = message.hints.take();
        Self {
            node: name(std::mem::take(&mut message.node)),
            hints: hints.map(|hints| TopologyHints { nodes: texts(hints.nodes), zones: texts(hints.zones) }),
        }
    }
}

fn name(text: String) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}
