//! EndpointSlices, by the Service and the Pods that they refer to.
//!
//! A Service may have many slices (Kubernetes fills them up to 100 endpoints by default), and a change of a few
//! endpoints rewrites one of them. So slices are kept as they are and joined by their readers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::addresses::Addresses;
use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::ObjectName;
use crate::service::SERVICE_NAME_LABEL;

/// The slices by their own names, with references from the Service, from each Pod and from addresses without a Pod to
/// them.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointSlices {
    by_name: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    of_service: ReferenceIndex,
    of_pod: ReferenceIndex,
    of_address: Addresses,
}

impl EndpointSlices {
    /// A Service's EndpointSlices.
    pub(crate) fn of_service(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.of_service.to(service).filter_map(|name| self.by_name.get(name))
    }

    /// The EndpointSlices that refer to a Pod.
    pub(crate) fn of_pod<'p>(
        &'p self,
        pod: &ObjectName,
    ) -> impl Iterator<Item = &'p Arc<EndpointSlice>> + use<'p> {
        self.of_pod.to(pod).filter_map(|name| self.by_name.get(name))
    }

    /// The EndpointSlices that list an address without a reference to a Pod.
    pub(crate) fn of_address(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.of_address.of(ip).filter_map(|name| self.by_name.get(name))
    }

    /// The EndpointSlices of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        in_namespace(&self.by_name, namespace).map(|(_, slice)| slice)
    }
}

impl Indexed for EndpointSlice {
    type Part = EndpointSlices;

    fn get<'p>(part: &'p EndpointSlices, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut EndpointSlices, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        if let Some(service) = service_of(&object) {
            part.of_service.add(service, &name);
        }
        for pod in pods_of(&object) {
            part.of_pod.add(pod, &name);
        }
        part.of_address.add(addresses_of(&object), &name);
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut EndpointSlices, name: &ObjectName) {
        let Some(slice) = part.by_name.remove(name) else { return };
        if let Some(service) = service_of(&slice) {
            part.of_service.remove(&service, name);
        }
        for pod in pods_of(&slice) {
            part.of_pod.remove(&pod, name);
        }
        part.of_address.remove(addresses_of(&slice), name);
    }

    fn effects(part: &EndpointSlices, name: &ObjectName) -> Vec<Effect> {
        let slice = part.by_name.get(name);
        slice.and_then(|slice| service_of(slice)).map(Effect::Service).into_iter().collect()
    }
}

/// The Pod that an endpoint of a slice in this namespace refers to.
pub(crate) fn pod_of(namespace: &str, endpoint: &Endpoint) -> Option<ObjectName> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let namespace =
        target.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(namespace);
    Some(ObjectName::new(namespace, target.name.as_deref()?))
}

/// The Pods that a slice refers to.
pub(crate) fn pods_of(slice: &EndpointSlice) -> impl Iterator<Item = ObjectName> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    slice.endpoints.iter().flatten().filter_map(move |endpoint| pod_of(namespace, endpoint))
}

/// The addresses that a slice lists without a reference to a Pod.
fn addresses_of(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let endpoints = slice.endpoints.iter().flatten();
    let alone = endpoints.filter(move |endpoint| pod_of(namespace, endpoint).is_none());
    alone.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok())
}

/// The Service whose endpoints a slice holds.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectName::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service.as_str()))
}
