//! A JSON patch (RFC 6902), built step by step.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Value, json};

/// Operations in the order of application.
#[derive(Debug, Default)]
pub(crate) struct PatchBuilder(Vec<PatchOperation>);

impl PatchBuilder {
    /// Adds a member or inserts an item at an index; `-` as the last element of the path appends to a list.
    pub(crate) fn add(&mut self, path: &[&str], value: Value) {
        self.0.push(PatchOperation::Add(AddOperation { path: pointer(path), value }));
    }

    /// Replaces a value, which must exist.
    pub(crate) fn replace(&mut self, path: &[&str], value: Value) {
        self.0.push(PatchOperation::Replace(ReplaceOperation { path: pointer(path), value }));
    }

    /// Removes a value, which must exist. The indexes behind it in a list become smaller by one.
    pub(crate) fn remove(&mut self, path: &[&str]) {
        self.0.push(PatchOperation::Remove(RemoveOperation { path: pointer(path) }));
    }

    /// Sets entries of a map of texts such as `metadata.labels`, whose current content is `current`.
    pub(crate) fn set_entries(
        &mut self,
        path: &[&str],
        current: Option<&BTreeMap<String, String>>,
        entries: &[(&str, &str)],
    ) {
        let Some(current) = current else {
            let map: serde_json::Map<_, _> =
                entries.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            if !map.is_empty() {
                self.add(path, Value::Object(map));
            }
            return;
        };
        for (name, value) in entries {
            if current.get(*name).map(String::as_str) != Some(value) {
                // Adding an existing member replaces it.
                self.add(&[path, &[name]].concat(), json!(value));
            }
        }
    }

    /// Appends to a list; `exists` says whether it already exists.
    pub(crate) fn append(&mut self, path: &[&str], exists: bool, items: Vec<Value>) {
        if items.is_empty() {
            return;
        }
        if !exists {
            return self.add(path, Value::Array(items));
        }
        for item in items {
            self.add(&[path, &["-"]].concat(), item);
        }
    }

    /// The operations so far.
    pub(crate) fn finish(self) -> Patch {
        Patch(self.0)
    }
}

/// A JSON pointer (RFC 6901) from unescaped member names and indexes.
fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied())
}
