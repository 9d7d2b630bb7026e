//! What the index keeps of one kind, and what a change of an object affects.
//!
//! Effects are computed from the object before a change and again from the one after it, so that what an object no
//! longer refers to is compiled as well. A part reports its own references; what follows from them across kinds is in
//! `index.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::object::{Kind, ObjectName};

/// A kind whose objects the index keeps. Each kind implements it in its file in `index/`.
pub(crate) trait Indexed: PartialEq + Sized {
    /// Its objects, and lookups by what refers to them.
    type Part: Clone + Debug + Default;

    /// The object of this name, as kept.
    fn get<'p>(part: &'p Self::Part, name: &ObjectName) -> Option<&'p Arc<Self>>;

    /// Keeps an object, replacing the one of the same name.
    fn insert(part: &mut Self::Part, name: ObjectName, object: Arc<Self>);

    /// Forgets an object.
    fn remove(part: &mut Self::Part, name: &ObjectName);

    /// What the object of this name affects in its current state. Called before and after each change.
    fn effects(part: &Self::Part, name: &ObjectName) -> Vec<Effect>;

    /// Whether an equal object is already kept.
    fn holds(part: &Self::Part, name: &ObjectName, object: &Self) -> bool {
        Self::get(part, name).is_some_and(|kept| **kept == *object)
    }
}

/// What an object affects. The index derives the workloads, statuses and destinations from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Everything in the mesh.
    All,
    /// Every workload and every status of a namespace.
    Namespace(Arc<str>),
    /// A Pod, and the workloads that admit it as an endpoint of a source.
    Pod(ObjectName),
    /// The Pods behind a Service, and the policies that name it as a source.
    Service(ObjectName),
    /// The statuses of a namespace.
    Statuses(Arc<str>),
    /// The Pods behind these Services, which one policy opens or limits.
    Opened(Vec<ObjectName>),
    /// What clients of this Service have open to it.
    Clients(ObjectName),
    /// The Pods of a service account.
    Account(ObjectName),
    /// The TrafficTargets, TrafficSplits and Egresses that refer to the object of this kind and name, and limits of its paths.
    Target(Kind, ObjectName),
    /// The workloads on a node.
    Node(Arc<str>),
    /// What workloads reach at these addresses.
    Addresses(Vec<IpAddr>),
    /// What workloads reach in these ranges.
    Ranges(Vec<IpNet>),
    /// The backends and the status of these ServiceEntries.
    Entries(BTreeSet<ObjectName>),
    /// A route with this name, and everything about the Services that are its parents.
    Route(ObjectName, BTreeSet<ObjectName>),
    /// Everything about this Service, which is the root of a TrafficSplit.
    Split(ObjectName),
    /// Every workload for which EgressProxies of this namespace may be, and their statuses.
    EgressProxies(Arc<str>),
    /// The EgressProxies with credentials in this Secret.
    Secret(ObjectName),
    /// The routes and splits that have this Service as a parent or as a backend.
    RoutedService(ObjectName),
}

/// The objects of a namespace.
pub(super) fn in_namespace<'m, T>(
    map: &'m BTreeMap<ObjectName, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'m ObjectName, &'m T)> + use<'m, T> {
    let namespace: Arc<str> = namespace.into();
    map.range(ObjectName::new(namespace.clone(), "")..)
        .take_while(move |(name, _)| name.namespace == namespace)
}

/// Objects by the name of something that they refer to.
#[derive(Clone, Debug, Default)]
pub(super) struct ReferenceIndex(BTreeMap<ObjectName, BTreeSet<ObjectName>>);

impl ReferenceIndex {
    /// The objects that refer to `target`.
    pub(super) fn to<'r>(&'r self, target: &ObjectName) -> impl Iterator<Item = &'r ObjectName> + use<'r> {
        self.0.get(target).into_iter().flatten()
    }

    pub(super) fn add(&mut self, target: ObjectName, name: &ObjectName) {
        self.0.entry(target).or_default().insert(name.clone());
    }

    /// Forgets one reference, and a target without any.
    pub(super) fn remove(&mut self, target: &ObjectName, name: &ObjectName) {
        if let Some(names) = self.0.get_mut(target) {
            names.remove(name);
            if names.is_empty() {
                self.0.remove(target);
            }
        }
    }
}
