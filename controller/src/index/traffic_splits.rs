//! TrafficSplits, by name, by their root and by what they refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_crds::traffic_split::{OLDER_TRAFFIC_SPLIT, SplitBackend, SplitMatch, service_name};
use tidegate_crds::{TrafficSplit, TrafficSplitSpec, validate};

use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Object, ObjectName};

/// Everything that a split refers to is in its own namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrafficSplits {
    by_name: BTreeMap<ObjectName, Arc<TrafficSplit>>,
    by_root: ReferenceIndex,
    by_backend: ReferenceIndex,
    by_group: ReferenceIndex,
}

impl TrafficSplits {
    /// Every TrafficSplit.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<TrafficSplit>)> {
        self.by_name.iter()
    }

    /// The TrafficSplits whose root is this Service.
    pub(super) fn of_root<'s>(
        &'s self,
        service: &ObjectName,
    ) -> impl Iterator<Item = (&'s ObjectName, &'s Arc<TrafficSplit>)> + use<'s> {
        self.by_root.to(service).filter_map(|name| self.by_name.get_key_value(name))
    }

    /// The roots of the TrafficSplits of a namespace.
    pub(super) fn roots_in(&self, namespace: &str) -> impl Iterator<Item = ObjectName> {
        in_namespace(&self.by_name, namespace).filter_map(|(name, split)| root_of(name, split))
    }

    /// The roots of the TrafficSplits that have this Service as a backend.
    pub(super) fn roots_by_backend(&self, service: &ObjectName) -> BTreeSet<ObjectName> {
        self.roots(&self.by_backend, service)
    }

    /// The roots of the TrafficSplits that name this HTTPRouteGroup.
    pub(super) fn roots_by_group(&self, group: &ObjectName) -> BTreeSet<ObjectName> {
        self.roots(&self.by_group, group)
    }

    fn roots(&self, references: &ReferenceIndex, target: &ObjectName) -> BTreeSet<ObjectName> {
        let root = |name: &ObjectName| root_of(name, self.by_name.get(name)?);
        references.to(target).filter_map(root).collect()
    }

    /// The lists of references, each with what a split refers to.
    fn references(
        &mut self,
        name: &ObjectName,
        split: &TrafficSplit,
    ) -> [(&mut ReferenceIndex, BTreeSet<ObjectName>); 3] {
        let here = |found: &str| ObjectName::new(name.namespace.clone(), found);
        let backends = split.spec.backends.iter().filter_map(|backend| backend_of(name, backend));
        let groups = split.spec.matches.iter().flatten().map(|found| here(&found.name));
        [
            (&mut self.by_root, root_of(name, split).into_iter().collect()),
            (&mut self.by_backend, backends.collect()),
            (&mut self.by_group, groups.collect()),
        ]
    }
}

/// The root of a split; `None` unless it is of the split's namespace.
pub(crate) fn root_of(name: &ObjectName, split: &TrafficSplit) -> Option<ObjectName> {
    let root = service_name(&split.spec.service, &name.namespace)?;
    Some(ObjectName::new(name.namespace.clone(), root))
}

/// The Service that a backend of a split means; `None` unless it is of the split's namespace.
pub(crate) fn backend_of(split: &ObjectName, backend: &SplitBackend) -> Option<ObjectName> {
    let service = service_name(&backend.service, &split.namespace)?;
    Some(ObjectName::new(split.namespace.clone(), service))
}

impl Indexed for TrafficSplit {
    type Part = TrafficSplits;

    fn get<'p>(part: &'p TrafficSplits, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut TrafficSplits, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        for (references, targets) in part.references(&name, &object) {
            targets.into_iter().for_each(|target| references.add(target, &name));
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut TrafficSplits, name: &ObjectName) {
        let Some(split) = part.by_name.remove(name) else { return };
        for (references, targets) in part.references(name, &split) {
            targets.iter().for_each(|target| references.remove(target, name));
        }
    }

    fn effects(part: &TrafficSplits, name: &ObjectName) -> Vec<Effect> {
        let root = part.by_name.get(name).and_then(|split| root_of(name, split));
        [Effect::Statuses(name.namespace.clone())].into_iter().chain(root.map(Effect::Split)).collect()
    }
}

impl Stored for TrafficSplit {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        let TrafficSplitSpec { service, backends, matches } = &self.spec;
        let backends =
            backends.iter().map(|backend| item::<SplitBackend>() + REFERENCE + 2 * text(&backend.service));
        let groups = matches
            .iter()
            .flatten()
            .map(|found| item::<SplitMatch>() + REFERENCE + text(&found.kind) + 2 * text(&found.name));
        let references = backends.sum::<usize>() + groups.sum::<usize>();
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + REFERENCE + 2 * text(service) + references
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(TrafficSplit::crd);
        let kind = CustomKind::<Self>::new(&DEFINITION, |namespace, object| {
            validate::traffic_split(namespace, &object.spec)
        });
        Some(kind.older(&[OLDER_TRAFFIC_SPLIT], false))
    }
}

impl Custom for TrafficSplit {
    fn of(metadata: ObjectMeta, spec: TrafficSplitSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}
