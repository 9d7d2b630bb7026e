//! The Kubernetes object that a rule was compiled from.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// Kind, namespace and name of an object: the origin of a rule in denials, logs and statuses.
///
/// The kind is text, not an enumeration, so that a sidecar can show kinds that only a newer controller supports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Kind as in its API, such as `IngressBackend` or `HTTPRoute`.
    pub kind: Arc<str>,
    /// Namespace; empty for a cluster-scoped object.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// Names an object.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }

    /// Compares `<namespace>/<name>` as text, which decides between objects of the same age (Gateway API,
    /// "Conflict Resolution"). Not the order of the pairs: `a-b/x` comes before `a/x`.
    pub fn cmp_by_name(&self, other: &Self) -> Ordering {
        self.qualified_name().cmp(other.qualified_name())
    }

    fn qualified_name(&self) -> impl Iterator<Item = u8> {
        self.namespace.bytes().chain([b'/']).chain(self.name.bytes())
    }
}

impl fmt::Display for ObjectRef {
    /// `<kind> <namespace>/<name>`; `<kind> <name>` for a cluster-scoped object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_scoped_object_is_shown_without_a_slash() {
        assert_eq!(ObjectRef::new("HTTPRoute", "shop", "cart").to_string(), "HTTPRoute shop/cart");
        assert_eq!(ObjectRef::new("GatewayClass", "", "tidegate").to_string(), "GatewayClass tidegate");
    }

    #[test]
    fn objects_are_ordered_by_the_text_of_namespace_and_name() {
        let order = |a: (&str, &str), b: (&str, &str)| {
            ObjectRef::new("X", a.0, a.1).cmp_by_name(&ObjectRef::new("Y", b.0, b.1))
        };
        assert_eq!(order(("a-b", "x"), ("a", "x")), Ordering::Less);
        assert_eq!(order(("a", "x"), ("a", "x")), Ordering::Equal);
        assert_eq!(order(("b", "a"), ("a", "b")), Ordering::Greater);
    }
}
