//! Objects that the API server stores but that our types cannot read. They grant nothing, and their status reports it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use tidegate_crds::Finding;

use super::name::{Kind, ObjectName};

/// A custom resource that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// Its kind.
    pub kind: Kind,
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Why it cannot be read.
    pub finding: Finding,
    /// What an IngressBackend would open; a part that cannot be read may mean anything.
    backends: Vec<PerhapsOpened>,
    /// The service account of a TrafficTarget's destination, if it can be read.
    account: Option<Box<str>>,
    /// Whether a MeshConfig may enable the external authorization.
    may_authorize_externally: bool,
}

/// A backend, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq)]
struct PerhapsOpened {
    /// `<namespace>/<name>`.
    service: Option<String>,
    port: Option<u16>,
}

impl Unreadable {
    /// An object that cannot be read because of `finding`.
    pub(crate) fn new(kind: Kind, metadata: ObjectMeta, object: &Value, finding: Finding) -> Self {
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let opened = |backend: &Value| PerhapsOpened {
            service: backend["name"].as_str().map(|name| format!("{namespace}/{name}")),
            port: backend["port"]["number"].as_u64().and_then(|number| u16::try_from(number).ok()),
        };
        let backends = object["spec"]["backends"].as_array();
        let backends = match backends {
            Some(backends) => backends.iter().map(opened).collect(),
            None => vec![PerhapsOpened::default()],
        };
        let account = object["spec"]["destination"]["name"].as_str().map(Into::into);
        let enable = object["spec"]["traffic"].get("inboundExternalAuthorization").map(|it| &it["enable"]);
        let is_off = enable.is_none_or(|enable| matches!(enable, Value::Null | Value::Bool(false)));
        Self { kind, metadata, finding, backends, account, may_authorize_externally: !is_off }
    }

    /// An object excluded because of `finding`, whatever its content.
    pub(crate) fn about_anything(kind: Kind, metadata: ObjectMeta, finding: Finding) -> Self {
        let backends = vec![PerhapsOpened::default()];
        Self { kind, metadata, finding, backends, account: None, may_authorize_externally: true }
    }

    /// Bytes of memory that it takes, without its metadata.
    pub(crate) fn size(&self) -> usize {
        let backends = self.backends.iter().map(|backend| {
            2 * size_of::<PerhapsOpened>() + backend.service.as_ref().map_or(0, |service| 32 + service.len())
        });
        let account = self.account.as_ref().map_or(0, |account| account.len());
        size_of::<Self>() + self.finding.message.len() + backends.sum::<usize>() + account
    }

    /// Its name.
    pub(crate) fn name(&self) -> ObjectName {
        ObjectName::of(&self.metadata)
    }

    /// The field that cannot be read, and the error.
    pub(crate) fn reason(&self) -> String {
        let Finding { path, message, .. } = &self.finding;
        if path.is_empty() { format!("cannot be read: {message}") } else { format!("{path}: {message}") }
    }

    /// The service account of a TrafficTarget's destination; `None` if it may be any of the namespace.
    pub(crate) fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// Whether it is a MeshConfig that may enable the external authorization.
    pub(crate) fn may_authorize_externally(&self) -> bool {
        self.may_authorize_externally
    }

    /// Whether it might open this port of this Service (`<namespace>/<name>`).
    pub(crate) fn may_open(&self, service: &str, port: u16) -> bool {
        self.backends.iter().any(|backend| {
            backend.service.as_deref().is_none_or(|name| name == service)
                && backend.port.is_none_or(|number| number == port)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn unreadable(spec: &Value) -> Unreadable {
        let metadata = ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some("policy".to_owned()),
            ..ObjectMeta::default()
        };
        let finding = Finding::error("spec.x", "is wrong");
        Unreadable::new(Kind::IngressBackend, metadata, &json!({"spec": spec}), finding)
    }

    #[test]
    fn it_is_about_what_can_be_read_of_it_and_else_about_everything() {
        let named = unreadable(&json!({"backends": [{"name": "cart", "port": {"number": 80}}]}));
        assert!(named.may_open("shop/cart", 80));
        assert!(!named.may_open("shop/cart", 81) && !named.may_open("shop/other", 80));
        let any_port = unreadable(&json!({"backends": [{"name": "cart", "port": {"number": "web"}}]}));
        assert!(any_port.may_open("shop/cart", 81) && !any_port.may_open("shop/other", 80));
        let any_service = unreadable(&json!({"backends": [{"name": 1, "port": {"number": 80}}]}));
        assert!(any_service.may_open("shop/other", 80) && !any_service.may_open("shop/other", 81));
        for spec in [json!(null), json!({"backends": "cart"})] {
            assert!(unreadable(&spec).may_open("shop/other", 1), "{spec}");
        }
        assert!(!unreadable(&json!({"backends": []})).may_open("shop/cart", 80));
    }
}
