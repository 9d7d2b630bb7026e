//! What each kind has to say: the rules that its objects are, and whether these are in force, as their status says.
//!
//! A kind implements [`Compiled`]; whatever is generic over kinds (all statuses, all rules of a namespace, what a
//! change affects) is generated from the table of kinds. A status is a function of the index: it is computed again
//! when something that it rests on has changed, and compared with the one before by its writer.

pub(crate) mod parents;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_core::ObjectRef;
use tidegate_core::policy::IngressRule;
use tidegate_crds::ServiceEntry;

use super::fault::ObjectFault;
use crate::index::{Affected, Index, RouteObject};
use crate::object::kinds::kinds;
use crate::object::secret::BasicAuthSecret;
use crate::object::stored::Stored;
use crate::object::unreadable::Unreadable;
use crate::object::{Kind, ObjectKey, ObjectName};

use parents::ParentStatus;

/// What OSM's users see of an object that is in force.
const COMMITTED: &str = "successfully committed by the system";

/// The reason of the condition `Accepted` of an object that is in force.
pub(crate) const ACCEPTED: &str = "Accepted";

/// Whether an object is in force, and what its author should know besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStatus {
    /// Whether it is.
    pub current: CurrentStatus,
    /// Why. Of several errors the first one, in the order of the object's fields.
    pub reason: String,
    /// What is likely not meant.
    pub warnings: Vec<String>,
    /// `metadata.generation` of the object that this is said of. Files have none.
    pub observed_generation: Option<i64>,
    /// The reason of its condition `Accepted` in one word; `None` for kinds without this condition.
    pub condition: Option<&'static str>,
    /// Whether what it refers to works; `None` if that is not known, or not looked at.
    pub health: Option<HealthCondition>,
    /// What a route says of each parent that is ours; `None` for kinds without parents.
    pub(crate) parents: Option<Vec<ParentStatus>>,
}

/// The condition `Healthy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCondition {
    /// Its status.
    pub is_healthy: bool,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

/// `status.currentStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentStatus {
    /// In force.
    Committed,
    /// Not, or not all of it.
    Error,
}

/// A kind that policies are compiled from. Its implementation is the kind's file in `compile/`.
pub(crate) trait Compiled: Stored {
    /// The statuses of its objects that are wanted. None for kinds that have no status of ours.
    fn statuses(_: &StatusScope<'_>) -> Vec<Judged> {
        Vec::new()
    }

    /// What its objects grant at the ports of a namespace's Services, in the order of the objects.
    fn rules(_: &Index, _namespace: &str) -> Vec<PortRule> {
        Vec::new()
    }

    /// Whether the status of this object, if it is still there, may be another than before.
    fn is_affected(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.is_affected(&name.namespace)
    }

    /// Whether the status of this object is reported.
    fn is_wanted(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.wants(&name.namespace)
    }
}

impl Compiled for Namespace {}
impl Compiled for ServiceAccount {}
impl Compiled for Service {}
impl Compiled for EndpointSlice {}
impl Compiled for Pod {}
impl Compiled for Node {}
impl Compiled for BasicAuthSecret {}

/// What an object grants at a port of the workloads behind a Service.
pub(crate) struct PortRule {
    pub(crate) port: u16,
    /// Names the object and the Service.
    pub(crate) rule: IngressRule,
}

/// An object's status, and what it is said of.
pub(crate) struct Judged {
    pub(crate) name: ObjectName,
    pub(crate) status: ObjectStatus,
    pub(crate) uid: Option<String>,
    /// Whether all that is wrong is that objects which it names are not there.
    pub(crate) is_incomplete: bool,
}

/// Which statuses are wanted, and what they rest on.
pub(crate) struct StatusScope<'s> {
    pub(crate) index: &'s Index,
    /// Those of all objects.
    pub(crate) all: bool,
    /// Those of these namespaces.
    namespaces: BTreeSet<&'s str>,
    /// Those of routes with these names.
    routes: Option<&'s BTreeSet<ObjectName>>,
    /// Those of ServiceEntries with these names.
    entries: Option<&'s BTreeSet<ObjectName>>,
    /// None of other meshes, whose controllers speak for them.
    only_ours: bool,
    /// Whether [`Judged::is_incomplete`] is to be found out.
    pub(crate) asks_for_missing: bool,
    /// The objects whose rules have no room at a workload.
    pub(crate) without_room: BTreeSet<&'s ObjectRef>,
}

impl<'s> StatusScope<'s> {
    /// Every status.
    pub(crate) fn everything(index: &'s Index) -> Self {
        Self {
            index,
            all: true,
            namespaces: BTreeSet::new(),
            routes: None,
            entries: None,
            only_ours: false,
            asks_for_missing: true,
            without_room: BTreeSet::new(),
        }
    }

    /// What may have changed.
    pub(crate) fn affected(
        index: &'s Index,
        affected: &'s Affected,
        without_room: BTreeSet<&'s ObjectRef>,
    ) -> Self {
        let of_pods = affected.pods.iter().map(|pod| &*pod.namespace);
        let others = affected.namespaces.iter().chain(&affected.policies).map(|namespace| &**namespace);
        Self {
            index,
            all: affected.all,
            namespaces: of_pods.chain(others).collect(),
            routes: Some(&affected.routes),
            entries: Some(&affected.entries),
            only_ours: true,
            asks_for_missing: false,
            without_room,
        }
    }

    /// Whether statuses of a namespace are reported.
    pub(crate) fn wants(&self, namespace: &str) -> bool {
        self.is_affected(namespace) && !self.is_of_another_mesh(namespace)
    }

    /// Whether another mesh's controller speaks for a namespace, and this scope leaves it to do so.
    pub(super) fn is_of_another_mesh(&self, namespace: &str) -> bool {
        self.only_ours && self.index.is_of_another_mesh(namespace)
    }

    /// Whether a change of this namespace may change a status.
    fn is_affected(&self, namespace: &str) -> bool {
        self.all || self.namespaces.contains(namespace)
    }

    /// The routes whose status may have changed.
    pub(super) fn routes(&self) -> impl Iterator<Item = RouteObject<'s>> {
        let (index, names) = (self.index, self.routes.filter(|_| !self.all));
        let named = names.into_iter().flatten().flat_map(|name| index.routes_named(name));
        let all = names.is_none().then(|| index.routes());
        named.chain(all.into_iter().flatten())
    }

    /// The ServiceEntries whose status may have changed.
    pub(super) fn service_entries(&self) -> impl Iterator<Item = (&'s ObjectName, &'s Arc<ServiceEntry>)> {
        let (entries, names) = (self.index.service_entries(), self.entries.filter(|_| !self.all));
        let named = names.into_iter().flatten().filter_map(|name| entries.entry(name));
        let all = names.is_none().then(|| entries.iter());
        named.chain(all.into_iter().flatten())
    }

    /// Whether the status of this ServiceEntry may have changed.
    pub(super) fn concerns_entry(&self, name: &ObjectName) -> bool {
        self.all || self.entries.is_some_and(|entries| entries.contains(name))
    }

    /// Whether the status of the routes with this name may have changed.
    pub(super) fn concerns_route(&self, name: &ObjectName) -> bool {
        self.all || self.routes.is_some_and(|routes| routes.contains(name))
    }
}

macro_rules! define_statuses {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// The wanted statuses of all kinds, also of objects that cannot be read.
        pub(crate) fn statuses(scope: &StatusScope<'_>) -> Vec<(Kind, Judged)> {
            let mut all = Vec::new();
            $(all.extend(<$type as Compiled>::statuses(scope).into_iter().map(|judged| (Kind::$kind, judged)));)*
            let unreadable = scope.index.unreadable().filter(|(key, _)| match key.kind {
                $(Kind::$kind => <$type as Compiled>::is_wanted(scope, &key.name),)*
            });
            all.extend(unreadable.map(|(key, object)| {
                let (name, uid) = (key.name.clone(), object.metadata.uid.clone());
                (key.kind, Judged { name, status: unreadable_status(object), uid, is_incomplete: false })
            }));
            all
        }

        /// What the objects of all kinds grant at the ports of a namespace's Services.
        pub(crate) fn rules(index: &Index, namespace: &str) -> Vec<PortRule> {
            let mut all = Vec::new();
            $(all.extend(<$type as Compiled>::rules(index, namespace));)*
            all
        }

        /// Whether the status of this object, if it is still there, may be another than before.
        pub(crate) fn is_affected(scope: &StatusScope<'_>, key: &ObjectKey) -> bool {
            match key.kind {
                $(Kind::$kind => <$type as Compiled>::is_affected(scope, &key.name),)*
            }
        }
    };
}

kinds!(define_statuses);

/// The status of an object that cannot be read.
fn unreadable_status(object: &Unreadable) -> ObjectStatus {
    let status = ObjectStatus::new(Some(object.reason()), Vec::new(), &object.metadata);
    match object.kind {
        Kind::TrafficTarget
        | Kind::TrafficSplit
        | Kind::HTTPRouteGroup
        | Kind::TCPRoute
        | Kind::ServiceEntry
        | Kind::Retry
        | Kind::EgressProxy
        | Kind::Egress
        | Kind::UpstreamTrafficSetting => status.with_condition("Unreadable"),
        _ => status,
    }
}

impl ObjectStatus {
    /// A status from the first error, if there is one. The generation is the object's, so that a reader sees which
    /// version it is about.
    pub(super) fn new(error: Option<String>, warnings: Vec<String>, of: &ObjectMeta) -> Self {
        let (current, reason) = match error {
            Some(reason) => (CurrentStatus::Error, reason),
            None => (CurrentStatus::Committed, COMMITTED.to_owned()),
        };
        let observed_generation = of.generation;
        Self { current, reason, warnings, observed_generation, condition: None, health: None, parents: None }
    }

    /// The same with the condition `Accepted`, of which the fault's word is the reason.
    pub(super) fn judged(fault: Option<ObjectFault>, warnings: Vec<String>, of: &ObjectMeta) -> Self {
        let word = fault.as_ref().map_or(ACCEPTED, |fault| fault.word);
        Self::new(fault.map(|fault| fault.reason), warnings, of).with_condition(word)
    }

    /// With a condition `Accepted` of this reason.
    pub(super) fn with_condition(self, reason: &'static str) -> Self {
        Self { condition: Some(reason), ..self }
    }

    /// With a condition `Healthy`. What is wrong is a warning, too, which logs and commands show.
    pub(super) fn with_health(mut self, health: HealthCondition) -> Self {
        if !health.is_healthy {
            self.warnings.push(health.message.clone());
        }
        Self { health: Some(health), ..self }
    }

    /// With what a route says of its parents.
    pub(super) fn with_parents(self, parents: Vec<ParentStatus>) -> Self {
        Self { parents: Some(parents), ..self }
    }
}

impl CurrentStatus {
    /// The text in `status.currentStatus`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Error => "error",
        }
    }
}
