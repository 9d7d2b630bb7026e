//! Every object that the controller knows, found by what refers to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tidegate_crds::mesh_config::MESH_CONFIG_NAME;
use tidegate_crds::{IngressBackend, MeshConfig, MeshConfigSpec};

use crate::object::{Kind, Object, ObjectKey, ObjectName};
use crate::source::Change;

/// The label by which an EndpointSlice says whose endpoints it holds.
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Objects by name. Namespaces and ServiceAccounts decide about nothing by themselves and are not kept.
#[derive(Clone, Debug, Default)]
pub struct Index {
    pods: BTreeMap<ObjectName, Arc<Pod>>,
    services: BTreeMap<ObjectName, Arc<Service>>,
    /// By each of its addresses.
    pods_at: Addresses,
    /// By each of its cluster IPs.
    services_at: Addresses,
    slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    slices_of_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    ingress_backends: BTreeMap<ObjectName, Arc<IngressBackend>>,
    mesh_configs: BTreeMap<ObjectName, Arc<MeshConfig>>,
    origins: BTreeMap<ObjectKey, Arc<str>>,
}

/// Who has which address.
#[derive(Clone, Debug, Default)]
struct Addresses(BTreeMap<IpAddr, BTreeSet<ObjectName>>);

/// What a change may have an effect on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Everything.
    pub(crate) all: bool,
    /// Every workload and every IngressBackend of these namespaces.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// These workloads, and the status of the IngressBackends in their namespaces.
    pub(crate) pods: BTreeSet<ObjectName>,
    /// What workloads find when they dial these: cluster IPs and addresses of Pods.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl Index {
    /// An index of everything that these changes report.
    pub fn of(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut index = Self::default();
        for change in changes {
            index.apply(change, &mut Touched::default());
        }
        index
    }

    /// Takes over a change and notes what it may have an effect on.
    pub(crate) fn apply(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Apply { object, origin } => {
                let key = object.key();
                self.touch(&key, touched);
                match origin {
                    Some(origin) => self.origins.insert(key.clone(), origin),
                    None => self.origins.remove(&key),
                };
                self.insert(key.name.clone(), object);
                self.touch(&key, touched);
            }
            Change::Delete(key) => {
                self.touch(&key, touched);
                self.origins.remove(&key);
                self.remove(&key);
            }
        }
    }

    /// A Service.
    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// A Pod.
    pub(crate) fn pod(&self, name: &ObjectName) -> Option<&Arc<Pod>> {
        self.pods.get(name)
    }

    /// Every Pod.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.pods.iter()
    }

    /// The Service that has this cluster IP. Kubernetes gives an address to one at a time; of several, the first.
    pub(crate) fn service_at(&self, ip: IpAddr) -> Option<(&ObjectName, &Arc<Service>)> {
        self.services_at.of(ip).find_map(|name| self.services.get_key_value(name))
    }

    /// The Pods that have, or had, this address.
    pub(crate) fn pods_at(&self, ip: IpAddr) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.pods_at.of(ip).filter_map(|name| self.pods.get_key_value(name))
    }

    /// Pods of a namespace.
    pub(crate) fn pods_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        in_namespace(&self.pods, namespace)
    }

    /// Services of a namespace.
    pub(crate) fn services_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Service>)> {
        in_namespace(&self.services, namespace)
    }

    /// Every IngressBackend.
    pub(crate) fn ingress_backends(&self) -> impl Iterator<Item = (&ObjectName, &Arc<IngressBackend>)> {
        self.ingress_backends.iter()
    }

    /// IngressBackends of a namespace.
    pub(crate) fn ingress_backends_in(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<IngressBackend>)> {
        in_namespace(&self.ingress_backends, namespace)
    }

    /// A Service's EndpointSlices.
    pub(crate) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let names = self.slices_of_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name))
    }

    /// The addresses of a Service's ready endpoints, each once. An endpoint that does not say counts as ready, as
    /// Kubernetes wants it. Nothing if there is no such Service.
    pub(crate) fn ready_addresses(&self, service: &ObjectName) -> BTreeSet<IpAddr> {
        if !self.services.contains_key(service) {
            return BTreeSet::new();
        }
        let endpoints = self.slices_of(service).flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        // A name in a slice of type FQDN is no address and does not parse as one.
        ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok()).collect()
    }

    /// Every MeshConfig; only one of them is in force.
    pub(crate) fn mesh_configs(&self) -> impl Iterator<Item = (&ObjectName, &Arc<MeshConfig>)> {
        self.mesh_configs.iter()
    }

    /// The MeshConfig in force: the one with the name that OSM gave it; of several, the first by namespace.
    pub(crate) fn mesh_config(&self) -> Option<(&ObjectName, &Arc<MeshConfig>)> {
        self.mesh_configs.iter().find(|(name, _)| &*name.name == MESH_CONFIG_NAME)
    }

    /// The settings in force.
    pub(crate) fn mesh_config_spec(&self) -> Option<&MeshConfigSpec> {
        self.mesh_config().map(|(_, config)| &config.spec)
    }

    /// Where an object was read, such as `app.yaml:12`.
    pub(crate) fn origin(&self, kind: Kind, name: &ObjectName) -> Option<&Arc<str>> {
        self.origins.get(&ObjectKey { kind, name: name.clone() })
    }

    fn insert(&mut self, name: ObjectName, object: Object) {
        match object {
            Object::Pod(pod) => {
                self.remove_pod(&name);
                self.pods_at.add(pod_ips(&pod), &name);
                self.pods.insert(name, pod);
            }
            Object::Service(service) => {
                self.remove_service(&name);
                self.services_at.add(cluster_ips(&service), &name);
                self.services.insert(name, service);
            }
            Object::EndpointSlice(slice) => {
                self.remove_slice(&name);
                if let Some(service) = service_of(&slice) {
                    self.slices_of_service.entry(service).or_default().insert(name.clone());
                }
                self.slices.insert(name, slice);
            }
            Object::IngressBackend(backend) => {
                self.ingress_backends.insert(name, backend);
            }
            Object::MeshConfig(config) => {
                self.mesh_configs.insert(name, config);
            }
            Object::Namespace(_) | Object::ServiceAccount(_) => {}
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Pod => self.remove_pod(&key.name),
            Kind::Service => self.remove_service(&key.name),
            Kind::EndpointSlice => self.remove_slice(&key.name),
            Kind::IngressBackend => drop(self.ingress_backends.remove(&key.name)),
            Kind::MeshConfig => drop(self.mesh_configs.remove(&key.name)),
            Kind::Namespace | Kind::ServiceAccount => {}
        }
    }

    fn remove_pod(&mut self, name: &ObjectName) {
        if let Some(pod) = self.pods.remove(name) {
            self.pods_at.remove(pod_ips(&pod), name);
        }
    }

    fn remove_service(&mut self, name: &ObjectName) {
        if let Some(service) = self.services.remove(name) {
            self.services_at.remove(cluster_ips(&service), name);
        }
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.slices.remove(name).as_deref().and_then(service_of) else { return };
        if let Some(slices) = self.slices_of_service.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices_of_service.remove(&service);
            }
        }
    }

    /// Notes what an object, as it is now, has an effect on.
    fn touch(&self, key: &ObjectKey, touched: &mut Touched) {
        match key.kind {
            Kind::Pod => {
                touched.pods.insert(key.name.clone());
                touched.addresses.extend(self.pods.get(&key.name).into_iter().flat_map(|pod| pod_ips(pod)));
            }
            Kind::Service => self.touch_service(&key.name, touched),
            Kind::EndpointSlice => {
                if let Some(service) = self.slices.get(&key.name).and_then(|slice| service_of(slice)) {
                    self.touch_service(&service, touched);
                }
            }
            Kind::IngressBackend => {
                touched.namespaces.insert(key.name.namespace.clone());
            }
            Kind::MeshConfig => touched.all = true,
            Kind::Namespace | Kind::ServiceAccount => {}
        }
    }

    /// A Service matters where its Pods are and wherever an IngressBackend names it as a source.
    fn touch_service(&self, service: &ObjectName, touched: &mut Touched) {
        touched.namespaces.insert(service.namespace.clone());
        touched
            .addresses
            .extend(self.services.get(service).into_iter().flat_map(|service| cluster_ips(service)));
        for (name, backend) in &self.ingress_backends {
            let names_it = backend.spec.sources.iter().any(|source| {
                source.kind == "Service"
                    && source.name == *service.name
                    && source.namespace.as_deref() == Some(&*service.namespace)
            });
            if names_it {
                touched.namespaces.insert(name.namespace.clone());
            }
        }
    }
}

impl Addresses {
    fn of(&self, ip: IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.0.get(&ip).into_iter().flatten()
    }

    fn add(&mut self, ips: impl Iterator<Item = IpAddr>, name: &ObjectName) {
        for ip in ips {
            self.0.entry(ip).or_default().insert(name.clone());
        }
    }

    fn remove(&mut self, ips: impl Iterator<Item = IpAddr>, name: &ObjectName) {
        for ip in ips {
            if let Some(names) = self.0.get_mut(&ip) {
                names.remove(name);
                if names.is_empty() {
                    self.0.remove(&ip);
                }
            }
        }
    }
}

/// The addresses of a Pod, of both families.
fn pod_ips(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let status = pod.status.iter();
    let all = status.clone().flat_map(|status| status.pod_ips.iter().flatten()).map(|ip| &ip.ip);
    let first = status.filter_map(|status| status.pod_ip.as_ref());
    all.chain(first).filter_map(|ip| ip.parse().ok())
}

/// The cluster IPs of a Service, of both families. A headless one has none.
fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.iter();
    let all = spec.clone().flat_map(|spec| spec.cluster_ips.iter().flatten());
    let first = spec.filter_map(|spec| spec.cluster_ip.as_ref());
    all.chain(first).filter_map(|ip| ip.parse().ok())
}

fn in_namespace<'m, T>(
    map: &'m BTreeMap<ObjectName, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'m ObjectName, &'m T)> {
    let namespace: Arc<str> = namespace.into();
    map.range(ObjectName::new(namespace.clone(), "")..)
        .take_while(move |(name, _)| name.namespace == namespace)
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectName::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service.as_str()))
}
