//! Pods, by name and by address.
//!
//! Pods without a sidecar are kept, too: an endpoint counts only as long as its Pod has the address. `spec` of such a
//! Pod is not kept (`object/stored/lean.rs`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::addresses::Addresses;
use super::part::{Effect, Indexed, in_namespace};
use crate::object::ObjectName;

/// The Pods by name, and their names by address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pods {
    by_name: BTreeMap<ObjectName, Arc<Pod>>,
    by_address: Addresses,
}

impl Pods {
    /// Every Pod.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.by_name.iter()
    }

    /// The Pods that have, or had, this address.
    pub(crate) fn at(&self, ip: IpAddr) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.by_address.of(ip).filter_map(|name| self.by_name.get_key_value(name))
    }

    /// Pods of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        in_namespace(&self.by_name, namespace)
    }
}

impl Indexed for Pod {
    type Part = Pods;

    fn get<'p>(part: &'p Pods, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut Pods, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        part.by_address.add(pod_addresses(&object), &name);
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut Pods, name: &ObjectName) {
        if let Some(pod) = part.by_name.remove(name) {
            part.by_address.remove(pod_addresses(&pod), name);
        }
    }

    fn effects(part: &Pods, name: &ObjectName) -> Vec<Effect> {
        let pod = part.by_name.get(name).into_iter();
        let addresses = pod.flat_map(|pod| pod_addresses(pod)).collect();
        vec![Effect::Pod(name.clone()), Effect::Addresses(addresses)]
    }
}

/// The addresses of a Pod, of both families. One may occur twice.
pub(crate) fn pod_addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let status = pod.status.iter();
    let all = status.clone().flat_map(|status| status.pod_ips.iter().flatten()).map(|ip| &ip.ip);
    let first = status.filter_map(|status| status.pod_ip.as_ref());
    all.chain(first).filter_map(|ip| ip.parse().ok())
}
