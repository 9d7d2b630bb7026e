//! Edits of headers (Gateway API: `HTTPHeaderFilter`).

use serde::Serialize;

use crate::route::error::{Problem, RouteError};
use crate::route::field::{FieldName, FieldValue};

/// Headers to remove and to append.
///
/// Gateway API defines `set`, `add` and `remove`, but no order among them. The order here is `remove`, `set`, `add`, as in
/// Envoy (`HeaderParser`). `set` drops every line of a name and appends one; `add` appends a line, which adds a value to
/// the field's list (RFC 9110 §5.3). An edit is therefore two lists: names whose lines are dropped, and lines that are
/// appended. A codec needs no map for it: it copies the lines that are not dropped, then appends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdits {
    dropped: Vec<FieldName>,
    appended: Vec<(FieldName, FieldValue)>,
}

/// Names that a route may not edit, and why (RFC 9110 §7.6.1). Envoy refuses `:`-headers and `host`, too.
const PROTECTED: [(&str, &str); 9] = [
    ("connection", "it is about one connection"),
    ("keep-alive", "it is about one connection"),
    ("proxy-connection", "it is about one connection"),
    ("te", "it is about one connection"),
    ("trailer", "it is about how the message is sent"),
    ("transfer-encoding", "it is about how the message is sent"),
    ("content-length", "it is about how the message is sent"),
    ("upgrade", "it is about one connection"),
    ("host", "use a rewrite of the hostname"),
];

impl HeaderEdits {
    /// Edits from names and values.
    pub fn new(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Result<Self, RouteError> {
        let line = |list: &str, i: usize, (name, value): &(&str, &str)| {
            let within = |error: RouteError| error.within(&format!("{list}[{i}]"));
            Ok((editable(name).map_err(within)?, FieldValue::parse(value).map_err(within)?))
        };
        let lines = |list: &str, lines: &[(&str, &str)]| {
            lines
                .iter()
                .enumerate()
                .map(|(i, pair)| line(list, i, pair))
                .collect::<Result<Vec<_>, RouteError>>()
        };
        let mut edits = Self::default();
        for (i, name) in remove.iter().enumerate() {
            edits.drop_name(&editable(name).map_err(|error| error.within(&format!("remove[{i}]")))?);
        }
        for (name, value) in lines("set", set)? {
            edits.drop_name(&name);
            edits.appended.retain(|(known, _)| *known != name);
            edits.appended.push((name, value));
        }
        edits.appended.extend(lines("add", add)?);
        Ok(edits)
    }

    /// Whether a field of this name, in any case, may be edited.
    pub fn may_edit(name: &str) -> bool {
        !name.starts_with(':') && PROTECTED.iter().all(|(protected, _)| !protected.eq_ignore_ascii_case(name))
    }

    /// One edit with the effect of this edit followed by another.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let mut both = self.clone();
        for name in &next.dropped {
            both.drop_name(name);
        }
        both.appended.retain(|(name, _)| !next.dropped.contains(name));
        both.appended.extend(next.appended.iter().cloned());
        both
    }

    /// Whether the lines of this name, in any case, are dropped.
    pub fn drops(&self, name: &[u8]) -> bool {
        self.dropped.iter().any(|dropped| dropped.matches(name))
    }

    /// The names whose lines are dropped.
    pub fn dropped(&self) -> &[FieldName] {
        &self.dropped
    }

    /// The lines to append, in their order.
    pub fn appended(&self) -> impl Iterator<Item = (&FieldName, &FieldValue)> {
        self.appended.iter().map(|(name, value)| (name, value))
    }

    /// Whether the edit has no effect.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.appended.is_empty()
    }

    fn drop_name(&mut self, name: &FieldName) {
        if !self.dropped.contains(name) {
            self.dropped.push(name.clone());
        }
    }
}

fn editable(name: &str) -> Result<FieldName, RouteError> {
    let parsed = FieldName::parse(name)?;
    match PROTECTED.iter().find(|(protected, _)| *protected == parsed.as_str()) {
        Some((_, why)) => Err(RouteError::new("name", name, Problem::ProtectedField(why))),
        None => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(edits: &HeaderEdits, head: &[(String, String)]) -> Vec<(String, String)> {
        let kept = head.iter().filter(|(name, _)| !edits.drops(name.as_bytes())).cloned();
        let appended =
            edits.appended().map(|(name, value)| (name.as_str().to_owned(), value.as_str().to_owned()));
        kept.chain(appended).collect()
    }

    fn head(lines: &[(&str, &str)]) -> Vec<(String, String)> {
        lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn set_replaces_every_line_add_appends_one_and_remove_comes_first() {
        let edits =
            HeaderEdits::new(&[("X-Set", "new")], &[("x-add", "bar,baz"), ("x-gone", "back")], &["X-Gone"]);
        let sent = head(&[("x-add", "foo"), ("X-SET", "a"), ("x-set", "b"), ("x-gone", "c"), ("other", "d")]);
        let expected = head(&[
            ("x-add", "foo"),
            ("other", "d"),
            ("x-set", "new"),
            ("x-add", "bar,baz"),
            ("x-gone", "back"),
        ]);
        assert_eq!(applied(&edits.unwrap(), &sent), expected);
    }

    #[test]
    fn routes_cannot_edit_fields_of_connections_or_codecs() {
        for (name, _) in PROTECTED {
            let error = HeaderEdits::new(&[], &[("a", "b"), (name, "x")], &[]).unwrap_err();
            assert_eq!((error.field.as_str(), error.value.as_str()), ("add[1].name", name));
            assert!(HeaderEdits::new(&[], &[], &[&name.to_uppercase()]).is_err());
            assert!(!HeaderEdits::may_edit(&name.to_uppercase()));
        }
        let error = HeaderEdits::new(&[(":path", "/")], &[], &[]).unwrap_err();
        assert_eq!(error.to_string(), "set[0].name: \":path\" is not a header name");
        let error = HeaderEdits::new(&[("a", "b\r\nc: d")], &[], &[]).unwrap_err();
        assert_eq!(error.problem, Problem::FieldValue);
    }

    fn edits() -> impl Strategy<Value = HeaderEdits> {
        let name = || prop::sample::select(vec!["a", "b", "c"]);
        let line = || (name(), prop::sample::select(vec!["1", "2"]));
        let lines = || prop::collection::vec(line(), 0..3);
        (lines(), lines(), prop::collection::vec(name(), 0..3))
            .prop_map(|(set, add, remove)| HeaderEdits::new(&set, &add, &remove).unwrap())
    }

    proptest! {
        #[test]
        fn a_combined_edit_equals_both_edits_in_turn(
            first in edits(),
            second in edits(),
            sent in prop::collection::vec((prop::sample::select(vec!["a", "B", "d"]), "[xy]"), 0..4),
        ) {
            let sent: Vec<_> = sent.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let one_by_one = applied(&second, &applied(&first, &sent));
            prop_assert_eq!(applied(&first.then(&second), &sent), one_by_one);
        }
    }
}
