//! The port numbers that IngressBackends may name, for each Service once.
//!
//! They are the numbers of a Service's `targetPort`s, those that named ones have at the Pods that it selects, and
//! those in its EndpointSlices. Only the status needs them, for its advice about a wrong number, and Pods are
//! searched once for all Services of a namespace.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use k8s_openapi::api::core::v1::Service;

use super::fronts::{Front, Fronts};
use super::ports::listed_ports;
use crate::index::Index;
use crate::object::ObjectName;
use crate::service::{NamedPorts, numbered_target, target_ports_of, tcp_ports};

/// The target ports of the Services of a namespace.
pub(crate) struct Targets<'i> {
    index: &'i Index,
    namespace: String,
    by_pods: OnceCell<HashMap<&'i ObjectName, BTreeSet<u16>>>,
    known: RefCell<HashMap<&'i ObjectName, Rc<Vec<u16>>>>,
}

impl<'i> Targets<'i> {
    /// Nothing is computed before the first question about a Service.
    pub(crate) fn new(index: &'i Index, namespace: &str) -> Self {
        Self { index, namespace: namespace.to_owned(), by_pods: OnceCell::new(), known: RefCell::default() }
    }

    /// The numbers that an IngressBackend may name for a Service, sorted. Empty if the Service does not exist.
    pub(crate) fn of(&self, name: &ObjectName) -> Rc<Vec<u16>> {
        let Some((name, service)) = self.index.service_entry(name) else { return Rc::default() };
        if let Some(known) = self.known.borrow().get(name) {
            return known.clone();
        }
        let mut ports: BTreeSet<u16> = tcp_ports(service).filter_map(numbered_target).collect();
        ports.extend(self.by_pods().get(name).into_iter().flatten());
        ports.extend(listed_ports(self.index, name, service).into_keys());
        let ports = Rc::new(ports.into_iter().collect::<Vec<_>>());
        self.known.borrow_mut().insert(name, ports.clone());
        ports
    }

    /// Whether a Service selects any Pod.
    pub(crate) fn has_pods(&self, name: &ObjectName) -> bool {
        self.by_pods().contains_key(name)
    }

    /// What the named target ports of each Service are at the Pods that it selects.
    fn by_pods(&self) -> &HashMap<&'i ObjectName, BTreeSet<u16>> {
        self.by_pods.get_or_init(|| {
            let fronts = Fronts::new(self.index, &self.namespace);
            let mut found: HashMap<&ObjectName, BTreeSet<u16>> = HashMap::new();
            for (_, pod) in self.index.pods_in(&self.namespace) {
                let named = NamedPorts::of(pod);
                for Front { name, service } in fronts.selecting(pod) {
                    let ports = found.entry(name).or_default();
                    if !named.is_empty() && has_named_target(service) {
                        ports.extend(target_ports_of(service, &named).map(|port| port.number));
                    }
                }
            }
            found
        })
    }
}

/// Whether any TCP port's `targetPort` is a name, whose number depends on the Pod.
fn has_named_target(service: &Service) -> bool {
    tcp_ports(service).any(|port| numbered_target(port).is_none())
}
