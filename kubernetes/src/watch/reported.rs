//! Which objects the receiver of a watch has, so that only differences are reported.

use std::collections::HashMap;

use super::event::Event;
use super::objects::Name;

/// An object of a list or of an event.
pub(super) struct Listed<K> {
    pub(super) name: Name,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// `None` if nothing of it is kept.
    pub(super) object: Option<K>,
}

/// The names of the objects that were reported, with the version of each; about 200 bytes per object.
#[derive(Default)]
pub(super) struct ReportedVersions(HashMap<Name, String>);

impl ReportedVersions {
    /// How a complete list differs from what was reported.
    pub(super) fn differences<K>(&mut self, objects: Vec<Listed<K>>) -> Event<K> {
        let mut gone = std::mem::take(&mut self.0);
        let mut applied = Vec::new();
        for Listed { name, version, object } in objects {
            if gone.remove(&name).is_none_or(|reported| reported != version) {
                applied.extend(object);
            }
            self.0.insert(name, version);
        }
        Event::Changed { applied, deleted: gone.into_keys().collect() }
    }

    /// The report of a new or changed object; `None` if this version was reported already.
    pub(super) fn applied<K>(&mut self, Listed { name, version, object }: Listed<K>) -> Option<Event<K>> {
        let Some(object) = object else {
            // It may have been held before.
            self.0.remove(&name);
            return Some(Event::unchanged());
        };
        let before = self.0.insert(name, version.clone());
        // After a resumption an event may come twice.
        if before.is_some_and(|before| before == version) {
            return None;
        }
        Some(Event::Changed { applied: vec![object], deleted: Vec::new() })
    }

    /// The report of a deletion; `None` if the object was never reported.
    pub(super) fn deleted<K>(&mut self, name: Name) -> Option<Event<K>> {
        self.0.remove(&name)?;
        Some(Event::Changed { applied: Vec::new(), deleted: vec![name] })
    }

    /// Has an object that the receiver got outside of an event reported as gone, unless the next list contains it.
    pub(super) fn handed_over(&mut self, name: &Name) {
        self.0.entry(name.clone()).or_default();
    }
}
