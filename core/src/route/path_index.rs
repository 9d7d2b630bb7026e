//! Finds the first of many conditions on the path that a request meets, without trying all of them.

use std::sync::Arc;

use super::matching::PathMatch;

/// Conditions on the path, by what each path that meets them begins with: all of it, a prefix, or the literal text before
/// the first operator of a regular expression.
///
/// A look-up costs a binary search for each length of these texts, and tries the conditions whose text the path begins
/// with. Expressions that begin with an operator are all tried.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathIndex {
    /// The text of each condition, and its number. Sorted.
    entries: Vec<(Arc<str>, usize)>,
    /// The lengths of the texts, ascending.
    lengths: Vec<usize>,
}

impl PathIndex {
    /// Conditions are numbered from 0; `None` is met by every path.
    pub(crate) fn new<'m>(conditions: impl Iterator<Item = Option<&'m PathMatch>>) -> Self {
        let texts = conditions.map(|condition| condition.map(PathMatch::beginning).unwrap_or_default());
        let mut entries: Vec<_> = texts.zip(0..).collect();
        entries.sort_unstable();
        let mut lengths: Vec<_> = entries.iter().map(|(text, _)| text.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self { entries, lengths }
    }

    /// The lowest number for which `is_met` holds. Only conditions that this path may meet are tried. Allocates nothing.
    pub(crate) fn first(&self, path: &[u8], is_met: impl Fn(usize) -> bool) -> Option<usize> {
        let mut first = None;
        for beginning in self.lengths.iter().map_while(|length| path.get(..*length)) {
            let candidates = equal_range(&self.entries, |(text, _)| text.as_bytes(), beginning).iter();
            let mut earlier = candidates
                .map(|(_, number)| *number)
                .take_while(|number| first.is_none_or(|first| *number < first));
            first = earlier.find(|number| is_met(*number)).or(first);
        }
        first
    }
}

/// The entries with this key, of a list sorted by key.
pub(super) fn equal_range<'t, T>(entries: &'t [T], key: impl Fn(&T) -> &[u8], wanted: &[u8]) -> &'t [T] {
    let start = entries.partition_point(|entry| key(entry) < wanted);
    let rest = entries.get(start..).unwrap_or_default();
    let len = rest.partition_point(|entry| key(entry) == wanted);
    rest.get(..len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn expressions_are_tried_only_where_the_path_has_their_beginning() {
        let conditions = [
            Some(PathMatch::regex("/books/[0-9]+").unwrap()),
            Some(PathMatch::exact("/books/1").unwrap()),
            Some(PathMatch::regex("/b(ooks|ikes)?").unwrap()),
            Some(PathMatch::regex("/admin|/books/1").unwrap()),
            Some(PathMatch::regex("/shops.*").unwrap()),
            Some(PathMatch::prefix("/books").unwrap()),
            None,
        ];
        let index = PathIndex::new(conditions.iter().map(Option::as_ref));
        let tried = std::cell::RefCell::new(Vec::new());
        let never = |number| {
            tried.borrow_mut().push(number);
            false
        };
        assert_eq!(index.first(b"/books/1", never), None);
        tried.borrow_mut().sort_unstable();
        assert_eq!(*tried.borrow(), [0, 1, 2, 3, 5, 6]);
    }

    fn condition() -> impl Strategy<Value = Option<PathMatch>> {
        let piece = prop::sample::select(vec![
            "/", "a", "b", ".", ".*", "a?", "b+", "(a|b)", "(?:ab)*", "[ab]", "|", "\\.", "(?i)a", "^",
            "a{2}",
        ]);
        let pattern = prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat());
        let pattern = pattern.prop_filter_map("no expression", |text| PathMatch::regex(&text).ok());
        let path = "(/[ab]{0,2}){1,2}".prop_filter_map("no path", |text| PathMatch::exact(&text).ok());
        let prefix = "(/[ab]{0,2}){1,2}".prop_filter_map("no path", |text| PathMatch::prefix(&text).ok());
        prop_oneof![6 => pattern.prop_map(Some), 1 => path.prop_map(Some), 1 => prefix.prop_map(Some), 1 => Just(None)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn the_first_is_the_one_that_trying_all_in_turn_finds(
            conditions in prop::collection::vec(condition(), 0..8),
            path in "(/[aAb.]{0,3}){1,3}|\\*",
        ) {
            let index = PathIndex::new(conditions.iter().map(Option::as_ref));
            let path = path.as_bytes();
            let is_met = |number: usize| conditions[number].as_ref().is_none_or(|one| one.matches(path));
            prop_assert_eq!(index.first(path, is_met), (0..conditions.len()).find(|number| is_met(*number)));
        }
    }
}
