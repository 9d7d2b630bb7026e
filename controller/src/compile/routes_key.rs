//! Names of the routes that clients of a Service's port get.
//!
//! A destination is the same for all clients and names `Service/<namespace>/<name>:<port>`. What clients get by that name
//! depends on their namespace, because it may have routes of its own, so the controller keeps
//! `Service/<namespace>/<name>:<port>@<namespace of clients>`.

use tidegate_core::route::RoutesName;

use crate::object::{Kind, ObjectName};

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoutesKey {
    pub(crate) service: ObjectName,
    pub(crate) port: u16,
}

impl RoutesKey {
    /// The name on the wire. `None` only if the Service's name could not be one in Kubernetes.
    pub(crate) fn name(&self) -> Option<RoutesName> {
        let Self { service: ObjectName { namespace, name }, port } = self;
        RoutesName::parse(&format!("{}/{namespace}/{name}:{port}", Kind::Service)).ok()
    }

    /// The key and the clients' namespace of a name that the controller keeps.
    pub(crate) fn parse(kept: &RoutesName) -> Option<(Self, &str)> {
        let (name, caller) = kept.as_str().rsplit_once('@')?;
        let (kind, rest) = name.split_once('/')?;
        let (service, port) = rest.rsplit_once(':')?;
        let key = Self { service: ObjectName::parse(service)?, port: port.parse().ok()? };
        (kind == Kind::Service.as_str() && key.name()?.as_str() == name).then_some((key, caller))
    }

    /// Bounds of the names that the controller keeps for any port of a Service, the last one excluded.
    pub(crate) fn range(service: &ObjectName) -> Option<(RoutesName, RoutesName)> {
        let ObjectName { namespace, name } = service;
        let bound = |end| RoutesName::parse(&format!("{}/{namespace}/{name}{end}", Kind::Service)).ok();
        // A semicolon follows the colon.
        Some((bound(':')?, bound(';')?))
    }
}

/// The name that the controller keeps for clients of a namespace. `None` if it would be too long for a name.
pub(crate) fn kept_for(name: &RoutesName, caller: &str) -> Option<RoutesName> {
    RoutesName::parse(&format!("{name}@{caller}")).ok()
}

/// The name on the wire of one that the controller keeps.
pub(crate) fn on_the_wire(kept: &RoutesName) -> Option<RoutesName> {
    RoutesName::parse(kept.as_str().rsplit_once('@')?.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_namespace_is_part_of_the_name_that_is_kept_and_of_none_on_the_wire() {
        let key = RoutesKey { service: ObjectName::new("shop", "cart"), port: 80 };
        let name = key.name().unwrap();
        assert_eq!(name.as_str(), "Service/shop/cart:80");
        let kept = kept_for(&name, "web").unwrap();
        assert_eq!(RoutesKey::parse(&kept), Some((key, "web")));
        assert_eq!(on_the_wire(&kept), Some(name.clone()));
        assert_eq!(RoutesKey::parse(&name), None);
        let (first, last) = RoutesKey::range(&ObjectName::new("shop", "cart")).unwrap();
        assert!(first < kept && kept < last);
    }

    #[test]
    fn a_client_cannot_name_the_routes_of_another_namespace() {
        for text in
            ["Service/shop/cart:80@admin", "Service/shop/cart:080", "Pod/shop/cart:80", "x", "Service/a:1"]
        {
            let kept = kept_for(&RoutesName::parse(text).unwrap(), "web").unwrap();
            assert_eq!(RoutesKey::parse(&kept), None, "{text}");
        }
    }
}
