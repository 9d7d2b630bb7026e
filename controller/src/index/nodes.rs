//! Nodes, of which only the zones are kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::part::{Effect, Indexed};
use crate::object::{ObjectName, node};

/// The zone of each node that has one.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeZones(BTreeMap<Arc<str>, Arc<str>>);

impl NodeZones {
    /// The zone of a node.
    pub(crate) fn of(&self, node: &str) -> Option<&Arc<str>> {
        self.0.get(node)
    }
}

impl Indexed for Node {
    type Part = NodeZones;

    fn get<'p>(_: &'p NodeZones, _: &ObjectName) -> Option<&'p Arc<Self>> {
        None
    }

    fn insert(part: &mut NodeZones, name: ObjectName, object: Arc<Self>) {
        match node::zone(&object) {
            Some(zone) => drop(part.0.insert(name.name, zone.into())),
            None => Self::remove(part, &name),
        }
    }

    fn remove(part: &mut NodeZones, name: &ObjectName) {
        part.0.remove(&name.name);
    }

    fn effects(_: &NodeZones, name: &ObjectName) -> Vec<Effect> {
        vec![Effect::Node(name.name.clone())]
    }

    /// A node without a zone decides nothing.
    fn holds(part: &NodeZones, name: &ObjectName, object: &Self) -> bool {
        part.of(&name.name).map(|zone| &**zone) == node::zone(object)
    }
}
