//! Entries without addresses at one port, by host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_crds::ServiceEntrySpec;

use crate::object::ObjectName;

/// The entries without addresses that have one port, at which hosts tell connections apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortHosts {
    /// By the hosts that they list, in lower case: names, and `*.` with a suffix.
    by_pattern: BTreeMap<Box<str>, BTreeSet<ObjectName>>,
    /// By the namespace that they are in.
    exporters: BTreeMap<Arc<str>, Exports>,
}

/// The namespaces that the entries of a namespace are exported to: how many of them to each namespace, by its name, and to all (`*`).
type Exports = BTreeMap<Box<str>, usize>;

impl PortHosts {
    /// The entries with a host that matches a name in normal form, each with that host; the most specific first.
    pub(crate) fn matching<'p, 'n>(
        &'p self,
        name: &'n str,
    ) -> impl Iterator<Item = (&'p str, &'p ObjectName)> + use<'p, 'n> {
        let dots = name.match_indices('.').filter_map(|(at, _)| name.get(at..));
        let wildcards = dots.map(|suffix| format!("*{suffix}").into_boxed_str());
        let patterns = [Box::from(name)].into_iter().chain(wildcards);
        let found = patterns.filter_map(|pattern| self.by_pattern.get_key_value(&pattern));
        found.flat_map(|(pattern, names)| names.iter().map(move |name| (&**pattern, name)))
    }

    /// The entries that list this host.
    pub(crate) fn with_pattern(&self, pattern: &str) -> impl Iterator<Item = &ObjectName> {
        self.by_pattern.get(&*normal(pattern)).into_iter().flatten()
    }

    /// Every entry, once for each of its hosts.
    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.by_pattern.values().flatten()
    }

    /// The namespaces that the entries are in.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.exporters.keys()
    }

    /// Whether clients of a namespace see an entry that is in the namespace `own`.
    pub(crate) fn is_seen(&self, own: &str, client: Option<&str>) -> bool {
        let Some(exports) = self.exporters.get(own) else { return false };
        exports.contains_key("*") || client.is_some_and(|client| exports.contains_key(client))
    }

    /// The namespaces to which entries are exported by name.
    pub(crate) fn clients(&self) -> impl Iterator<Item = &str> {
        self.exporters
            .values()
            .flat_map(|exports| exports.keys())
            .map(|name| &**name)
            .filter(|name| *name != "*")
    }

    pub(super) fn insert(&mut self, name: &ObjectName, spec: &ServiceEntrySpec) {
        for pattern in patterns(spec) {
            self.by_pattern.entry(pattern).or_default().insert(name.clone());
        }
        let exports = self.exporters.entry(name.namespace.clone()).or_default();
        for client in clients(name, spec) {
            *exports.entry(client).or_default() += 1;
        }
    }

    /// Returns whether none is left.
    pub(super) fn remove(&mut self, name: &ObjectName, spec: &ServiceEntrySpec) -> bool {
        for pattern in patterns(spec) {
            if let Some(names) = self.by_pattern.get_mut(&pattern) {
                names.remove(name);
                if names.is_empty() {
                    self.by_pattern.remove(&pattern);
                }
            }
        }
        if let Some(exports) = self.exporters.get_mut(&name.namespace) {
            for client in clients(name, spec) {
                if let Some(count) = exports.get_mut(&client) {
                    *count = count.saturating_sub(1);
                }
            }
            exports.retain(|_, count| *count > 0);
            if exports.is_empty() {
                self.exporters.remove(&name.namespace);
            }
        }
        self.by_pattern.is_empty()
    }
}

/// The hosts of an entry, each once.
fn patterns(spec: &ServiceEntrySpec) -> BTreeSet<Box<str>> {
    spec.hosts.iter().map(|host| normal(host)).collect()
}

/// A host as it is compared: in lower case, without a dot at its end.
pub(crate) fn normal(host: &str) -> Box<str> {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase().into()
}

/// The namespaces to which an entry is exported; `*` for all.
fn clients(name: &ObjectName, spec: &ServiceEntrySpec) -> BTreeSet<Box<str>> {
    if spec.export_to.is_empty() {
        return [Box::from("*")].into();
    }
    let named = spec.export_to.iter().filter(|text| *text != "~");
    named
        .map(|text| if text == "." { Box::from(&*name.namespace) } else { Box::from(text.as_str()) })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(hosts: &[&str], export_to: &[&str]) -> ServiceEntrySpec {
        serde_json::from_value(json!({"hosts": hosts, "exportTo": export_to})).unwrap()
    }

    #[test]
    fn entries_are_found_by_name_and_by_each_suffix_and_leave_nothing_behind() {
        let mut hosts = PortHosts::default();
        let all = [
            ("a/name", spec(&["API.example.com.", "b.example"], &[])),
            ("a/wide", spec(&["*.example.com"], &["."])),
            ("b/widest", spec(&["*.com"], &["shop", "~"])),
        ]
        .map(|(name, spec)| (ObjectName::parse(name).unwrap(), spec));
        all.iter().for_each(|(name, spec)| hosts.insert(name, spec));
        let found =
            |name| hosts.matching(name).map(|(host, name)| format!("{host} {name}")).collect::<Vec<_>>();
        assert_eq!(
            found("api.example.com"),
            ["api.example.com a/name", "*.example.com a/wide", "*.com b/widest"]
        );
        assert_eq!(found("x.y.example.com"), ["*.example.com a/wide", "*.com b/widest"]);
        assert_eq!(found("example.com"), ["*.com b/widest"]);
        assert!(found("com").is_empty());
        assert!(
            hosts.is_seen("a", None) && !hosts.is_seen("b", Some("a")) && hosts.is_seen("b", Some("shop"))
        );
        assert_eq!(hosts.clients().collect::<Vec<_>>(), ["a", "shop"]);
        let left = all.iter().map(|(name, spec)| hosts.remove(name, spec)).collect::<Vec<_>>();
        assert_eq!(left, [false, false, true]);
        assert!(hosts.exporters.is_empty());
    }
}
