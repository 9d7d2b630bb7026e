//! Services, by name and by cluster IP.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;

use super::addresses::Addresses;
use super::part::{Effect, Indexed, in_namespace};
use crate::object::ObjectName;

/// The Services by name, and their names by cluster IP. `None` as a cluster IP marks a headless Service and is not an
/// address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    by_name: BTreeMap<ObjectName, Arc<Service>>,
    by_address: Addresses,
}

impl Services {
    /// A Service, with the shared copy of its name.
    pub(crate) fn entry(&self, name: &ObjectName) -> Option<(&ObjectName, &Arc<Service>)> {
        self.by_name.get_key_value(name)
    }

    /// The Service with this cluster IP. Kubernetes gives an address to one Service at a time; of several, the first.
    pub(crate) fn at(&self, ip: IpAddr) -> Option<(&ObjectName, &Arc<Service>)> {
        self.by_address.of(ip).find_map(|name| self.by_name.get_key_value(name))
    }

    /// Services of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Service>)> {
        in_namespace(&self.by_name, namespace)
    }
}

impl Indexed for Service {
    type Part = Services;

    fn get<'p>(part: &'p Services, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut Services, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        part.by_address.add(cluster_ips(&object), &name);
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut Services, name: &ObjectName) {
        if let Some(service) = part.by_name.remove(name) {
            part.by_address.remove(cluster_ips(&service), name);
        }
    }

    fn effects(_: &Services, name: &ObjectName) -> Vec<Effect> {
        vec![Effect::Service(name.clone()), Effect::RoutedService(name.clone())]
    }
}

/// The cluster IPs of a Service, of both families. A headless Service has none.
pub(super) fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.iter();
    let all = spec.clone().flat_map(|spec| spec.cluster_ips.iter().flatten());
    let first = spec.filter_map(|spec| spec.cluster_ip.as_ref());
    all.chain(first).filter_map(|ip| ip.parse().ok())
}
