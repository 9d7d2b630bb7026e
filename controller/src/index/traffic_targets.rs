//! TrafficTargets, by name and by the routes that they refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_crds::traffic_target::{Subject, TargetRule};
use tidegate_crds::{TrafficTarget, TrafficTargetSpec, validate};

use super::part::{Effect, Indexed, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Kind, Object, ObjectName};

#[derive(Clone, Debug, Default)]
pub(crate) struct TrafficTargets {
    by_name: BTreeMap<ObjectName, Arc<TrafficTarget>>,
    by_route: BTreeMap<(Kind, ObjectName), BTreeSet<ObjectName>>,
}

impl TrafficTargets {
    /// Every TrafficTarget.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<TrafficTarget>)> {
        self.by_name.iter()
    }

    /// TrafficTargets of a namespace.
    pub(crate) fn in_namespace(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<TrafficTarget>)> {
        in_namespace(&self.by_name, namespace)
    }

    /// The TrafficTargets that refer to a route.
    pub(super) fn referring_to(
        &self,
        kind: Kind,
        route: &ObjectName,
    ) -> impl Iterator<Item = &Arc<TrafficTarget>> {
        let names = self.by_route.get(&(kind, route.clone()));
        names.into_iter().flatten().filter_map(|name| self.by_name.get(name))
    }
}

impl Indexed for TrafficTarget {
    type Part = TrafficTargets;

    fn get<'p>(part: &'p TrafficTargets, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut TrafficTargets, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        for route in routes_of(&name, &object) {
            part.by_route.entry(route).or_default().insert(name.clone());
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut TrafficTargets, name: &ObjectName) {
        let Some(target) = part.by_name.remove(name) else { return };
        for route in routes_of(name, &target) {
            if let Some(names) = part.by_route.get_mut(&route) {
                names.remove(name);
                if names.is_empty() {
                    part.by_route.remove(&route);
                }
            }
        }
    }

    fn effects(part: &TrafficTargets, name: &ObjectName) -> Vec<Effect> {
        let mut effects = vec![Effect::Statuses(name.namespace.clone())];
        let target = part.by_name.get(name);
        effects.extend(target.map(|target| Effect::Account(destination(&name.namespace, target))));
        effects
    }
}

impl Stored for TrafficTarget {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        let TrafficTargetSpec { destination, rules, sources } = &self.spec;
        let rules: usize = rules.iter().map(rule_size).sum();
        let sources: usize = sources.iter().map(|source| item::<Subject>() + subject_size(source)).sum();
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + subject_size(destination) + rules + sources
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(TrafficTarget::crd);
        Some(CustomKind::new(&DEFINITION, |namespace, object| {
            validate::traffic_target(namespace, &object.spec)
        }))
    }
}

impl Custom for TrafficTarget {
    fn of(metadata: ObjectMeta, spec: TrafficTargetSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// The service account of a TrafficTarget's destination, in the namespace of the target: no other is allowed.
pub(super) fn destination(namespace: &Arc<str>, target: &TrafficTarget) -> ObjectName {
    ObjectName::new(namespace.clone(), target.spec.destination.name.as_str())
}

/// The routes that a TrafficTarget refers to, in its own namespace.
fn routes_of(name: &ObjectName, target: &TrafficTarget) -> BTreeSet<(Kind, ObjectName)> {
    let kind = |rule: &TargetRule| match rule.kind.as_str() {
        "HTTPRouteGroup" => Some(Kind::HTTPRouteGroup),
        "TCPRoute" => Some(Kind::TCPRoute),
        _ => None,
    };
    let route =
        |rule: &TargetRule| Some((kind(rule)?, ObjectName::new(name.namespace.clone(), rule.name.as_str())));
    target.spec.rules.iter().filter_map(route).collect()
}

fn rule_size(rule: &TargetRule) -> usize {
    let names = rule.matches.iter().flatten();
    let names: usize = names.map(|name| item::<String>() + text(name)).sum();
    item::<TargetRule>() + REFERENCE + text(&rule.kind) + 3 * text(&rule.name) + names
}

fn subject_size(subject: &Subject) -> usize {
    text(&subject.kind) + text(&subject.name) + optional(&subject.namespace)
}
