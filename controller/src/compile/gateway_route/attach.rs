//! Which routes are attached to a Service's port, and what its clients get.
//!
//! The routes of one namespace at a port are a group (GEP-1294): those of the Service's own namespace are for all clients;
//! those of another one are for the clients in it, and for them in place of the others. Groups are not merged. In a group
//! one kind of route wins at each port. The oldest routes come first, as far as there is room: what a tenant can create is
//! bounded before it is compiled.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ServicePort;
use tidegate_core::policy::AppProtocol;
use tidegate_core::route::{MAX_EXPRESSIONS, Route};
use tidegate_crds::gateway_api::{ParentRef, Routed};

use super::fault::{RouteFault, UNSUPPORTED_VALUE};
use super::rule::{self, speaks_http};
use crate::compile::route_features::Features;
use crate::index::{Index, RouteObject, RouteWeight, parent_of};
use crate::object::{Kind, ObjectName};
use crate::service::{has_cluster_ip, port_protocol, tcp_ports};

/// What the routes of one namespace at one Service may take. A sidecar refuses messages of 4 MiB, and more expressions.
const MOST: RouteWeight = RouteWeight { bytes: 3 << 20, expressions: MAX_EXPRESSIONS };

/// The routes of one namespace that name a Service as a parent.
pub(super) struct NamespaceRoutes<'i> {
    /// Those that are attached to a port, the oldest first.
    members: Vec<Member<'i>>,
    /// The route whose kind wins a port.
    winners: BTreeMap<u16, RouteObject<'i>>,
    without_room: BTreeSet<(Kind, &'i ObjectName)>,
}

/// A route, and the ports to which its parentRefs attach it.
struct Member<'i> {
    object: RouteObject<'i>,
    ports: BTreeSet<u16>,
}

impl<'i> NamespaceRoutes<'i> {
    /// What a route of this namespace finds at a Service.
    pub(super) fn of(index: &'i Index, service: &ObjectName, namespace: &str) -> Self {
        let of_namespace = index.routes_of(service).filter(|object| *object.name.namespace == *namespace);
        let members = of_namespace.map(|object| Member { object, ports: attached(index, &object, service) });
        let mut members: Vec<_> = members.filter(|member| !member.ports.is_empty()).collect();
        members.sort_by(|a, b| by_age(&a.object, &b.object));
        let mut group = Self { members: Vec::new(), winners: BTreeMap::new(), without_room: BTreeSet::new() };
        let mut taken = RouteWeight::default();
        for Member { object, ports } in &members {
            let RouteWeight { bytes, expressions } = object.weight();
            if taken.bytes + bytes > MOST.bytes || taken.expressions + expressions > MOST.expressions {
                group.without_room.insert((object.kind, object.name));
                continue;
            }
            taken = RouteWeight { bytes: taken.bytes + bytes, expressions: taken.expressions + expressions };
            for port in ports {
                let winner = group.winners.entry(*port).or_insert(*object);
                if object.routed > winner.routed {
                    *winner = *object;
                }
            }
        }
        group.members = members;
        group
    }

    /// Why a route of the group is not in force at a port.
    pub(super) fn refusal(&self, object: &RouteObject<'_>, port: u16) -> Option<RouteFault> {
        if self.without_room.contains(&(object.kind, object.name)) {
            let RouteWeight { bytes, expressions } = MOST;
            let message = format!(
                "the routes of one namespace at a Service may take {} MiB and have {expressions} regular expressions, and older \
                 ones leave no room for this one",
                bytes >> 20
            );
            return Some(RouteFault::new(UNSUPPORTED_VALUE, message));
        }
        // TCPRoutes have no matches by which several could share a port.
        let is_refused = |winner: &&RouteObject<'_>| {
            winner.kind != object.kind || (winner.routed == Routed::Tcp && winner.name != object.name)
        };
        let winner = self.winners.get(&port).filter(is_refused)?;
        // GEP-1294's reason.
        Some(RouteFault::new(
            "Conflicted",
            format!("{} {} takes precedence at port {port}", winner.kind, winner.name),
        ))
    }

    /// The routes that are in force at a port.
    fn at(&self, port: u16) -> impl Iterator<Item = RouteObject<'i>> {
        let attached = self.members.iter().filter(move |member| member.ports.contains(&port));
        attached.map(|member| member.object).filter(move |object| self.refusal(object, port).is_none())
    }
}

/// Whether routes of any namespace are attached to a port of a Service.
pub(crate) fn has_routes(index: &Index, service: &ObjectName, port: u16) -> bool {
    index.routes_of(service).any(|object| attached(index, &object, service).contains(&port))
}

/// The routes of a namespace that are in force at a port of a Service.
pub(crate) fn routes(
    index: &Index,
    features: Features,
    service: &ObjectName,
    port: u16,
    namespace: &str,
) -> Vec<Route> {
    let group = NamespaceRoutes::of(index, service, namespace);
    group.at(port).map(|object| rule::compile(index, object, features).route).collect()
}

/// The oldest of these routes.
pub(crate) fn deciding(
    index: &Index,
    service: &ObjectName,
    port: u16,
    namespace: &str,
) -> Option<(Kind, ObjectName)> {
    let object = NamespaceRoutes::of(index, service, namespace).at(port).next()?;
    Some((object.kind, object.name.clone()))
}

/// The ports of a Service to which a parentRef attaches a route, or why it attaches to none.
pub(super) fn ports(
    index: &Index,
    object: &RouteObject<'_>,
    parent: &ParentRef,
) -> Result<BTreeSet<u16>, RouteFault> {
    let name = parent_of(object.name, parent);
    let no_parent = |message: String| RouteFault::new("NoMatchingParent", message);
    let service = index.service(&name).ok_or_else(|| no_parent(format!("there is no Service {name}")))?;
    if !has_cluster_ip(service) {
        return Err(RouteFault::new(UNSUPPORTED_VALUE, format!("Service {name} has no cluster IP")));
    }
    let is_meant = |port: &&ServicePort| {
        parent.port.is_none_or(|number| number == port.port)
            && parent.section_name.as_deref().is_none_or(|name| port.name.as_deref() == Some(name))
    };
    let meant: Vec<_> = tcp_ports(service).filter(is_meant).collect();
    if meant.is_empty() {
        return Err(no_parent(format!("Service {name} has no such TCP port")));
    }
    let routed = meant.into_iter().filter(|port| match object.routed {
        Routed::Tcp => true,
        // The client of a port that is not declared, or that says which protocol it is, may not send a ClientHello.
        Routed::Tls => port_protocol(port).carried() == AppProtocol::Tcp,
        Routed::Http | Routed::Grpc => speaks_http(port),
    });
    let numbers: BTreeSet<_> = routed.filter_map(|port| u16::try_from(port.port).ok()).collect();
    if numbers.is_empty() {
        let message = match object.routed {
            Routed::Tls => format!("the port of Service {name} is not declared as tls, https or tcp"),
            _ => format!("the port of Service {name} carries opaque bytes"),
        };
        return Err(RouteFault::new(UNSUPPORTED_VALUE, message));
    }
    Ok(numbers)
}

/// The ports of a Service to which a route is attached; none unless its namespace is in the mesh.
fn attached(index: &Index, object: &RouteObject<'_>, service: &ObjectName) -> BTreeSet<u16> {
    if index.outside_mesh(&object.name.namespace).is_some() {
        return BTreeSet::new();
    }
    let parents = object.spec.services().filter(|parent| parent_of(object.name, parent) == *service);
    parents.filter_map(|parent| ports(index, object, parent).ok()).flatten().collect()
}

/// The oldest first, then by `<namespace>/<name>`.
fn by_age(a: &RouteObject<'_>, b: &RouteObject<'_>) -> Ordering {
    let origin = |object: &RouteObject<'_>| object.name.to_ref(object.kind);
    rule::created(a).cmp(&rule::created(b)).then_with(|| origin(a).cmp_by_name(&origin(b)))
}
