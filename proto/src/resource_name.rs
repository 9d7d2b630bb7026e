//! Names of resources on the policy stream.
//!
//! A name is all that a sidecar sends to subscribe, and the key under which both sides hold a resource. So each
//! resource has exactly one spelling, in which an IPv6 address has no scope and a port no leading zero; another
//! spelling would be another resource.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::backend::BackendRef;
use tidegate_core::destination::{DestinationKey, HostSource, RequestedHost};
use tidegate_core::route::RoutesName;
use tidegate_core::{DnsName, ObjectRef};

/// Maximum length of a name in bytes. Names of Kubernetes objects are shorter.
const MAX_NAME: usize = 640;

/// What names a resource. The order is that in which resources are sent: listeners first, and what a destination
/// refers to as soon as it can be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceName {
    /// `listener/<namespace>/<pod>`: the inbound policy of a workload.
    Listener {
        /// The Pod's namespace.
        namespace: Arc<str>,
        /// The Pod's name.
        pod: Arc<str>,
    },
    /// `backend/<kind>/<namespace>/<name>:<port>`; the namespace is empty for a cluster-scoped object.
    Backend(BackendRef),
    /// `routes/<name>`
    Routes(RoutesName),
    /// `destination/<ip>:<port>`, with IPv6 in brackets, or `destination/<ip>:<port>/<tls|http>/<host>`.
    Destination(DestinationKey),
}

impl ResourceName {
    /// Parses a name. `None` unless it is spelled as it is displayed, so that each resource has one name.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_NAME {
            return None;
        }
        let (kind, rest) = text.split_once('/')?;
        let name = match kind {
            "listener" => {
                let (namespace, pod) =
                    rest.split_once('/').filter(|(namespace, pod)| are_parts(&[*namespace, *pod]))?;
                Self::Listener { namespace: namespace.into(), pod: pod.into() }
            }
            "backend" => Self::Backend(parse_backend(rest)?),
            "routes" => Self::Routes(RoutesName::parse(rest).ok()?),
            "destination" => Self::Destination(parse_destination(rest)?),
            _ => return None,
        };
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener { namespace, pod } => write!(f, "listener/{namespace}/{pod}"),
            Self::Backend(BackendRef { object: ObjectRef { kind, namespace, name }, port }) => {
                write!(f, "backend/{kind}/{namespace}/{name}:{port}")
            }
            Self::Routes(name) => write!(f, "routes/{name}"),
            Self::Destination(key) => write!(f, "destination/{key}"),
        }
    }
}

/// `<ip>:<port>` or `<ip>:<port>/<tls|http>/<host>`
fn parse_destination(text: &str) -> Option<DestinationKey> {
    let Some((address, host)) = text.split_once('/') else {
        return Some(text.parse::<SocketAddr>().ok()?.into());
    };
    let (source, name) = host.split_once('/')?;
    let host = RequestedHost { source: HostSource::parse(source)?, name: DnsName::parse(name).ok()? };
    Some(DestinationKey { address: address.parse().ok()?, host: Some(host) })
}

/// `<kind>/<namespace>/<name>:<port>`; the last colon is the port's, because a name may contain one.
fn parse_backend(text: &str) -> Option<BackendRef> {
    let (object, port) = text.rsplit_once(':')?;
    let mut parts = object.splitn(3, '/');
    let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let is_named = are_parts(&[kind, name]) && (namespace.is_empty() || are_parts(&[namespace]));
    is_named.then(|| BackendRef { object: ObjectRef::new(kind, namespace, name), port })
}

/// Whether these are parts of a name: visible ASCII without a slash.
fn are_parts(texts: &[&str]) -> bool {
    let is_part = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    texts.iter().all(|text| !text.is_empty() && text.bytes().all(is_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_has_one_name() {
        for text in [
            "listener/shop/cart-1",
            "destination/10.0.0.1:80",
            "destination/[fd00::1]:443",
            "destination/10.0.0.1:443/tls/api.example.com",
            "destination/[fd00::1]:80/http/api.example.com",
            "routes/Service/shop/cart:80",
            "backend/Service/shop/cart:80",
            "backend/ClusterThing//name:1",
        ] {
            assert_eq!(ResourceName::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "destination/10.0.0.1",
            "destination/010.0.0.1:80",
            "destination/10.0.0.1:080",
            "destination/[FD00::1]:443",
            "destination/[fd00::1%1]:443",
            "destination/10.0.0.1:443/tls/API.example.com",
            "destination/10.0.0.1:443/tls/api.example.com.",
            "destination/10.0.0.1:443/tls/",
            "destination/10.0.0.1:443/ssh/api.example.com",
            "destination/10.0.0.1:443/api.example.com",
            "10.0.0.1:80",
            "listener/shop",
            "listener/shop/",
            "listener/shop/a/b",
            "listener/shop/a b",
            "routes/",
            "routes/a b",
            "backend/Service/shop/cart",
            "backend/Service/shop/cart:0",
            "backend/Service/shop/cart:080",
            "backend/Service/cart:80",
            "backend//shop/cart:80",
            "backend/Service/shop/a/b:80",
            "secret/shop/key",
            "",
            &format!("backend/Service/shop/{}:80", "x".repeat(640)),
        ] {
            assert_eq!(ResourceName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn all_ports_of_an_address_and_of_an_object_stand_together() {
        let names = ["destination/10.0.0.1:9", "destination/10.0.0.1:65535", "destination/10.0.0.2:1"];
        let sorted: Vec<_> = names.iter().map(|name| ResourceName::parse(name).unwrap()).collect();
        assert!(sorted.is_sorted());
        let names = ["backend/Service/a/b:9", "backend/Service/a/b:65535", "backend/Service/a/c:1"];
        let sorted: Vec<_> = names.iter().map(|name| ResourceName::parse(name).unwrap()).collect();
        assert!(sorted.is_sorted());
    }
}
