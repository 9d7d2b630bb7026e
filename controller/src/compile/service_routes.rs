//! What clients of a Service's port get in place of the Service's own endpoints, of all kinds of objects about it.
//!
//! One kind decides: Gateway API's routes of the client's namespace, else those of the Service's, else the oldest
//! TrafficSplit of the Service. They are not merged: each replaces what comes after it, as GEP-1294 has it for routes.

use std::sync::Arc;

use tidegate_core::backend::BackendRef;
use tidegate_core::route::{Action, BackendTarget, Route, RouteRule, WeightedBackend};

use super::destination::Resolver;
use super::route_features::Feature;
use super::{gateway_route, traffic_split};
use crate::object::{Kind, ObjectName};

/// The routes that clients of a port get.
pub(crate) struct PortRoutes {
    pub(crate) routes: Vec<Route>,
    /// The namespace whose objects they are.
    pub(crate) namespace: Arc<str>,
}

impl Resolver<'_> {
    /// Whether clients of any namespace get routes at a port of a Service.
    pub(crate) fn has_routes(&self, service: &ObjectName, port: u16) -> bool {
        self.features.has(Feature::Routing)
            && (gateway_route::has_routes(self.index, service, port)
                || traffic_split::at(self.index, service, port).is_some())
    }

    /// The routes that clients in the namespace `caller` get at a port of a Service; `None` without any for any namespace.
    /// Where only other namespaces have routes, they are one that leads to the Service itself.
    pub(crate) fn routes(&self, service: &ObjectName, port: u16, caller: &str) -> Option<PortRoutes> {
        if !self.has_routes(service, port) {
            return None;
        }
        for namespace in [caller, &*service.namespace] {
            let routes = gateway_route::routes(self.index, self.features, service, port, namespace);
            if !routes.is_empty() {
                return Some(PortRoutes { routes, namespace: namespace.into() });
            }
        }
        let split = traffic_split::at(self.index, service, port);
        let routes = vec![split.unwrap_or_else(|| to_itself(service, port))];
        Some(PortRoutes { routes, namespace: service.namespace.clone() })
    }
}

/// What clients get without routes.
fn to_itself(service: &ObjectName, port: u16) -> Route {
    let backend = BackendRef { object: service.to_ref(Kind::Service), port };
    let share = WeightedBackend::new(1, BackendTarget::Backend(backend));
    Route {
        origin: service.to_ref(Kind::Service),
        created: 0,
        hosts: Vec::new(),
        rules: vec![RouteRule::new(Action::Forward(vec![share]))],
    }
}
