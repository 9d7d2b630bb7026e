//! What the receiver of a watch gets.

use super::objects::Name;

/// A change of what a watch covers, or of whether it can be read.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<K> {
    /// What is new, different or gone. The first one contains every object, and comes even if none exists.
    Changed {
        /// New and changed objects, as they are now.
        applied: Vec<K>,
        /// Objects that no longer exist.
        deleted: Vec<Name>,
    },
    /// The objects cannot be read, for this reason; earlier events remain valid as far as is known. The next
    /// [`Event::Changed`] says that they can be read again.
    Unreadable(String),
}

impl<K> Event<K> {
    /// Nothing has changed, and the objects can be read.
    pub(super) fn unchanged() -> Self {
        Self::Changed { applied: Vec::new(), deleted: Vec::new() }
    }

    /// Updates the known state of the one object of a [named](super::ObjectWatch::named) watch. An event without any object
    /// means that nothing has changed: only a repeated list reports it.
    pub fn update(self, known: &mut Option<K>) {
        let Self::Changed { mut applied, deleted } = self else { return };
        if let Some(object) = applied.pop() {
            *known = Some(object);
        } else if !deleted.is_empty() {
            *known = None;
        }
    }
}
