//! A TrafficSplit, compiled to a route for each port of its root.
//!
//! Requests that an HTTPRouteGroup of the split matches, or all traffic without one, go to the backends by weight; all others to
//! the root itself. A backend without the port is left out of it, as the specification has it. A backend that does not exist
//! takes its share of the traffic, which is answered with 500 or reset: that traffic is meant for other workloads than the
//! rest. A split whose requests cannot be distinguished is not in force at all.

use std::cmp::Ordering;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use tidegate_core::backend::BackendRef;
use tidegate_core::route::{
    Action, BackendTarget, DirectResponse, MAX_EXPRESSIONS, Route, RouteMatch, RouteRule, WeightedBackend,
};
use tidegate_crds::TrafficSplit;
use tidegate_crds::traffic_split::{SplitBackend, SplitMatch};
use tidegate_crds::validate::{Finding, traffic_split};

use crate::compile::fault::ObjectFault;
use crate::index::{Index, split_backend, split_root};
use crate::object::{Kind, ObjectName};
use crate::service::{has_cluster_ip, is_alias, port_protocol, tcp_ports};

/// A TrafficSplit.
#[derive(Clone, Copy)]
pub(super) struct Split<'i> {
    pub(super) name: &'i ObjectName,
    pub(super) object: &'i TrafficSplit,
}

/// What a backend gets of a port of the root.
pub(super) enum PortShare<'i> {
    /// Its share.
    Of(BackendRef),
    /// Nothing: the Service of this name does not have the port.
    WithoutPort(&'i str),
    /// It takes its share, and an error is the answer.
    Invalid(ObjectFault),
}

/// What clients of a port get by the split of its Service that is in force; `None` if there is none, or none at this port.
pub(in crate::compile) fn at(index: &Index, service: &ObjectName, port: u16) -> Option<Route> {
    let split = oldest(index, service)?;
    let root = split.root(index).ok()?;
    let listed = tcp_ports(root).find(|listed| listed.port == i32::from(port))?;
    split.route(index, service, port, listed)
}

/// Of several splits of one root, the oldest, then the first by name.
fn oldest<'i>(index: &'i Index, root: &ObjectName) -> Option<Split<'i>> {
    let all = index.splits_of(root).map(|(name, object)| Split { name, object });
    all.min_by(|a, b| a.by_age(b))
}

impl<'i> Split<'i> {
    /// The root, if this is the split that is in force at it.
    pub(super) fn root(&self, index: &'i Index) -> Result<&'i Service, ObjectFault> {
        if let Some(reason) = index.outside_mesh(&self.name.namespace) {
            return Err(ObjectFault::invalid(reason));
        }
        let Some(root) = split_root(self.name, self.object) else {
            return Err(ObjectFault::invalid(self.finding("spec.service")));
        };
        let service =
            index.service(&root).ok_or_else(|| ObjectFault::missing(index, Kind::Service, &root))?;
        if !has_cluster_ip(service) {
            return Err(ObjectFault::invalid_reference(format!("Service {root} has no cluster IP")));
        }
        match oldest(index, &root).filter(|oldest| oldest.name != self.name) {
            Some(older) => {
                Err(ObjectFault::conflicted(format!("TrafficSplit {} is older and decides", older.name)))
            }
            None => Ok(service),
        }
    }

    /// The requests that are split; `None`: everything.
    pub(super) fn requests(&self, index: &Index) -> Result<Option<Vec<RouteMatch>>, ObjectFault> {
        let groups = self.object.spec.matches.as_deref().unwrap_or_default();
        if groups.is_empty() {
            return Ok(None);
        }
        let mut requests = Vec::new();
        for (i, group) in groups.iter().enumerate() {
            requests.extend(self.matches(index, i, group)?);
        }
        let expressions: usize = requests.iter().map(RouteMatch::expressions).sum();
        if expressions > MAX_EXPRESSIONS || requests.len() > MAX_EXPRESSIONS {
            let reason = format!(
                "its HTTPRouteGroups have more than {MAX_EXPRESSIONS} matches or regular expressions together"
            );
            return Err(ObjectFault::too_large(reason));
        }
        Ok(Some(requests))
    }

    /// The matches of a group.
    fn matches(&self, index: &Index, at: usize, group: &SplitMatch) -> Result<Vec<RouteMatch>, ObjectFault> {
        if group.kind != "HTTPRouteGroup" {
            return Err(ObjectFault::invalid(self.finding(&format!("spec.matches[{at}].kind"))));
        }
        let name = ObjectName::new(self.name.namespace.clone(), group.name.as_str());
        let invalid = |why: &str| ObjectFault::invalid_reference(format!("HTTPRouteGroup {name}: {why}"));
        let found = index.route_group(&name);
        let found = found.ok_or_else(|| ObjectFault::missing(index, Kind::HTTPRouteGroup, &name))?;
        let matches = found.matches.as_ref().map_err(|why| invalid(why))?;
        let one = |one: &Result<Arc<RouteMatch>, Arc<str>>| match one {
            Ok(one) => Ok(RouteMatch::clone(one)),
            Err(why) => Err(invalid(why)),
        };
        matches.all().map(one).collect()
    }

    /// What each backend gets of a port of the root.
    pub(super) fn shares(&self, index: &Index, port: &ServicePort) -> Vec<PortShare<'i>> {
        let backends = &self.object.spec.backends;
        backends.iter().enumerate().map(|(i, backend)| self.share(index, i, backend, port)).collect()
    }

    /// What a backend gets of a port.
    fn share(
        &self,
        index: &Index,
        at: usize,
        backend: &'i SplitBackend,
        port: &ServicePort,
    ) -> PortShare<'i> {
        let Some(name) = split_backend(self.name, backend) else {
            let finding = self.finding(&format!("spec.backends[{at}].service"));
            return PortShare::Invalid(ObjectFault::invalid(finding));
        };
        let Some(service) = index.service(&name) else {
            return PortShare::Invalid(ObjectFault::missing(index, Kind::Service, &name));
        };
        let invalid = |reason| PortShare::Invalid(ObjectFault::invalid_reference(reason));
        if is_alias(service) {
            return invalid(format!("Service {name} is an alias of a name outside the cluster"));
        }
        let Some(listed) = tcp_ports(service).find(|listed| listed.port == port.port) else {
            return PortShare::WithoutPort(&backend.service);
        };
        let is_opaque = |port| port_protocol(port).carried().is_opaque();
        if is_opaque(listed) && !is_opaque(port) {
            let number = port.port;
            return invalid(format!(
                "port {number} of Service {name} carries opaque bytes, unlike the root's"
            ));
        }
        match u16::try_from(port.port) {
            Ok(port) => PortShare::Of(BackendRef { object: name.to_ref(Kind::Service), port }),
            Err(_) => PortShare::WithoutPort(&backend.service),
        }
    }

    /// Why nothing is served, if no backend has a weight.
    pub(super) fn no_weight(&self) -> Option<ObjectFault> {
        let has_weight = self.object.spec.backends.iter().any(|backend| backend.weight > 0);
        (!has_weight).then(|| ObjectFault::invalid(self.finding("spec.backends")))
    }

    /// `None` if the port is not split.
    fn route(&self, index: &Index, root: &ObjectName, port: u16, listed: &ServicePort) -> Option<Route> {
        let requests = self.requests(index).ok()?;
        let shares = self.shares(index, listed);
        if !shares.is_empty() && shares.iter().all(|share| share.without_port().is_some()) {
            return None;
        }
        let weights = self.object.spec.backends.iter().map(|backend| backend.weight);
        let weighted = weights.zip(shares).filter_map(|(weight, share)| {
            let target = match share {
                PortShare::Of(backend) => BackendTarget::Backend(backend),
                PortShare::WithoutPort(_) => return None,
                PortShare::Invalid(fault) => {
                    BackendTarget::Invalid(DirectResponse { status: 500, reason: fault.reason.into() })
                }
            };
            Some(WeightedBackend::new(weight, target))
        });
        let split = RouteRule::new(Action::Forward(weighted.collect()));
        let rules = match requests {
            None => vec![split],
            Some(matches) => {
                let itself = BackendRef { object: root.to_ref(Kind::Service), port };
                let itself = WeightedBackend::new(1, BackendTarget::Backend(itself));
                let unsplit = RouteRule::new(Action::Forward(vec![itself]));
                let named = |name: &str, rule| RouteRule { name: Some(name.into()), ..rule };
                // Without matches, a rule would apply to every request.
                let split = (!matches.is_empty()).then(|| named("split", RouteRule { matches, ..split }));
                split.into_iter().chain([named("root", unsplit)]).collect()
            }
        };
        let origin = self.name.to_ref(Kind::TrafficSplit);
        Some(Route { origin, created: self.created(), hosts: Vec::new(), rules })
    }

    /// When it was created, in seconds since 1970; 0 for a file.
    fn created(&self) -> i64 {
        self.object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
    }

    /// The oldest first, then by name: the first one counts.
    fn by_age(&self, other: &Self) -> Ordering {
        self.created().cmp(&other.created()).then_with(|| self.name.cmp(other.name))
    }

    /// What is wrong with a field, as the check of the manifest says it.
    fn finding(&self, path: &str) -> String {
        let findings = traffic_split(&self.name.namespace, &self.object.spec);
        let found = findings.iter().find(|finding| finding.path == path);
        found.map(Finding::to_string).unwrap_or_default()
    }
}

impl PortShare<'_> {
    /// The Service that does not have the port.
    pub(super) fn without_port(&self) -> Option<&str> {
        match self {
            Self::WithoutPort(service) => Some(service),
            Self::Of(_) | Self::Invalid(_) => None,
        }
    }

    /// Why the share is answered with an error.
    pub(super) fn into_fault(self) -> Option<ObjectFault> {
        match self {
            Self::Invalid(fault) => Some(fault),
            Self::Of(_) | Self::WithoutPort(_) => None,
        }
    }
}
