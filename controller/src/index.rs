//! Every object that the controller holds, found by name and by what refers to it.
//!
//! Each kind has a part in a file of its own that keeps its objects and returns what a change of one affects
//! ([`part::Indexed`]). Whatever involves several kinds is here.

mod addresses;
mod affected;
mod egress_proxies;
mod egresses;
mod endpoint_slices;
mod gateway_routes;
mod http_route_groups;
mod ingress_backends;
mod mesh_configs;
mod namespaces;
mod nodes;
mod part;
mod pods;
mod retries;
mod secrets;
mod service_accounts;
mod service_entries;
mod services;
mod tcp_routes;
mod traffic_splits;
mod traffic_targets;
mod upstream_traffic_settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use tidegate_core::contract::names::MESH_CONFIG_NAME;
use tidegate_crds::{
    Egress, EgressProxy, IngressBackend, MeshConfig, MeshConfigSpec, Retry, ServiceEntry, TCPRoute,
    TrafficSplit, TrafficTarget, UpstreamTrafficSetting,
};

use crate::object::kinds::kinds;
use crate::object::pod::{has_ended, service_account};
use crate::object::secret::BasicAuthSecret;
use crate::object::unreadable::Unreadable;
use crate::object::{Change, Kind, Object, ObjectKey, ObjectName};
use crate::proxy_health::ProxyHealth;
use crate::service::{is_headless, selects};

pub(crate) use affected::Affected;
pub(crate) use egress_proxies::secret_of;
pub(crate) use endpoint_slices::{pod_of, service_of};
pub(crate) use gateway_routes::{RouteObject, RouteWeight, backend_of, parent_of};
pub(crate) use http_route_groups::{CompiledMatch, NamedMatches, RouteGroup};
pub(crate) use pods::pod_addresses;
pub(crate) use retries::retried_services;
pub(crate) use service_entries::{PortHosts, ServiceEntries, service_named};
pub(crate) use traffic_splits::{backend_of as split_backend, root_of as split_root};
pub(crate) use upstream_traffic_settings::setting_service;

use egress_proxies::names_secret;
use endpoint_slices::pods_of;
use ingress_backends::opened;
use namespaces::MeshNamespaces;
use part::{Effect, Indexed};
use service_entries::ranges_of;
use services::cluster_ips;

/// Objects by name, and by what they refer to.
#[derive(Clone, Debug, Default)]
pub struct Index {
    parts: IndexParts,
    /// Custom resources that cannot be read. An object is either here or among those of its kind.
    unreadable: BTreeMap<ObjectKey, Arc<Unreadable>>,
    origins: BTreeMap<ObjectKey, Arc<str>>,
    /// Of the proxies of EgressProxies. Not an object.
    proxy_health: Arc<ProxyHealth>,
}

/// A kind whose objects the index keeps.
pub(crate) trait Kept: Indexed {
    /// The part of the index that keeps them.
    fn part(index: &Index) -> &Self::Part;
}

macro_rules! define_parts {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// The part of each kind.
        #[derive(Clone, Debug, Default)]
        struct IndexParts {
            $($part: <$type as Indexed>::Part,)*
        }

        $(impl Kept for $type {
            fn part(index: &Index) -> &Self::Part {
                &index.parts.$part
            }
        })*

        impl IndexParts {
            /// Whether the index already keeps an equal object.
            fn holds(&self, name: &ObjectName, object: &Object) -> bool {
                match object {
                    $(Object::$kind(object) => <$type as Indexed>::holds(&self.$part, name, object),)*
                    Object::Unreadable(_) => false,
                }
            }

            /// Keeps an object that was read.
            fn insert(&mut self, name: ObjectName, object: Object) {
                match object {
                    $(Object::$kind(object) => <$type as Indexed>::insert(&mut self.$part, name, object),)*
                    Object::Unreadable(_) => {}
                }
            }

            fn remove(&mut self, key: &ObjectKey) {
                match key.kind {
                    $(Kind::$kind => <$type as Indexed>::remove(&mut self.$part, &key.name),)*
                }
            }

            fn effects(&self, key: &ObjectKey) -> Vec<Effect> {
                match key.kind {
                    $(Kind::$kind => <$type as Indexed>::effects(&self.$part, &key.name),)*
                }
            }
        }
    };
}

kinds!(define_parts);

impl Index {
    /// An empty index. With a mesh name it is a cluster's, where labels decide which namespaces belong to the mesh;
    /// without one it is a folder's, where all of them do.
    pub(crate) fn for_mesh(name: Option<&str>) -> Self {
        Self {
            parts: IndexParts { namespaces: MeshNamespaces::new(name), ..IndexParts::default() },
            ..Self::default()
        }
    }

    /// An index of all these changes.
    pub fn of(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut index = Self::default();
        for change in changes {
            index.apply(change, &mut Affected::default());
        }
        index
    }

    /// Applies a change and notes what it may affect.
    pub(crate) fn apply(&mut self, change: Change, affected: &mut Affected) {
        match change {
            Change::Apply { object, origin } => {
                let key = object.key();
                if origin.is_none() && self.holds(&key, &object) {
                    return;
                }
                self.affect(&key, affected);
                match origin {
                    Some(origin) => self.origins.insert(key.clone(), origin),
                    None => self.origins.remove(&key),
                };
                self.insert(&key, object);
                self.affect(&key, affected);
            }
            Change::Delete(key) => {
                self.affect(&key, affected);
                self.origins.remove(&key);
                self.remove(&key);
            }
        }
    }

    /// Takes over the state of proxies, and notes which statuses it may affect.
    pub(crate) fn set_proxy_health(&mut self, health: Arc<ProxyHealth>, affected: &mut Affected) {
        affected.policies.extend(self.proxy_health.changed(&health).map(|name| name.namespace.clone()));
        self.proxy_health = health;
    }

    /// The state of the proxies of EgressProxies.
    pub(crate) fn proxy_health(&self) -> &ProxyHealth {
        &self.proxy_health
    }

    /// Why objects in this namespace have no effect; `None` if it belongs to the mesh.
    pub(crate) fn outside_mesh(&self, namespace: &str) -> Option<String> {
        self.parts.namespaces.outside(namespace)
    }

    /// Whether the objects come from a cluster, where sidecars are started by others.
    pub(crate) fn is_of_cluster(&self) -> bool {
        self.parts.namespaces.knows_every_pod()
    }

    /// Whether this namespace belongs to another mesh, whose controller reports on it.
    pub(crate) fn is_of_another_mesh(&self, namespace: &str) -> bool {
        self.parts.namespaces.is_others(namespace)
    }

    /// A Service.
    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        Service::get(&self.parts.services, name)
    }

    /// A Service, with the copy of its name that the index shares.
    pub(crate) fn service_entry(&self, name: &ObjectName) -> Option<(&ObjectName, &Arc<Service>)> {
        self.parts.services.entry(name)
    }

    /// A Pod.
    pub(crate) fn pod(&self, name: &ObjectName) -> Option<&Arc<Pod>> {
        Pod::get(&self.parts.pods, name)
    }

    /// Every Pod.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.parts.pods.iter()
    }

    /// The zone of a node, if it is known.
    pub(crate) fn zone(&self, node: &str) -> Option<&Arc<str>> {
        self.parts.nodes.of(node)
    }

    /// The Service with this cluster IP. Kubernetes gives an address to one Service at a time; of several, the first.
    pub(crate) fn service_at(&self, ip: IpAddr) -> Option<(&ObjectName, &Arc<Service>)> {
        self.parts.services.at(ip)
    }

    /// The Pods that have, or had, this address.
    pub(crate) fn pods_at(&self, ip: IpAddr) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.parts.pods.at(ip)
    }

    /// Pods of a namespace.
    pub(crate) fn pods_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.parts.pods.in_namespace(namespace)
    }

    /// Services of a namespace.
    pub(crate) fn services_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Service>)> {
        self.parts.services.in_namespace(namespace)
    }

    /// Every IngressBackend.
    pub(crate) fn ingress_backends(&self) -> impl Iterator<Item = (&ObjectName, &Arc<IngressBackend>)> {
        IngressBackend::part(self).iter()
    }

    /// IngressBackends of a namespace.
    pub(crate) fn ingress_backends_in(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<IngressBackend>)> {
        IngressBackend::part(self).in_namespace(namespace)
    }

    /// Every TrafficTarget.
    pub(crate) fn traffic_targets(&self) -> impl Iterator<Item = (&ObjectName, &Arc<TrafficTarget>)> {
        self.parts.traffic_targets.iter()
    }

    /// TrafficTargets of a namespace.
    pub(crate) fn traffic_targets_in(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<TrafficTarget>)> {
        self.parts.traffic_targets.in_namespace(namespace)
    }

    /// Every TrafficSplit.
    pub(crate) fn traffic_splits(&self) -> impl Iterator<Item = (&ObjectName, &Arc<TrafficSplit>)> {
        self.parts.traffic_splits.iter()
    }

    /// The TrafficSplits whose root is this Service.
    pub(crate) fn splits_of(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<TrafficSplit>)> {
        self.parts.traffic_splits.of_root(service)
    }

    /// Every HTTPRouteGroup.
    pub(crate) fn route_groups(&self) -> impl Iterator<Item = (&ObjectName, &RouteGroup)> {
        self.parts.http_route_groups.iter()
    }

    /// HTTPRouteGroups of a namespace.
    pub(crate) fn route_groups_in(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &RouteGroup)> {
        self.parts.http_route_groups.in_namespace(namespace)
    }

    /// An HTTPRouteGroup.
    pub(crate) fn route_group(&self, name: &ObjectName) -> Option<&RouteGroup> {
        self.parts.http_route_groups.of(name)
    }

    /// Every TCPRoute.
    pub(crate) fn tcp_routes(&self) -> impl Iterator<Item = (&ObjectName, &Arc<TCPRoute>)> {
        self.parts.tcp_routes.iter()
    }

    /// A TCPRoute.
    pub(crate) fn tcp_route(&self, name: &ObjectName) -> Option<&Arc<TCPRoute>> {
        TCPRoute::get(&self.parts.tcp_routes, name)
    }

    /// Every Egress.
    pub(crate) fn egresses(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Egress>)> {
        self.parts.egresses.iter()
    }

    /// The Egresses for the workloads of a service account.
    pub(crate) fn egresses_of(
        &self,
        account: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<Egress>)> {
        self.parts.egresses.of_account(account)
    }

    /// Whether an Egress refers to an object.
    pub(crate) fn is_of_egress(&self, kind: Kind, name: &ObjectName) -> bool {
        self.parts.egresses.referring_to(kind, name).next().is_some()
    }

    /// An UpstreamTrafficSetting.
    pub(crate) fn upstream_traffic_setting(&self, name: &ObjectName) -> Option<&Arc<UpstreamTrafficSetting>> {
        UpstreamTrafficSetting::get(&self.parts.upstream_traffic_settings, name)
    }

    /// Every UpstreamTrafficSetting.
    pub(crate) fn upstream_traffic_settings(
        &self,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<UpstreamTrafficSetting>)> {
        self.parts.upstream_traffic_settings.iter()
    }

    /// UpstreamTrafficSettings of a namespace.
    pub(crate) fn upstream_traffic_settings_in(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<UpstreamTrafficSetting>)> {
        self.parts.upstream_traffic_settings.in_namespace(namespace)
    }

    /// The UpstreamTrafficSettings about a Service.
    pub(crate) fn upstream_traffic_settings_about(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<UpstreamTrafficSetting>)> {
        self.parts.upstream_traffic_settings.about(service)
    }

    /// Every Retry.
    pub(crate) fn retries(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Retry>)> {
        self.parts.retries.iter()
    }

    /// Retries of a namespace.
    pub(crate) fn retries_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Retry>)> {
        self.parts.retries.in_namespace(namespace)
    }

    /// The ServiceEntries.
    pub(crate) fn service_entries(&self) -> &ServiceEntries {
        ServiceEntry::part(self)
    }

    /// Every EgressProxy.
    pub(crate) fn egress_proxies(&self) -> impl Iterator<Item = (&ObjectName, &Arc<EgressProxy>)> {
        self.parts.egress_proxies.iter()
    }

    /// EgressProxies of a namespace.
    pub(crate) fn egress_proxies_in(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<EgressProxy>)> {
        self.parts.egress_proxies.in_namespace(namespace)
    }

    /// The credentials in a Secret.
    pub(crate) fn credentials(&self, secret: &ObjectName) -> Option<&Arc<BasicAuthSecret>> {
        BasicAuthSecret::get(&self.parts.secrets, secret)
    }

    /// The namespace whose EgressProxies are for the whole mesh: that of the MeshConfig.
    pub(crate) fn root_namespace(&self) -> Option<Arc<str>> {
        let unreadable = || self.unreadable_mesh_config().map(|config| config.name().namespace);
        self.mesh_config().map(|(name, _)| name.namespace.clone()).or_else(unreadable)
    }

    /// Every route of Gateway API.
    pub(crate) fn routes(&self) -> impl Iterator<Item = RouteObject<'_>> {
        let IndexParts { http_routes, grpc_routes, tls_routes, gateway_tcp_routes, .. } = &self.parts;
        let http = http_routes.iter().chain(grpc_routes.iter());
        http.chain(tls_routes.iter()).chain(gateway_tcp_routes.iter())
    }

    /// The routes of this name, at most one of each kind.
    pub(crate) fn routes_named(&self, name: &ObjectName) -> impl Iterator<Item = RouteObject<'_>> {
        let IndexParts { http_routes, grpc_routes, tls_routes, gateway_tcp_routes, .. } = &self.parts;
        let http = [http_routes.named(name), grpc_routes.named(name)];
        http.into_iter().chain([tls_routes.named(name), gateway_tcp_routes.named(name)]).flatten()
    }

    /// The routes that name a Service as a parent.
    pub(crate) fn routes_of(&self, service: &ObjectName) -> impl Iterator<Item = RouteObject<'_>> {
        let IndexParts { http_routes, grpc_routes, tls_routes, gateway_tcp_routes, .. } = &self.parts;
        let http = http_routes.with_parent(service).chain(grpc_routes.with_parent(service));
        http.chain(tls_routes.with_parent(service)).chain(gateway_tcp_routes.with_parent(service))
    }

    /// A Service's EndpointSlices.
    pub(crate) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.parts.endpoint_slices.of_service(service)
    }

    /// The EndpointSlices of a namespace.
    pub(crate) fn slices_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.parts.endpoint_slices.in_namespace(namespace)
    }

    /// The EndpointSlices that refer to a Pod.
    pub(crate) fn slices_of_pod<'i>(
        &'i self,
        pod: &ObjectName,
    ) -> impl Iterator<Item = &'i Arc<EndpointSlice>> + use<'i> {
        self.parts.endpoint_slices.of_pod(pod)
    }

    /// Whether an EndpointSlice lists this address without a Pod.
    pub(crate) fn is_endpoint(&self, ip: IpAddr) -> bool {
        self.parts.endpoint_slices.of_address(ip).next().is_some()
    }

    /// Whether an EndpointSlice of a headless Service lists this address, of one of these Pods or without a Pod: clients
    /// get it from the cluster's DNS.
    pub(crate) fn is_headless_endpoint<'p>(
        &self,
        ip: IpAddr,
        pods: impl IntoIterator<Item = &'p ObjectName>,
    ) -> bool {
        let of_pods = pods.into_iter().flat_map(|pod| self.slices_of_pod(pod));
        let mut slices = of_pods.chain(self.parts.endpoint_slices.of_address(ip));
        slices.any(|slice| {
            service_of(slice)
                .and_then(|service| self.service(&service))
                .is_some_and(|service| is_headless(service))
        })
    }

    /// The addresses of a Service's ready endpoints, without duplicates. An endpoint without a `ready` condition counts
    /// as ready, as Kubernetes specifies. An endpoint whose Pod has ended or is gone does not count, whatever its
    /// EndpointSlice contains: another Pod may have the address by now. Empty if the Service does not exist.
    pub(crate) fn ready_addresses(&self, service: &ObjectName) -> BTreeSet<IpAddr> {
        if self.service(service).is_none() {
            return BTreeSet::new();
        }
        let endpoints = self.slices_of(service).flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        let current = ready.filter(|endpoint| self.is_current(&service.namespace, endpoint));
        // The names in a slice of type FQDN do not parse as addresses.
        current.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok()).collect()
    }

    /// Whether the Pod that an endpoint refers to still has its addresses. An endpoint that refers to no Pod counts as
    /// current.
    pub(crate) fn is_current(&self, namespace: &str, endpoint: &Endpoint) -> bool {
        let Some(target) = endpoint.target_ref.as_ref().filter(|_| self.parts.namespaces.knows_every_pod())
        else {
            return true;
        };
        let Some(name) = pod_of(namespace, endpoint) else { return true };
        let Some(pod) = self.pod(&name) else { return false };
        let is_same = target.uid.is_none() || target.uid == pod.metadata.uid;
        let status = pod.status.as_ref();
        let ip = status.and_then(|status| status.pod_ip.as_ref());
        let ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| &ip.ip);
        let has = |address: &String| ip == Some(address) || ips.clone().any(|ip| ip == address);
        is_same && !has_ended(pod) && endpoint.addresses.iter().all(has)
    }

    /// Every MeshConfig; only one of them is in force.
    pub(crate) fn mesh_configs(&self) -> impl Iterator<Item = (&ObjectName, &Arc<MeshConfig>)> {
        MeshConfig::part(self).iter()
    }

    /// The MeshConfig in force: the one with OSM's name for it; of several, the first by namespace.
    pub(crate) fn mesh_config(&self) -> Option<(&ObjectName, &Arc<MeshConfig>)> {
        MeshConfig::part(self).in_force()
    }

    /// The settings in force.
    pub(crate) fn mesh_config_spec(&self) -> Option<&MeshConfigSpec> {
        self.mesh_config().map(|(_, config)| &config.spec)
    }

    /// Every custom resource that cannot be read.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Unreadable>)> {
        self.unreadable.iter()
    }

    /// Objects of a kind and a namespace that cannot be read.
    pub(crate) fn unreadable_in(
        &self,
        kind: Kind,
        namespace: &str,
    ) -> impl Iterator<Item = &Arc<Unreadable>> {
        let is_there = move |key: &ObjectKey| key.kind == kind && *key.name.namespace == *namespace;
        self.unreadable.iter().filter(move |(key, _)| is_there(key)).map(|(_, object)| object)
    }

    /// Why the object of this kind and name cannot be read, if it is there and cannot.
    pub(crate) fn unreadable_reason(&self, kind: Kind, name: &ObjectName) -> Option<String> {
        self.unreadable.get(&ObjectKey { kind, name: name.clone() }).map(|object| object.reason())
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

    fn holds(&self, key: &ObjectKey, object: &Object) -> bool {
        match object {
            Object::Unreadable(object) => self.unreadable.get(key) == Some(object),
            _ => self.parts.holds(&key.name, object),
        }
    }

    fn insert(&mut self, key: &ObjectKey, object: Object) {
        if let Object::Unreadable(object) = object {
            self.parts.remove(key);
            self.unreadable.insert(key.clone(), object);
        } else {
            self.unreadable.remove(key);
            self.parts.insert(key.name.clone(), object);
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.unreadable.remove(key);
        self.parts.remove(key);
    }

    /// Notes what an object, in its current state, affects.
    fn affect(&self, key: &ObjectKey, affected: &mut Affected) {
        for effect in self.parts.effects(key) {
            self.note(effect, affected);
        }
        if self.unreadable.contains_key(key) {
            // It may concern any workload of its namespace.
            affected.namespaces.insert(key.name.namespace.clone());
        }
    }

    fn note(&self, effect: Effect, affected: &mut Affected) {
        match effect {
            Effect::All => affected.all = true,
            Effect::Namespace(namespace) => self.affect_namespace(namespace, affected),
            Effect::Statuses(namespace) => drop(affected.policies.insert(namespace)),
            Effect::Addresses(addresses) => {
                self.affect_claims(&addresses, affected);
                affected.addresses.extend(addresses);
            }
            Effect::Ranges(ranges) => affected.ranges.extend(ranges),
            Effect::Entries(entries) => affected.entries.extend(entries),
            Effect::Node(node) => drop(affected.nodes.insert(node)),
            Effect::Service(service) => self.affect_service(&service, affected),
            Effect::Opened(services) => self.affect_opened(&services, affected),
            Effect::Clients(service) => drop(affected.services.insert(service)),
            Effect::Account(account) => self.affect_account(&account, affected),
            Effect::Target(kind, name) => {
                for target in self.parts.traffic_targets.referring_to(kind, &name) {
                    affected.policies.insert(name.namespace.clone());
                    self.affect_account(&traffic_targets::destination(&name.namespace, target), affected);
                }
                for (policy, egress) in self.parts.egresses.referring_to(kind, &name) {
                    affected.policies.insert(policy.namespace.clone());
                    egresses::accounts(egress)
                        .iter()
                        .for_each(|account| self.affect_account(account, affected));
                }
                if kind == Kind::HTTPRouteGroup {
                    let roots = self.parts.traffic_splits.roots_by_group(&name);
                    roots.iter().for_each(|root| self.affect_parent(root, affected));
                    self.affect_limited_routes(&name.namespace, affected);
                }
            }
            Effect::Route(route, parents) => {
                affected.routes.insert(route);
                parents.iter().for_each(|parent| self.affect_parent(parent, affected));
            }
            Effect::RoutedService(service) => {
                self.affect_parent(&service, affected);
                self.affect_routes_to(&service, affected);
            }
            Effect::Split(root) => self.affect_parent(&root, affected),
            Effect::EgressProxies(namespace) if self.root_namespace() == Some(namespace.clone()) => {
                affected.all = true;
            }
            Effect::EgressProxies(namespace) => drop(affected.namespaces.insert(namespace)),
            Effect::Secret(secret) => {
                if self.egress_proxies_in(&secret.namespace).any(|(_, proxy)| names_secret(proxy, &secret)) {
                    self.note(Effect::EgressProxies(secret.namespace), affected);
                }
            }
            Effect::Pod(pod) => {
                self.affect_sources_on(&pod, affected);
                if let Some(found) = self.pod(&pod) {
                    affected.entries.extend(self.service_entries().selecting(&pod, found).cloned());
                }
                affected.pods.insert(pod);
            }
        }
    }

    /// Whether a namespace is in the mesh decides about its routes and ServiceEntries as well.
    fn affect_namespace(&self, namespace: Arc<str>, affected: &mut Affected) {
        let IndexParts { http_routes, grpc_routes, tls_routes, gateway_tcp_routes, .. } = &self.parts;
        let http = http_routes.in_namespace(&namespace).chain(grpc_routes.in_namespace(&namespace));
        for route in
            http.chain(tls_routes.in_namespace(&namespace)).chain(gateway_tcp_routes.in_namespace(&namespace))
        {
            affected.routes.insert(route.name.clone());
            route.parents().iter().for_each(|parent| self.affect_parent(parent, affected));
        }
        let roots = self.parts.traffic_splits.roots_in(&namespace);
        roots.for_each(|root| self.affect_parent(&root, affected));
        for (name, entry) in self.service_entries().in_namespace(&namespace) {
            affected.entries.insert(name.clone());
            affected.ranges.extend(ranges_of(&entry.spec));
        }
        for (_, egress) in self.parts.egresses.in_namespace(&namespace) {
            egresses::accounts(egress).iter().for_each(|account| self.affect_account(account, affected));
        }
        affected.namespaces.insert(namespace);
    }

    /// The addresses of a Service or a Pod affect the ServiceEntries that list them: these have no effect there.
    fn affect_claims(&self, addresses: &[IpAddr], affected: &mut Affected) {
        let claims = addresses.iter().flat_map(|ip| self.service_entries().claiming(IpNet::from(*ip)));
        affected.entries.extend(claims.cloned());
    }

    /// A Service that is a parent, or the root of a TrafficSplit, affects all its routes and splits, because each may
    /// conflict with the others, and what clients reach at its addresses.
    fn affect_parent(&self, service: &ObjectName, affected: &mut Affected) {
        affected.routes.extend(self.routes_of(service).map(|route| route.name.clone()));
        affected.policies.extend(self.splits_of(service).next().map(|(split, _)| split.namespace.clone()));
        affected.addresses.extend(self.service(service).into_iter().flat_map(|service| cluster_ips(service)));
        affected.routed.insert(service.clone());
    }

    /// A Service that is a backend affects the routes and splits that name it, and the clients of their parents.
    fn affect_routes_to(&self, service: &ObjectName, affected: &mut Affected) {
        let IndexParts { http_routes, grpc_routes, tls_routes, gateway_tcp_routes, .. } = &self.parts;
        let http = http_routes.with_backend(service).chain(grpc_routes.with_backend(service));
        for route in
            http.chain(tls_routes.with_backend(service)).chain(gateway_tcp_routes.with_backend(service))
        {
            affected.routes.insert(route.name.clone());
            affected.routed.extend(route.parents());
        }
        let roots = self.parts.traffic_splits.roots_by_backend(service);
        roots.iter().for_each(|root| self.affect_parent(root, affected));
    }

    /// A Pod affects the workloads that admit it as an endpoint of a source: its address is valid only while the Pod
    /// has it.
    fn affect_sources_on(&self, pod: &ObjectName, affected: &mut Affected) {
        if !self.is_of_cluster() {
            return;
        }
        let services = self.slices_of_pod(pod).filter_map(|slice| service_of(slice));
        for service in services.collect::<BTreeSet<_>>() {
            self.affect_source(&service, affected);
        }
    }

    /// A Service affects the Pods behind it and every policy that names it as a source.
    fn affect_service(&self, service: &ObjectName, affected: &mut Affected) {
        affected.namespaces.insert(service.namespace.clone());
        let addresses = self.service(service).into_iter().flat_map(|service| cluster_ips(service));
        let addresses: Vec<_> = addresses.collect();
        self.affect_claims(&addresses, affected);
        affected.addresses.extend(addresses);
        for name in self.service_entries().naming(service) {
            affected.entries.insert(name.clone());
            let entry = self.service_entries().entry(name);
            affected.ranges.extend(entry.into_iter().flat_map(|(_, entry)| ranges_of(&entry.spec)));
        }
        if self.service(service).is_some_and(|service| is_headless(service)) {
            // What their ports carry is declared by the Service.
            let endpoints = self.slices_of(service).flat_map(|slice| slice.endpoints.iter().flatten());
            let addresses = endpoints.flat_map(|endpoint| &endpoint.addresses);
            affected.addresses.extend(addresses.filter_map(|address| address.parse::<IpAddr>().ok()));
        }
        affected.services.insert(service.clone());
        affected.policies.extend(self.parts.retries.about(service).map(|retry| retry.namespace.clone()));
        let calling = self.parts.upstream_traffic_settings.calling(service);
        affected.policies.extend(calling.map(|setting| setting.namespace.clone()));
        self.affect_source(service, affected);
    }

    fn affect_source(&self, service: &ObjectName, affected: &mut Affected) {
        for (name, backend) in self.parts.ingress_backends.with_source(service) {
            affected.policies.insert(name.namespace.clone());
            self.affect_opened(&opened(name, backend), affected);
        }
    }

    /// The paths of HTTPRouteGroups are those that limits are for.
    fn affect_limited_routes(&self, namespace: &str, affected: &mut Affected) {
        for (name, object) in self.upstream_traffic_settings_in(namespace) {
            if let (Some(service), Some(_)) =
                (setting_service(name, object), object.spec.limited_routes().next())
            {
                self.affect_opened(&[service], affected);
            }
        }
    }

    /// The Pods of a service account.
    fn affect_account(&self, account: &ObjectName, affected: &mut Affected) {
        if !affected.looks_through(&account.namespace) {
            return;
        }
        let pods = self.pods_in(&account.namespace).filter(|(_, pod)| *service_account(pod) == *account.name);
        affected.pods.extend(pods.map(|(name, _)| name.clone()));
    }

    /// A policy affects the Pods behind the Services that it opens.
    fn affect_opened(&self, services: &[ObjectName], affected: &mut Affected) {
        let Some(namespace) = services.first().map(|service| service.namespace.clone()) else { return };
        if !affected.looks_through(&namespace) {
            return;
        }
        for name in services {
            let Some(service) = self.service(name) else { continue };
            for slice in self.slices_of(name) {
                if slice.endpoints.iter().flatten().any(|endpoint| endpoint.target_ref.is_none()) {
                    // If matched by address, it may be any Pod of the namespace.
                    affected.namespaces.insert(namespace.clone());
                }
                affected.pods.extend(pods_of(slice));
            }
            let selected = self.pods_in(&namespace).filter(|(_, pod)| selects(service, pod));
            affected.pods.extend(selected.map(|(name, _)| name.clone()));
        }
    }
}
