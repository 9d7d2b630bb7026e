//! Every object that the controller knows, found by what refers to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use tidegate_crds::mesh_config::MESH_CONFIG_NAME;
use tidegate_crds::{IngressBackend, MeshConfig, MeshConfigSpec};

use crate::mesh::Mesh;
use crate::object::{Kind, Object, ObjectKey, ObjectName};
use crate::service::selects;
use crate::source::Change;
use crate::source::folder::has_ended;
use crate::unreadable::Unreadable;

/// The label by which an EndpointSlice says whose endpoints it holds.
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Objects by name. ServiceAccounts decide about nothing by themselves and are not kept; of Namespaces only whether
/// they belong to the mesh.
#[derive(Clone, Debug, Default)]
pub struct Index {
    mesh: Mesh,
    pods: BTreeMap<ObjectName, Arc<Pod>>,
    services: BTreeMap<ObjectName, Arc<Service>>,
    /// By each of its addresses.
    pods_at: Addresses,
    /// By each of its cluster IPs.
    services_at: Addresses,
    slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    slices_of_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// The EndpointSlices that list a Pod.
    slices_of_pod: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    ingress_backends: BTreeMap<ObjectName, Arc<IngressBackend>>,
    /// The IngressBackends that name a Service as a source.
    policies_from: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    mesh_configs: BTreeMap<ObjectName, Arc<MeshConfig>>,
    /// IngressBackends and MeshConfigs; none is among the readable ones.
    unreadable: BTreeMap<ObjectKey, Arc<Unreadable>>,
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
    /// The status of the IngressBackends of these namespaces.
    pub(crate) policies: BTreeSet<Arc<str>>,
    /// What workloads find when they dial these: cluster IPs and addresses of Pods.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// How many IngressBackends of a namespace were looked through for the Pods behind them.
    looked_through: BTreeMap<Arc<str>, usize>,
}

/// IngressBackends of a namespace that are looked through for the Pods behind them; after more, all of the namespace is
/// compiled anew, which then costs less.
const MOST_LOOKED_THROUGH: usize = 16;

impl Index {
    /// An empty index of a cluster, in which namespaces belong to the mesh by their labels; without a name, of a
    /// folder, in which all of them do.
    pub fn for_mesh(name: Option<&str>) -> Self {
        Self { mesh: Mesh::new(name), ..Self::default() }
    }

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
            Change::Apply { object: Object::Namespace(namespace), .. } => {
                if self.mesh.apply(&namespace) {
                    touched.namespaces.insert(namespace.metadata.name.as_deref().unwrap_or_default().into());
                }
            }
            Change::Apply { object, origin } => {
                let key = object.key();
                if origin.is_none() && self.holds(&key.name, &object) {
                    return;
                }
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

    /// Why nothing that is in this namespace counts; nothing if it belongs to the mesh.
    pub(crate) fn outside_mesh(&self, namespace: &str) -> Option<String> {
        self.mesh.outside(namespace)
    }

    /// Whether the objects are a cluster's, on which others start the sidecars.
    pub(crate) fn is_of_cluster(&self) -> bool {
        self.mesh.knows_every_pod()
    }

    /// Whether this namespace belongs to another mesh, whose controller speaks for it.
    pub(crate) fn is_of_another_mesh(&self, namespace: &str) -> bool {
        self.mesh.is_others(namespace)
    }

    /// A Service.
    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// A Service, with the name that the index itself has for it.
    pub(crate) fn service_entry(&self, name: &ObjectName) -> Option<(&ObjectName, &Arc<Service>)> {
        self.services.get_key_value(name)
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

    /// The EndpointSlices of a namespace.
    pub(crate) fn slices_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        in_namespace(&self.slices, namespace).map(|(_, slice)| slice)
    }

    /// The EndpointSlices that refer to a Pod.
    pub(crate) fn slices_of_pod<'i>(
        &'i self,
        pod: &ObjectName,
    ) -> impl Iterator<Item = &'i Arc<EndpointSlice>> + use<'i> {
        let names = self.slices_of_pod.get(pod).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name))
    }

    /// The addresses of a Service's ready endpoints, each once. An endpoint that does not say counts as ready, as
    /// Kubernetes wants it. One whose Pod has ended, or is not there any more, does not count whatever its
    /// EndpointSlice says: the address may be another Pod's by now. Nothing if there is no such Service.
    pub(crate) fn ready_addresses(&self, service: &ObjectName) -> BTreeSet<IpAddr> {
        if !self.services.contains_key(service) {
            return BTreeSet::new();
        }
        let endpoints = self.slices_of(service).flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        let current = ready.filter(|endpoint| self.is_current(&service.namespace, endpoint));
        // A name in a slice of type FQDN is no address and does not parse as one.
        current.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok()).collect()
    }

    /// Whether the Pod that an endpoint refers to still has its addresses. An endpoint that refers to none is its
    /// author's word.
    pub(crate) fn is_current(&self, namespace: &str, endpoint: &Endpoint) -> bool {
        let Some(target) = endpoint.target_ref.as_ref().filter(|_| self.mesh.knows_every_pod()) else {
            return true;
        };
        let Some(name) = pod_of(namespace, endpoint) else { return true };
        let Some(pod) = self.pods.get(&name) else { return false };
        let is_same = target.uid.is_none() || target.uid == pod.metadata.uid;
        let status = pod.status.as_ref();
        let ip = status.and_then(|status| status.pod_ip.as_ref());
        let ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| &ip.ip);
        let has = |address: &String| ip == Some(address) || ips.clone().any(|ip| ip == address);
        is_same && !has_ended(pod) && endpoint.addresses.iter().all(has)
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

    /// Every IngressBackend and MeshConfig that cannot be read.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Unreadable>)> {
        self.unreadable.iter()
    }

    /// IngressBackends of a namespace that cannot be read.
    pub(crate) fn unreadable_backends_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Unreadable>> {
        let is_there =
            move |key: &ObjectKey| key.kind == Kind::IngressBackend && *key.name.namespace == *namespace;
        self.unreadable.iter().filter(move |(key, _)| is_there(key)).map(|(_, object)| object)
    }

    /// The MeshConfig that would be in force if it could be read.
    pub(crate) fn unreadable_mesh_config(&self) -> Option<&Arc<Unreadable>> {
        let mut configs = self.unreadable.iter().filter(|(key, _)| key.kind == Kind::MeshConfig);
        configs.find(|(key, _)| &*key.name.name == MESH_CONFIG_NAME).map(|(_, object)| object)
    }

    /// Where an object was read, such as `app.yaml:12`.
    pub(crate) fn origin(&self, kind: Kind, name: &ObjectName) -> Option<&Arc<str>> {
        self.origins.get(&ObjectKey { kind, name: name.clone() })
    }

    /// Whether an object is here already, the same in everything that is kept.
    fn holds(&self, name: &ObjectName, object: &Object) -> bool {
        match object {
            Object::Pod(pod) => self.pods.get(name) == Some(pod),
            Object::Service(service) => self.services.get(name) == Some(service),
            Object::EndpointSlice(slice) => self.slices.get(name) == Some(slice),
            Object::IngressBackend(backend) => self.ingress_backends.get(name) == Some(backend),
            Object::MeshConfig(config) => self.mesh_configs.get(name) == Some(config),
            Object::Unreadable(unreadable) => self.unreadable.get(&object.key()) == Some(unreadable),
            Object::Namespace(_) | Object::ServiceAccount(_) => false,
        }
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
                for pod in pods_of(&slice) {
                    self.slices_of_pod.entry(pod).or_default().insert(name.clone());
                }
                self.slices.insert(name, slice);
            }
            Object::IngressBackend(backend) => {
                self.remove(&ObjectKey { kind: Kind::IngressBackend, name: name.clone() });
                for service in sources_of(&backend) {
                    self.policies_from.entry(service).or_default().insert(name.clone());
                }
                self.ingress_backends.insert(name, backend);
            }
            Object::MeshConfig(config) => {
                self.remove(&ObjectKey { kind: Kind::MeshConfig, name: name.clone() });
                self.mesh_configs.insert(name, config);
            }
            Object::Unreadable(object) => {
                let key = ObjectKey { kind: object.kind, name };
                self.remove(&key);
                self.unreadable.insert(key, object);
            }
            Object::Namespace(_) | Object::ServiceAccount(_) => {}
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.unreadable.remove(key);
        match key.kind {
            Kind::Pod => self.remove_pod(&key.name),
            Kind::Service => self.remove_service(&key.name),
            Kind::EndpointSlice => self.remove_slice(&key.name),
            Kind::IngressBackend => {
                if let Some(backend) = self.ingress_backends.remove(&key.name) {
                    for service in sources_of(&backend) {
                        forget(&mut self.policies_from, &service, &key.name);
                    }
                }
            }
            Kind::MeshConfig => drop(self.mesh_configs.remove(&key.name)),
            Kind::Namespace => self.mesh.remove(&key.name.name),
            Kind::ServiceAccount => {}
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
        let Some(slice) = self.slices.remove(name) else { return };
        if let Some(service) = service_of(&slice) {
            forget(&mut self.slices_of_service, &service, name);
        }
        for pod in pods_of(&slice) {
            forget(&mut self.slices_of_pod, &pod, name);
        }
    }

    /// Notes what an object, as it is now, has an effect on.
    fn touch(&self, key: &ObjectKey, touched: &mut Touched) {
        match key.kind {
            Kind::Pod => {
                touched.pods.insert(key.name.clone());
                self.touch_sources_on(&key.name, touched);
                touched.addresses.extend(self.pods.get(&key.name).into_iter().flat_map(|pod| pod_ips(pod)));
            }
            Kind::Service => self.touch_service(&key.name, touched),
            Kind::EndpointSlice => {
                if let Some(service) = self.slices.get(&key.name).and_then(|slice| service_of(slice)) {
                    self.touch_service(&service, touched);
                }
            }
            Kind::IngressBackend => {
                touched.policies.insert(key.name.namespace.clone());
                if let Some(backend) = self.ingress_backends.get(&key.name) {
                    self.touch_policy(&key.name, backend, touched);
                }
                if self.unreadable.contains_key(key) {
                    // It may be about any of them.
                    touched.namespaces.insert(key.name.namespace.clone());
                }
            }
            Kind::MeshConfig => touched.all = true,
            Kind::Namespace => {
                touched.namespaces.insert(key.name.name.clone());
            }
            Kind::ServiceAccount => {}
        }
    }

    /// A Pod matters to whoever lets it in as an endpoint of a source: its address is good only as long as it is.
    fn touch_sources_on(&self, pod: &ObjectName, touched: &mut Touched) {
        if !self.mesh.knows_every_pod() {
            return;
        }
        let services = self.slices_of_pod(pod).filter_map(|slice| service_of(slice));
        for service in services.collect::<BTreeSet<_>>() {
            self.touch_source(&service, touched);
        }
    }

    /// A Service matters where its Pods are and wherever an IngressBackend names it as a source.
    fn touch_service(&self, service: &ObjectName, touched: &mut Touched) {
        touched.namespaces.insert(service.namespace.clone());
        let addresses = self.services.get(service).into_iter().flat_map(|service| cluster_ips(service));
        touched.addresses.extend(addresses);
        self.touch_source(service, touched);
    }

    fn touch_source(&self, service: &ObjectName, touched: &mut Touched) {
        for name in self.policies_from.get(service).into_iter().flatten() {
            if let Some(backend) = self.ingress_backends.get(name) {
                touched.policies.insert(name.namespace.clone());
                self.touch_policy(name, backend, touched);
            }
        }
    }

    /// An IngressBackend matters to the Pods behind the Services that it opens.
    fn touch_policy(&self, name: &ObjectName, backend: &IngressBackend, touched: &mut Touched) {
        if touched.namespaces.contains(&name.namespace) {
            return;
        }
        let looked_through = touched.looked_through.entry(name.namespace.clone()).or_default();
        *looked_through += 1;
        if *looked_through > MOST_LOOKED_THROUGH {
            touched.namespaces.insert(name.namespace.clone());
            return;
        }
        let services: BTreeSet<&str> = backend.spec.backends.iter().map(|backend| &*backend.name).collect();
        for service in services {
            let service_name = ObjectName::new(name.namespace.clone(), service);
            let Some(service) = self.services.get(&service_name) else { continue };
            for slice in self.slices_of(&service_name) {
                if slice.endpoints.iter().flatten().any(|endpoint| endpoint.target_ref.is_none()) {
                    // By address, it may be any Pod.
                    touched.namespaces.insert(name.namespace.clone());
                }
                touched.pods.extend(pods_of(slice));
            }
            let selected = self.pods_in(&name.namespace).filter(|(_, pod)| selects(service, pod));
            touched.pods.extend(selected.map(|(name, _)| name.clone()));
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

fn forget(referring: &mut BTreeMap<ObjectName, BTreeSet<ObjectName>>, to: &ObjectName, name: &ObjectName) {
    if let Some(names) = referring.get_mut(to) {
        names.remove(name);
        if names.is_empty() {
            referring.remove(to);
        }
    }
}

/// The Services that an IngressBackend names as sources.
fn sources_of(backend: &IngressBackend) -> BTreeSet<ObjectName> {
    let services = backend.spec.sources.iter().filter(|source| source.kind == "Service");
    services
        .filter_map(|source| Some(ObjectName::new(source.namespace.as_deref()?, source.name.as_str())))
        .collect()
}

/// The Pod that an endpoint of a slice in this namespace refers to.
pub(crate) fn pod_of(namespace: &str, endpoint: &Endpoint) -> Option<ObjectName> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let namespace =
        target.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(namespace);
    Some(ObjectName::new(namespace, target.name.as_deref()?))
}

fn pods_of(slice: &EndpointSlice) -> impl Iterator<Item = ObjectName> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    slice.endpoints.iter().flatten().filter_map(move |endpoint| pod_of(namespace, endpoint))
}

/// The Service whose endpoints a slice holds.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectName::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service.as_str()))
}
