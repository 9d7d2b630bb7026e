//! The objects held for each namespace, within its share.
//!
//! Users with write access to a namespace choose how many objects it has, and how large they are. The controller holds
//! the oldest objects of a namespace that fit into its share and leaves out the newer ones, which therefore grant
//! nothing: what worked before keeps working, also after a restart. An IngressBackend that is left out reports it in
//! its status; for other kinds there is one problem per namespace.
//!
//! Watches hand over objects as soon as they are decoded ([`Holdings::put`]), and the source takes what has changed
//! since its last call ([`Holdings::drain`]). Only the newest state of each object is pending, so that changes do not
//! pile up if they arrive faster than they are compiled.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tidegate_crds::Finding;
use tidegate_runtime::logging::LogThrottle;
use tracing::warn;

use crate::metrics::NamespaceGauge;
use crate::object::kinds::kinds;
use crate::object::stored::{Stored, size};
use crate::object::unreadable::Unreadable;
use crate::object::{Change, Kind, Object, ObjectKey};
use crate::source::{ProblemSeverity, SourceProblem};

/// The most bytes of memory that the objects of one namespace may take.
pub(super) const SHARE: usize = 48 << 20;
/// Objects of a namespace that are recorded by name when left out; of more, nothing is recorded.
const MOST_NOTED: usize = 256;

/// The objects of all namespaces. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Holdings {
    share: usize,
    left_out: NamespaceGauge,
    log: Arc<LogThrottle<Arc<str>>>,
    state: Arc<Mutex<HeldNamespaces>>,
}

/// The two change together, so that a change that is pending is always about the object that is held.
#[derive(Debug, Default)]
struct HeldNamespaces {
    namespaces: HashMap<Arc<str>, NamespaceHoldings>,
    /// Changes that the source has not taken yet.
    pending: BTreeMap<ObjectKey, Change>,
}

/// One namespace: its objects with their sizes, by name and by age, and those without room.
#[derive(Debug, Default)]
struct NamespaceHoldings {
    bytes: usize,
    held: BTreeMap<ObjectKey, Holding>,
    by_age: BTreeSet<(Option<Time>, ObjectKey)>,
    /// At most [`MOST_NOTED`], with their sizes in bytes.
    left_out: BTreeMap<ObjectKey, usize>,
    /// Whether more objects are left out than are recorded.
    has_more: bool,
    /// Whether memory was freed since objects were last left out.
    has_new_room: bool,
}

/// What is remembered of an object that is held. The object itself is in the index.
#[derive(Debug)]
struct Holding {
    /// The creation time. Every object of an API server has one.
    created: Option<Time>,
    bytes: usize,
    /// Builds the status of an object that is left out, for kinds with a status.
    status_of: Option<Box<StatusOf>>,
}

/// What the status of an object needs beside its name, so that it can be written although the object is not held.
#[derive(Clone, Debug, PartialEq)]
struct StatusOf {
    uid: Option<String>,
    generation: Option<i64>,
}

impl Holdings {
    /// Empty holdings. `share` is in bytes.
    pub(super) fn new(share: usize, left_out: NamespaceGauge) -> Self {
        Self { share, left_out, log: Arc::default(), state: Arc::default() }
    }

    /// Adds or replaces an object. Returns whether it is held, or recorded as left out.
    pub(super) fn put(&self, object: Object) -> bool {
        let mut key = object.key();
        let mut state = self.lock();
        if !has_share(key.kind) {
            state.pending.insert(key, Change::Apply { object, origin: None });
            return true;
        }
        let HeldNamespaces { namespaces, pending } = &mut *state;
        if let Some((name, _)) = namespaces.get_key_value(&key.name.namespace) {
            // One allocation for all of its objects.
            key.name.namespace = name.clone();
        }
        let namespace = namespaces.entry(key.name.namespace.clone()).or_default();
        namespace.release(&key);
        let holding = Holding::of(&object);
        let Some(evicted) = namespace.make_room(&key, &holding, self.share) else {
            let is_noted = self.leave_out(namespace, pending, key, &holding);
            return is_noted;
        };
        for other in evicted {
            if let Some(holding) = namespace.release(&other) {
                self.leave_out(namespace, pending, other, &holding);
            }
        }
        namespace.hold(key.clone(), holding);
        self.count(&key.name.namespace, namespace);
        pending.insert(key, Change::Apply { object, origin: None });
        true
    }

    /// Removes a deleted object.
    pub(super) fn forget(&self, key: ObjectKey) {
        let mut state = self.lock();
        let HeldNamespaces { namespaces, pending } = &mut *state;
        if let Some(namespace) = namespaces.get_mut(&key.name.namespace) {
            namespace.release(&key);
            self.count(&key.name.namespace, namespace);
            if namespace.is_empty() {
                namespaces.remove(&key.name.namespace);
            }
        }
        pending.insert(key.clone(), Change::Delete(key));
    }

    /// What has changed since the last call, each object once.
    pub(super) fn drain(&self) -> Vec<Change> {
        std::mem::take(&mut self.lock().pending).into_values().collect()
    }

    /// One problem for each namespace with objects that are left out.
    pub(super) fn problems(&self) -> Vec<SourceProblem> {
        let state = self.lock();
        let full = state.namespaces.iter().filter(|(_, namespace)| namespace.leaves_out());
        let mut problems: Vec<_> =
            full.map(|(name, namespace)| namespace.problem(name, self.share)).collect();
        problems.sort();
        problems
    }

    /// The kinds with objects that were left out and may fit now. They have to be listed again.
    pub(super) fn take_new_room(&self) -> BTreeSet<Kind> {
        let mut kinds = BTreeSet::new();
        for namespace in self.lock().namespaces.values_mut() {
            if std::mem::take(&mut namespace.has_new_room) {
                let room = self.share.saturating_sub(namespace.bytes);
                let fitting = namespace.left_out.iter().filter(|(_, bytes)| **bytes <= room);
                kinds.extend(fitting.map(|(key, _)| key.kind));
                if std::mem::take(&mut namespace.has_more) {
                    kinds.extend(shared_kinds());
                }
            }
        }
        kinds
    }

    /// Leaves out an object and denies what it grants. Returns whether it is recorded.
    fn leave_out(
        &self,
        namespace: &mut NamespaceHoldings,
        pending: &mut BTreeMap<ObjectKey, Change>,
        key: ObjectKey,
        holding: &Holding,
    ) -> bool {
        let name = key.name.namespace.clone();
        let is_noted = namespace.left_out.len() < MOST_NOTED;
        let change = match &holding.status_of {
            Some(status_of) if is_noted => {
                let object = Object::Unreadable(status_of.left_out(&key, self.share).into());
                Change::Apply { object, origin: None }
            }
            _ => Change::Delete(key.clone()),
        };
        pending.insert(key.clone(), change);
        if is_noted {
            namespace.left_out.insert(key, holding.bytes);
        }
        namespace.has_more |= !is_noted;
        self.count(&name, namespace);
        if self.log.admits(&name, Instant::now()) {
            warn!(namespace = %name, "{}", namespace.problem(&name, self.share).message);
        }
        is_noted
    }

    fn count(&self, name: &Arc<str>, namespace: &NamespaceHoldings) {
        self.left_out.set(name, namespace.left_out.len());
    }

    fn lock(&self) -> MutexGuard<'_, HeldNamespaces> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

macro_rules! define_shares {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// Whether objects of a kind count towards the share.
        fn has_share(kind: Kind) -> bool {
            match kind {
                $(Kind::$kind => <$type as Stored>::HAS_SHARE,)*
            }
        }

        /// Whether objects of a kind have a status.
        fn has_status(kind: Kind) -> bool {
            match kind {
                $(Kind::$kind => <$type as Stored>::custom().is_some(),)*
            }
        }

        /// The kinds whose objects count towards the share.
        fn shared_kinds() -> impl Iterator<Item = Kind> {
            [$(Kind::$kind),*].into_iter().filter(|kind| has_share(*kind))
        }
    };
}

kinds!(define_shares);

impl NamespaceHoldings {
    /// The newer objects to leave out so that this one fits; `None` if it does not fit beside the older ones.
    fn make_room(&self, key: &ObjectKey, holding: &Holding, share: usize) -> Option<Vec<ObjectKey>> {
        let mut room = share.saturating_sub(self.bytes);
        let mut evicted = Vec::new();
        for (created, newest) in self.by_age.iter().rev() {
            if room >= holding.bytes || (created, newest) < (&holding.created, key) {
                break;
            }
            room += self.held.get(newest).map_or(0, |holding| holding.bytes);
            evicted.push(newest.clone());
        }
        (room >= holding.bytes).then_some(evicted)
    }

    fn hold(&mut self, key: ObjectKey, holding: Holding) {
        self.bytes += holding.bytes;
        self.by_age.insert((holding.created.clone(), key.clone()));
        self.held.insert(key, holding);
    }

    /// Removes an object, held or left out. Its room is there for others after the next list.
    fn release(&mut self, key: &ObjectKey) -> Option<Holding> {
        self.left_out.remove(key);
        let holding = self.held.remove(key)?;
        self.by_age.remove(&(holding.created.clone(), key.clone()));
        self.bytes -= holding.bytes;
        self.has_new_room = true;
        Some(holding)
    }

    /// Whether any object of the namespace has no room.
    fn leaves_out(&self) -> bool {
        self.has_more || !self.left_out.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.held.is_empty() && !self.leaves_out()
    }

    /// One problem for all of a namespace's objects that have no room, naming the first of them.
    fn problem(&self, name: &str, share: usize) -> SourceProblem {
        let first = self.left_out.keys().next().map(|key| format!(", {key} among them")).unwrap_or_default();
        let at_least = if self.has_more { "more than " } else { "" };
        SourceProblem {
            file: format!("Namespace {name}"),
            line: 0,
            column: 0,
            field: None,
            object: Some(format!("Namespace {name}")),
            severity: ProblemSeverity::Error,
            message: format!(
                "{at_least}{} objects are not read{first}: {}",
                self.left_out.len(),
                beyond_share(share)
            ),
        }
    }
}

impl Holding {
    fn of(object: &Object) -> Self {
        let metadata = object.metadata();
        let status_of = has_status(object.kind())
            .then(|| StatusOf { uid: metadata.uid.clone(), generation: metadata.generation }.into());
        Self { created: metadata.creation_timestamp.clone(), bytes: size::of(object), status_of }
    }
}

impl StatusOf {
    /// The object as one that cannot be read, which may open any port, so that its rules deny and its status gives
    /// the reason.
    fn left_out(&self, key: &ObjectKey, share: usize) -> Unreadable {
        let metadata = ObjectMeta {
            namespace: Some(key.name.namespace.to_string()),
            name: Some(key.name.name.to_string()),
            uid: self.uid.clone(),
            generation: self.generation,
            ..ObjectMeta::default()
        };
        Unreadable::about_anything(
            key.kind,
            metadata,
            Finding::error("metadata.namespace", beyond_share(share)),
        )
    }
}

/// Why an object is left out, and what to do.
fn beyond_share(share: usize) -> String {
    let share = share >> 20;
    format!(
        "all objects of one namespace may take {share} MiB of the controller's memory, and the older ones leave no room: \
         delete what is not needed, or use several namespaces"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::ObjectName;
    use crate::object::stored::{custom, lean};

    const MIB: usize = 1 << 20;

    fn holdings(share: usize) -> Holdings {
        Holdings::new(share, NamespaceGauge::default())
    }

    /// A Service of a quarter of a mebibyte, created at this second.
    fn service(namespace: &str, name: &str, second: u32) -> Object {
        let ports: Vec<_> = (0..8).map(|i| json!({"port": i + 1, "name": "x".repeat(32 * 1024)})).collect();
        let created = format!("2026-01-01T00:00:{second:02}Z");
        let metadata = json!({"namespace": namespace, "name": name, "creationTimestamp": created});
        let text = json!({"metadata": metadata, "spec": {"ports": ports}}).to_string();
        Object::Service(lean::service(&text).unwrap().into())
    }

    fn backend(name: &str, second: u32, bytes: usize) -> Object {
        let created = format!("2026-01-01T00:00:{second:02}Z");
        let sources: Vec<_> = (0..bytes.div_ceil(2048))
            .map(|_| json!({"kind": "AuthenticatedPrincipal", "name": "x".repeat(2048)}))
            .collect();
        let metadata =
            json!({"namespace": "shop", "name": name, "creationTimestamp": created, "generation": 7});
        let text = json!({"metadata": metadata, "spec": {"backends": [], "sources": sources}}).to_string();
        custom::decode::<tidegate_crds::IngressBackend>(&text).unwrap()
    }

    fn key(kind: Kind, name: &str) -> ObjectKey {
        ObjectKey { kind, name: ObjectName::new("shop", name) }
    }

    /// The drained changes: `+name` for an applied object, `!name` for one that denies, `-name` for a deleted one.
    fn drained(holdings: &Holdings) -> Vec<String> {
        let shown = holdings.drain().into_iter().map(|change| match change {
            Change::Apply { object: Object::Unreadable(object), .. } => format!("!{}", object.name().name),
            Change::Apply { object, .. } => format!("+{}", object.key().name.name),
            Change::Delete(key) => format!("-{}", key.name.name),
        });
        shown.collect()
    }

    #[test]
    fn the_oldest_objects_of_a_namespace_are_held_in_whatever_order_they_come() {
        let orders = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [4, 6, 1, 5, 2, 3]];
        for order in orders {
            let holdings = holdings(MIB);
            for second in order {
                assert!(holdings.put(service("shop", &format!("s{second}"), second)));
            }
            assert_eq!(drained(&holdings), ["+s1", "+s2", "+s3", "-s4", "-s5", "-s6"], "{order:?}");
            let problems = holdings.problems();
            assert_eq!(
                problems[0].to_string(),
                "Namespace shop: error: 3 objects are not read, Service shop/s4 among them: all objects of one namespace \
                 may take 1 MiB of the controller's memory, and the older ones leave no room: delete what is not needed, or \
                 use several namespaces"
            );
            assert_eq!(holdings.left_out.value("shop"), 3);
        }
    }

    #[test]
    fn another_namespace_has_a_share_of_its_own() {
        let holdings = holdings(MIB);
        for second in 1..=8 {
            holdings.put(service("hostile", &format!("s{second}"), second));
        }
        holdings.put(service("shop", "late", 59));
        assert!(drained(&holdings).contains(&"+late".to_owned()));
        assert_eq!((holdings.left_out.value("hostile"), holdings.left_out.value("shop")), (5, 0));
    }

    #[test]
    fn a_policy_that_is_left_out_denies_and_says_why_also_when_an_older_one_takes_its_place() {
        let holdings = holdings(MIB);
        holdings.put(backend("new", 30, MIB / 2));
        assert_eq!(drained(&holdings), ["+new"]);
        holdings.put(backend("newest", 31, MIB / 2));
        holdings.put(backend("old", 1, MIB / 2));
        let changes = holdings.drain();
        let denied: Vec<_> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Apply { object: Object::Unreadable(object), .. } => Some(object),
                _ => None,
            })
            .collect();
        assert_eq!(denied.len(), 2, "{changes:?}");
        for object in denied {
            assert!(
                object
                    .reason()
                    .starts_with("metadata.namespace: all objects of one namespace may take 1 MiB")
            );
            assert!(object.may_open("shop/any", 80));
            assert_eq!(object.metadata.generation, Some(7), "its status refers to the stored generation");
        }
    }

    #[test]
    fn what_was_left_out_is_asked_for_again_once_it_may_fit_and_not_before() {
        let holdings = holdings(MIB);
        for second in 1..=4 {
            holdings.put(service("shop", &format!("s{second}"), second));
        }
        holdings.take_new_room();
        holdings.drain();
        holdings.put(service("shop", "s1", 1));
        assert_eq!(holdings.take_new_room(), BTreeSet::new(), "an unchanged object frees no memory");
        holdings.forget(key(Kind::Service, "s1"));
        assert_eq!(drained(&holdings), ["-s1"]);
        assert_eq!(holdings.take_new_room(), [Kind::Service].into());
        assert_eq!(holdings.take_new_room(), BTreeSet::new());
        holdings.put(service("shop", "s4", 4));
        assert_eq!(drained(&holdings), ["+s4"]);
        assert!(holdings.problems().is_empty());
        for name in ["s2", "s3", "s4"] {
            holdings.forget(key(Kind::Service, name));
        }
        assert!(holdings.lock().namespaces.is_empty(), "an empty namespace takes no memory");
    }

    #[test]
    fn of_objects_beyond_the_share_little_is_noted_however_many_there_are() {
        let holdings = holdings(MIB);
        for second in 1..=3 {
            holdings.put(service("shop", &format!("s{second}"), second));
        }
        for i in 0..MOST_NOTED {
            assert!(holdings.put(service("shop", &format!("x{i}"), 30)));
        }
        holdings.drain();
        assert!(!holdings.put(service("shop", "y", 31)), "its name is not recorded either");
        assert_eq!(drained(&holdings), ["-y"]);
        assert!(holdings.problems()[0].message.starts_with("more than 256 objects are not read"));
        holdings.forget(key(Kind::Service, "s1"));
        assert_eq!(
            holdings.take_new_room(),
            shared_kinds().collect::<BTreeSet<_>>(),
            "an object that is not recorded may be of any kind"
        );
    }

    #[test]
    fn changes_that_come_faster_than_they_are_taken_do_not_pile_up() {
        let holdings = holdings(MIB);
        for _ in 0..50 {
            holdings.put(service("shop", "s", 1));
        }
        holdings.forget(key(Kind::Service, "s"));
        holdings.put(service("shop", "s", 2));
        assert_eq!(drained(&holdings), ["+s"]);
    }
}
