//! What the path and the query of a request name.

use std::collections::BTreeMap;

use serde_json::Value;

use super::RecordedRequest;
use super::store::Selection;

/// The path of a resource or of one of its objects, by the API server's conventions: `/api/v1/…` for the core group,
/// `/apis/<group>/<version>/…` for the others, then `namespaces/<namespace>/` for what is in one.
#[derive(Debug)]
pub(super) struct ResourcePath {
    group: String,
    /// `v1/pods` or `<group>/<version>/<plural>`.
    pub(super) resource: String,
    pub(super) plural: String,
    /// Empty for cluster-scoped resources, and for requests about all namespaces.
    pub(super) namespace: String,
    /// `None` for the whole collection.
    pub(super) name: Option<String>,
    /// Such as `status` or `log`.
    pub(super) subresource: Option<String>,
}

impl ResourcePath {
    /// `None` if it is neither below `/api` nor below `/apis`, or names no resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').filter(|part| !part.is_empty());
        let (group, version) = match parts.next()? {
            "api" => (String::new(), parts.next()?),
            "apis" => (parts.next()?.to_owned(), parts.next()?),
            _ => return None,
        };
        let mut rest: Vec<&str> = parts.collect();
        let mut namespace = String::new();
        if rest.len() >= 3 && rest.first() == Some(&"namespaces") {
            namespace = rest.get(1)?.to_string();
            rest.drain(..2);
        }
        let plural = rest.first()?.to_string();
        let prefix = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        Some(Self {
            resource: format!("{prefix}/{plural}"),
            plural,
            group,
            namespace,
            name: rest.get(1).map(ToString::to_string),
            subresource: rest.get(2).map(ToString::to_string),
        })
    }

    /// The objects that a list or a watch covers. Of selectors, only `metadata.name=` and `label=value` count.
    pub(super) fn selection(&self, query: &BTreeMap<String, String>) -> Selection {
        let fields = query.get("fieldSelector").map(String::as_str).unwrap_or_default();
        let name = fields.split(',').find_map(|field| field.strip_prefix("metadata.name="));
        let labels = query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let labels = labels.split(',').filter_map(|label| label.split_once('='));
        Selection {
            resource: self.resource.clone(),
            namespace: self.namespace.clone(),
            name: name.map(str::to_owned),
            labels: labels.map(|(key, value)| (key.to_owned(), value.trim_matches('=').to_owned())).collect(),
        }
    }

    /// The request as RBAC sees it.
    pub(super) fn request(&self, verb: &'static str, selection: &Selection) -> RecordedRequest {
        let resource = match &self.subresource {
            Some(subresource) => format!("{}/{subresource}", self.plural),
            None => self.plural.clone(),
        };
        RecordedRequest {
            verb,
            group: self.group.clone(),
            resource,
            namespace: self.namespace.clone(),
            name: self.name.clone().or_else(|| selection.name.clone()).unwrap_or_default(),
        }
    }

    /// The result of a write: `/status` changes only the status, and the object itself everything else.
    pub(super) fn merged(&self, before: Value, after: Value) -> Value {
        match self.subresource.as_deref() {
            Some("status") => {
                let mut object = before;
                object["status"] = after["status"].clone();
                object
            }
            _ => after,
        }
    }
}

/// The parameters of a query, percent-decoded, with `+` as a space.
pub(super) fn query_parameters(query: &str) -> BTreeMap<String, String> {
    let unescape = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            let escaped = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
            match (byte, escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
                (b'%', Some(value)) => {
                    bytes.push(value);
                    rest = tail.get(2..).unwrap_or_default();
                }
                (b'+', _) => {
                    bytes.push(b' ');
                    rest = tail;
                }
                _ => {
                    bytes.push(byte);
                    rest = tail;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (unescape(k), unescape(v)))
        .collect()
}
