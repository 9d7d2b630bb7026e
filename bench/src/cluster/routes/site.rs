//! The namespaces of the measurements with routes: a client, and in each of them two backends and Services whose HTTPRoutes lead
//! to them.
//!
//! A Service's own endpoints are those of the second backend, and each route leads to the first one, so that an answer shows whether
//! the route is in force. kube-proxy does not know the Services: only a sidecar leads their clients anywhere.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tidegate_tests::golden::repository;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::Pod;
use tidegate_tests::kubernetes::workload::Workload;

use super::calls::{self, CalledService};
use crate::cluster::site::ClusterSite;

/// HTTPRoutes of one Service. A sidecar keeps 4,096 addresses at most, so 5,000 routes need fewer Services than that.
const ROUTES_OF_SERVICE: usize = 5;
/// Services of one namespace. The controller leaves out what exceeds a namespace's share of its memory, which has room for some
/// 3,000 routes.
const SERVICES_OF_NAMESPACE: usize = 200;
/// Concurrent API calls.
const CONCURRENCY: usize = 16;
/// The port of all Services.
const PORT: u16 = 80;
/// Name of the client's Deployment.
const CLIENT: &str = "client";
/// How long the namespaces may take to disappear.
const REMOVED: &str = "--timeout=300s";
/// The Deployment whose restart frees the memory that the routes took.
const CONTROLLER: &str = "deployment/tidegate-controller";

/// The route that is changed: the first Service's first.
pub(super) const CHANGED: &str = "route-0";
/// The only route of a Service that the client does not use, and its Service.
pub(super) const ELSEWHERE: &str = "elsewhere";

/// Where routes lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cluster) enum AnsweringBackend {
    First,
    Second,
}

/// The namespaces and the objects that were created in them.
pub(super) struct RouteSite {
    /// The client's and the changing routes' is the first.
    namespaces: Vec<RouteNamespace>,
    client: Pod,
    /// Routes so far.
    count: usize,
    /// The Services that the client uses.
    called: Vec<CalledService>,
}

/// A namespace with its own backends.
struct RouteNamespace {
    namespace: Namespace,
    services: Api<Service>,
    routes: Api<DynamicObject>,
}

impl RouteSite {
    /// Installs the definitions of Gateway API's routes, deploys client and backends, and creates the route that the client
    /// does not use.
    pub(super) fn start(cluster: &ClusterSite) -> Result<Self> {
        let definitions = repository().join("charts/tidegate-crds/gateway-api").display().to_string();
        cluster.cluster().kubectl(["apply", "--server-side", "-f", &definitions]);
        let httproutes = "crd/httproutes.gateway.networking.k8s.io";
        cluster.cluster().kubectl(["wait", httproutes, "--for=condition=Established", "--timeout=60s"]);

        let first = RouteNamespace::create(cluster);
        Workload::client(CLIENT).deploy(&first.namespace);
        let client = first.namespace.pod(CLIENT);
        cluster.block_on(async {
            first.create_service(ELSEWHERE).await?;
            first.create_route(ELSEWHERE, &route(ELSEWHERE, 0)).await
        })?;
        Ok(Self { namespaces: vec![first], client, count: 0, called: Vec::new() })
    }

    /// Creates routes up to this number, their Services, and the namespaces of these.
    pub(super) fn grow_to(&mut self, cluster: &ClusterSite, count: usize) -> Result<()> {
        let services = count.div_ceil(ROUTES_OF_SERVICE);
        for _ in self.namespaces.len()..services.div_ceil(SERVICES_OF_NAMESPACE) {
            self.namespaces.push(RouteNamespace::create(cluster));
        }
        cluster.block_on(self.create_up_to(services, count))
    }

    async fn create_up_to(&mut self, services: usize, count: usize) -> Result<()> {
        let services = self.called.len()..services.max(self.called.len());
        let created = stream::iter(services)
            .map(|index| self.create_service_of_index(index))
            .buffered(CONCURRENCY)
            .try_collect::<Vec<_>>()
            .await
            .context("a Service with routes")?;
        stream::iter(self.count..count)
            .map(|index| self.create_route_of_index(index))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await
            .context("an HTTPRoute")?;
        self.count = self.count.max(count);
        self.called.extend(created.into_iter().map(|address| CalledService { address, routes: 0 }));
        for (index, service) in self.called.iter_mut().enumerate() {
            service.routes = (self.count - index * ROUTES_OF_SERVICE).min(ROUTES_OF_SERVICE);
        }
        Ok(())
    }

    /// The Services that the client uses, in order of creation.
    pub(super) fn services(&self) -> &[CalledService] {
        &self.called
    }

    /// Makes a route lead to this backend.
    pub(super) async fn lead(&self, route: &str, backend: AnsweringBackend) -> Result<()> {
        let patch = json!({"spec": {"rules": [rule(0, backend)]}});
        self.namespaces
            .first()
            .context("no namespace")?
            .routes
            .patch(route, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("cannot change the HTTPRoute {route}"))?;
        Ok(())
    }

    /// The client's network, which is intercepted.
    pub(super) fn client_network(&self) -> File {
        self.client.network()
    }

    /// The process of the client's sidecar.
    pub(super) fn client_sidecar(&self, cluster: &ClusterSite) -> Result<u32> {
        let namespace = self.namespaces.first().context("no namespace")?.namespace.name();
        let workload = format!("--workload={namespace}/{}", self.client.name());
        let mut processes = cluster.cluster().pod_processes().into_iter();
        let found = processes
            .find(|process| process.program == "tidegate-sidecar" && process.arguments.contains(&workload));
        Ok(found.context("the client's sidecar does not run")?.pid)
    }

    /// Removes the namespaces and what the controller has held of them.
    pub(super) fn end(self, cluster: &ClusterSite) {
        let cluster = cluster.cluster();
        let names = self.namespaces.iter().map(|namespace| namespace.namespace.name());
        cluster.kubectl(["delete", "namespace", REMOVED].into_iter().chain(names));
        cluster.kubectl(["-n", CONTROL_PLANE, "rollout", "restart", CONTROLLER]);
        Mesh::get().wait_ready();
    }

    /// The namespace of the Service with this index.
    fn namespace_of(&self, service: usize) -> Result<&RouteNamespace> {
        self.namespaces.get(service / SERVICES_OF_NAMESPACE).context("no namespace for this Service")
    }

    /// Creates the Service with this index; returns its address.
    async fn create_service_of_index(&self, index: usize) -> Result<SocketAddr> {
        self.namespace_of(index)?.create_service(&service_name(index)).await
    }

    /// Creates the route with this index.
    async fn create_route_of_index(&self, index: usize) -> Result<()> {
        let service = index / ROUTES_OF_SERVICE;
        let spec = route(&service_name(service), index % ROUTES_OF_SERVICE);
        self.namespace_of(service)?.create_route(&route_name(index), &spec).await
    }
}

impl RouteNamespace {
    /// In the mesh, with both backends.
    fn create(cluster: &ClusterSite) -> Self {
        let namespace = Namespace::meshed("routes");
        let backends = [AnsweringBackend::First, AnsweringBackend::Second].map(AnsweringBackend::name);
        for backend in backends {
            Workload::http(backend).apply(&namespace);
        }
        for backend in backends {
            namespace.wait_rolled_out(&format!("deployment/{backend}"));
        }
        let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
        let api = cluster.client().clone();
        Self {
            services: Api::namespaced(api.clone(), namespace.name()),
            routes: Api::namespaced_with(api, namespace.name(), &ApiResource::from_gvk(&kind)),
            namespace,
        }
    }

    /// Creates a Service with the second backend's endpoints; returns its address.
    async fn create_service(&self, name: &str) -> Result<SocketAddr> {
        let service = serde_json::from_value(service(name))?;
        let created = self.services.create(&PostParams::default(), &service).await?;
        let address =
            created.spec.and_then(|spec| spec.cluster_ip).context("a Service without an address")?;
        Ok(SocketAddr::from((address.parse::<Ipv4Addr>()?, PORT)))
    }

    async fn create_route(&self, name: &str, spec: &Value) -> Result<()> {
        let object = serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": name},
            "spec": spec,
        }))?;
        self.routes.create(&PostParams::default(), &object).await?;
        Ok(())
    }
}

impl AnsweringBackend {
    /// Name of its Deployment and Service, with which its Pods' names begin.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

/// Name of the Service with this index.
fn service_name(index: usize) -> String {
    format!("service-{index}")
}

/// Name of the route with this index.
fn route_name(index: usize) -> String {
    format!("route-{index}")
}

/// A Service with the second backend's endpoints.
fn service(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            // Without this, the node's kube-proxy would write rules for thousands of Services.
            "labels": {"service.kubernetes.io/service-proxy-name": "none"},
        },
        "spec": {
            "selector": {"app": AnsweringBackend::Second.name()},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    })
}

/// The `number`th route of a Service.
fn route(service: &str, number: usize) -> Value {
    let parent = json!({"group": "", "kind": "Service", "name": service, "port": PORT});
    json!({"parentRefs": [parent], "rules": [rule(number, AnsweringBackend::First)]})
}

/// The rule for requests of the `number`th route.
fn rule(number: usize, backend: AnsweringBackend) -> Value {
    let header = json!({"name": calls::ROUTE_HEADER, "value": number.to_string()});
    json!({
        "matches": [{"path": {"type": "Exact", "value": calls::PATH}, "headers": [header]}],
        "backendRefs": [{"name": backend.name(), "port": PORT}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_replaces_the_rule_of_the_first_route_and_nothing_else() {
        let spec = route(&service_name(0), 0);
        assert_eq!(spec["rules"], json!([rule(0, AnsweringBackend::First)]));
        assert_eq!(route_name(0), CHANGED);
        let (mut changed, unchanged) = (rule(0, AnsweringBackend::Second), rule(0, AnsweringBackend::First));
        assert_eq!(changed["backendRefs"][0]["name"], "second");
        changed["backendRefs"] = unchanged["backendRefs"].clone();
        assert_eq!(changed, unchanged);
    }

    #[test]
    fn the_routes_of_a_service_match_different_requests() {
        let matches: Vec<_> = (0..ROUTES_OF_SERVICE)
            .map(|number| route("service-0", number)["rules"][0]["matches"].to_string())
            .collect();
        let different: std::collections::BTreeSet<_> = matches.iter().collect();
        assert_eq!(different.len(), ROUTES_OF_SERVICE);
    }
}
