//! Which Services stand in front of a Pod, found by what they refer to instead of by a look at each of them: a namespace
//! may have thousands of both.
//!
//! A Service stands in front of a Pod if its selector picks the Pod, or if one of its EndpointSlices lists it, as
//! those of a Service without a selector do. Selectors are found by their rarest term: a Pod has that label with that
//! value, or it is not selected, so most Services are never compared. Both bounds below cap what one namespace can
//! make the controller compute for one Pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tidegate_core::policy::AppProtocol;

use super::ports::{is_endpoint, ports_of_slice};
use crate::index::{Index, service_of};
use crate::object::ObjectName;
use crate::service::{NamedPorts, selects, target_ports_of};

/// The most Services that are compared with one Pod. Those beyond, by name, are not in front of it.
const MOST_COMPARED: usize = 4096;
/// The most Services' ports in front of one workload, counted for each Service. Those beyond are refused.
const MOST_SERVICE_PORTS: usize = 4096;

/// The Services of a namespace.
pub(crate) struct Fronts<'i> {
    index: &'i Index,
    namespace: Arc<str>,
    /// By the rarest term of their selector, each sorted by name.
    by_term: HashMap<(&'i str, &'i str), Vec<Front<'i>>>,
    /// EndpointSlices by the addresses that they list without a reference to a Pod.
    by_address: HashMap<&'i str, Vec<&'i Arc<EndpointSlice>>>,
    /// The names of Services as policies show them.
    names: HashMap<&'i ObjectName, Arc<str>>,
}

/// A Service and its name.
#[derive(Clone, Copy)]
pub(super) struct Front<'i> {
    pub(super) name: &'i ObjectName,
    pub(super) service: &'i Service,
}

/// A Service in front of a Pod, and why it is.
struct ServiceMatch<'i> {
    service: &'i Service,
    is_selected: bool,
    slices: Vec<&'i EndpointSlice>,
}

/// The Pod's ports behind a Service.
pub(crate) struct Behind {
    /// `<namespace>/<name>` of the Service.
    pub(crate) service: Arc<str>,
    pub(crate) ports: BTreeMap<u16, AppProtocol>,
}

impl<'i> Fronts<'i> {
    /// Reads every Service and EndpointSlice of the namespace once; each Pod afterwards costs its own matches only.
    pub(crate) fn new(index: &'i Index, namespace: &str) -> Self {
        let mut fronts = Self {
            index,
            namespace: namespace.into(),
            by_term: HashMap::new(),
            by_address: HashMap::new(),
            names: HashMap::new(),
        };
        let mut frequency: HashMap<(&str, &str), usize> = HashMap::new();
        for (_, service) in index.services_in(namespace) {
            terms(service).for_each(|term| *frequency.entry(term).or_default() += 1);
        }
        for (name, service) in index.services_in(namespace) {
            fronts.names.insert(name, name.to_shared());
            if let Some(rarest) = terms(service).min_by_key(|term| frequency.get(term)) {
                fronts.by_term.entry(rarest).or_default().push(Front { name, service });
            }
        }
        for slice in index.slices_in(namespace) {
            let endpoints = slice.endpoints.iter().flatten();
            for endpoint in endpoints.filter(|endpoint| endpoint.target_ref.is_none()) {
                for address in &endpoint.addresses {
                    fronts.by_address.entry(address).or_default().push(slice);
                }
            }
        }
        fronts
    }

    /// What stands in front of a Pod, by its Services' selectors or by EndpointSlices that list it, sorted by Service and
    /// as far as there is room for their ports in one workload.
    pub(crate) fn of(&self, pod: &Pod) -> Vec<Behind> {
        let mut found: BTreeMap<&ObjectName, ServiceMatch<'_>> = BTreeMap::new();
        for Front { name, service } in self.selecting(pod) {
            found.entry(name).or_insert_with(|| ServiceMatch::of(service)).is_selected = true;
        }
        for slice in self.listing(pod) {
            let Some(service_name) = service_of(slice).filter(|name| name.namespace == self.namespace) else {
                continue;
            };
            let Some((name, service)) = self.index.service_entry(&service_name) else { continue };
            found.entry(name).or_insert_with(|| ServiceMatch::of(service)).slices.push(slice);
        }
        let named = NamedPorts::of(pod);
        let mut room = MOST_SERVICE_PORTS;
        let mut all = Vec::new();
        for (name, found) in found {
            let mut ports = found.ports(&named);
            while ports.len() > room {
                ports.pop_last();
            }
            if room == 0 {
                break;
            }
            room -= ports.len();
            if let Some(service) = self.names.get(name).filter(|_| !ports.is_empty()) {
                all.push(Behind { service: service.clone(), ports });
            }
        }
        all
    }

    /// The Services whose selectors pick a Pod.
    pub(super) fn selecting<'s>(&'s self, pod: &'s Pod) -> impl Iterator<Item = Front<'i>> + use<'s, 'i> {
        let labels = pod.metadata.labels.iter().flatten();
        let compared =
            labels.filter_map(|(label, value)| self.by_term.get(&(label.as_str(), value.as_str())));
        let compared = compared.flatten().take(MOST_COMPARED);
        compared.copied().filter(move |front| selects(front.service, pod))
    }

    /// The EndpointSlices that list a Pod, sorted by name within those that refer to it.
    fn listing<'s>(&'s self, pod: &'s Pod) -> impl Iterator<Item = &'i Arc<EndpointSlice>> + use<'s, 'i> {
        let name = ObjectName::of(&pod.metadata);
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
        let by_address =
            address.and_then(|address| self.by_address.get(address)).into_iter().flatten().copied();
        let all = self.index.slices_of_pod(&name).chain(by_address);
        all.filter(move |slice| slice.endpoints.iter().flatten().any(|endpoint| is_endpoint(pod, endpoint)))
    }
}

/// The terms of a Service's selector.
fn terms(service: &Service) -> impl Iterator<Item = (&str, &str)> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.into_iter().flatten().map(|(label, value)| (label.as_str(), value.as_str()))
}

impl<'i> ServiceMatch<'i> {
    /// A Service, before its selector and its slices are looked at.
    fn of(service: &'i Service) -> Self {
        Self { service, is_selected: false, slices: Vec::new() }
    }

    /// The Pod's ports behind this Service. Of the selector and of slices, the first to name a port decides its
    /// protocol.
    fn ports(&self, named: &NamedPorts<'_>) -> BTreeMap<u16, AppProtocol> {
        let mut ports = BTreeMap::new();
        if self.is_selected {
            for port in target_ports_of(self.service, named) {
                ports.entry(port.number).or_insert(port.protocol());
            }
        }
        for slice in &self.slices {
            for (number, protocol) in ports_of_slice(slice, self.service) {
                ports.entry(number).or_insert(protocol);
            }
        }
        ports
    }
}
