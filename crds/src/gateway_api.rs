//! Gateway API's routes as a mesh reads them: `HTTPRoute`, `GRPCRoute`, `TLSRoute` and `TCPRoute` of
//! `gateway.networking.k8s.io/v1`.
//!
//! Their definitions belong to the cluster, not to Tidegate, and may be newer than this program. So each part of a route is
//! read by itself ([`Lenient`]): an unknown value or field makes the smallest part that contains it unreadable, and neither
//! the rest of the object nor other objects. `hostnames` have a meaning only for TLSRoutes: for other routes of a Service they
//! are ignored (GEP-1294).
//!
//! [`rule`] has the parts of a rule, which are the same for all kinds; a TLSRoute or TCPRoute has the fewest.

mod duration;
pub mod rule;

use std::borrow::Cow;
use std::fmt::Debug;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

pub use duration::duration;

use crate::bounded;
use rule::RuleSpec;

/// The API group of routes.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// The version that is read.
pub const VERSION: &str = "v1";

/// Maximum parents of a route, and entries of its status (Gateway API: `CommonRouteSpec`, `RouteStatus`).
pub const MOST_PARENTS: usize = 32;
/// Maximum rules of a route: four times as many as the definition of v1.7 allows.
const MOST_RULES: usize = 64;
/// Maximum hostnames of a TLSRoute (Gateway API: `TLSRouteSpec`).
const MOST_HOSTNAMES: usize = 1024;
/// Maximum characters of a hostname (Gateway API: `Hostname`).
const HOSTNAME: usize = 253;
/// Maximum bytes of the reason why a part cannot be read.
const LONGEST_REASON: usize = 160;

/// A route; `P` decides which of the kinds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(bound = "")]
pub struct GatewayRoute<P> {
    /// Name, age and generation.
    pub metadata: ObjectMeta,
    /// What its author wrote.
    pub spec: RouteSpec,
    /// Whether its stored status has an entry of this mesh's controller.
    #[serde(skip)]
    pub is_reported: bool,
    #[serde(skip)]
    protocol: PhantomData<P>,
}

/// The protocol of a route's requests, and so its kind.
pub trait RouteProtocol: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// `kind` of manifests.
    const KIND: &'static str;
    /// The resource in URLs.
    const PLURAL: &'static str;
    /// The protocol.
    const ROUTED: Routed;
}

/// What a route routes. Of several kinds of routes at one port of a Service, the one that stands last here wins (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Routed {
    /// Connections.
    Tcp,
    /// TLS connections, by the name of the server that the client asks for.
    Tls,
    /// HTTP requests.
    Http,
    /// gRPC calls.
    Grpc,
}

/// TCP: [`GatewayRoute`] is a TCPRoute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {}

/// TLS that is passed through: [`GatewayRoute`] is a TLSRoute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {}

/// HTTP: [`GatewayRoute`] is an HTTPRoute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {}

/// gRPC: [`GatewayRoute`] is a GRPCRoute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grpc {}

/// The parents and the rules of a route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// What the rules apply to.
    #[serde(default, deserialize_with = "parents")]
    pub parent_refs: Vec<ParentRef>,
    /// The names of servers that it is about, of a TLSRoute.
    #[serde(default)]
    pub hostnames: Option<Lenient<Hostnames>>,
    /// The rules, in order.
    #[serde(default, deserialize_with = "rules")]
    pub rules: Vec<Lenient<RuleSpec>>,
}

/// Names of servers, or `*.` and a suffix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Hostnames(#[serde(deserialize_with = "hostnames")] pub Vec<String>);

/// A parent of a route. It is repeated in the route's status, field by field.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// API group; Gateway API's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind; `Gateway` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Namespace; the route's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// The name of a Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The number of a Service's port. With `sectionName`, both must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// A part of an object, or why it cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Lenient<T>(pub Result<T, Box<str>>);

impl RouteProtocol for Tcp {
    const KIND: &'static str = "TCPRoute";
    const PLURAL: &'static str = "tcproutes";
    const ROUTED: Routed = Routed::Tcp;
}

impl RouteProtocol for Tls {
    const KIND: &'static str = "TLSRoute";
    const PLURAL: &'static str = "tlsroutes";
    const ROUTED: Routed = Routed::Tls;
}

impl RouteProtocol for Http {
    const KIND: &'static str = "HTTPRoute";
    const PLURAL: &'static str = "httproutes";
    const ROUTED: Routed = Routed::Http;
}

impl RouteProtocol for Grpc {
    const KIND: &'static str = "GRPCRoute";
    const PLURAL: &'static str = "grpcroutes";
    const ROUTED: Routed = Routed::Grpc;
}

impl<P> GatewayRoute<P> {
    /// A route.
    pub fn new(metadata: ObjectMeta, spec: RouteSpec, is_reported: bool) -> Self {
        Self { metadata, spec, is_reported, protocol: PhantomData }
    }
}

impl<P: RouteProtocol> kube::Resource for GatewayRoute<P> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        P::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        P::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl ParentRef {
    /// Whether the parent is a Service. Others, such as Gateways, are other controllers' parents.
    pub(crate) fn is_service(&self) -> bool {
        self.group.as_deref() == Some("") && self.kind.as_deref() == Some("Service")
    }
}

impl RouteSpec {
    /// The parents that are Services, each with its place among all parents.
    pub fn services(&self) -> impl Iterator<Item = &ParentRef> {
        self.parent_refs.iter().filter(|parent| parent.is_service())
    }

    /// Parents alone: what is left of a route whose rules cannot be read at all, for this reason.
    pub fn without_rules(parent_refs: Vec<ParentRef>, reason: &str) -> Self {
        Self { parent_refs, hostnames: None, rules: vec![Lenient(Err(shortened(reason)))] }
    }
}

impl<T> Lenient<T> {
    /// The part, or why it cannot be read.
    pub fn read(&self) -> Result<&T, &str> {
        self.0.as_ref().map_err(|reason| &**reason)
    }
}

/// Takes the part's value as a whole first, so that what does not fit ends with the part.
impl<'de, T: DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(Self(T::deserialize(value).map_err(|error| shortened(&error.to_string()))))
    }
}

fn parents<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ParentRef>, D::Error> {
    bounded::list(deserializer, "spec.parentRefs", MOST_PARENTS)
}

fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Lenient<RuleSpec>>, D::Error> {
    bounded::list(deserializer, "spec.rules", MOST_RULES)
}

fn hostnames<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names: Vec<bounded::Text<HOSTNAME>> = bounded::list(deserializer, "spec.hostnames", MOST_HOSTNAMES)?;
    Ok(names.into_iter().map(String::from).collect())
}

fn shortened(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(LONGEST_REASON)].into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::rule::FilterSpec;
    use super::*;

    fn rules(rules: Value) -> Vec<Lenient<RuleSpec>> {
        let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}], "rules": rules});
        serde_json::from_value::<RouteSpec>(spec).unwrap().rules
    }

    #[test]
    fn what_is_unknown_ends_with_the_smallest_part_that_contains_it() {
        let read = rules(json!([
            {"filters": [{"type": "CORS", "cors": {}}, {"type": "RequestRedirect", "requestRedirect": {}}]},
            {"matches": [{"path": {"value": "/a"}}, {"cookies": []}], "newer": true},
            {"matches": "all"},
            {"backendRefs": [{"name": "a", "port": 80, "zone": "b"}, {"name": "a", "port": 80}]},
            {"timeouts": {"idle": "1s"}, "retry": {"attempts": "many"}},
        ]));
        let [filters, matches, broken, backends, limits] = &read[..] else { panic!("{read:?}") };
        let filters = &filters.read().unwrap().filters;
        assert!(filters[0].read().unwrap_err().starts_with("unknown variant `CORS`"));
        assert!(matches!(filters[1].read(), Ok(FilterSpec::RequestRedirect { .. })));
        let matches = matches.read().unwrap();
        assert!(matches.matches[0].read().is_ok());
        assert!(matches.matches[1].read().unwrap_err().starts_with("unknown field `cookies`"));
        assert!(matches.unknown.contains_key("newer"));
        assert!(broken.read().unwrap_err().contains("invalid type"));
        let backends = &backends.read().unwrap().backend_refs;
        assert!(backends[0].read().is_err() && backends[1].read().is_ok());
        let limits = limits.read().unwrap();
        assert!(limits.timeouts.as_ref().unwrap().read().is_err());
        assert!(limits.retry.as_ref().unwrap().read().is_err());
    }

    #[test]
    fn lists_of_a_route_are_bounded() {
        let spec =
            |rules: usize| serde_json::from_value::<RouteSpec>(json!({"rules": vec![json!({}); rules]}));
        assert!(spec(64).is_ok());
        let error = spec(65).unwrap_err().to_string();
        assert_eq!(error, "spec.rules: Too many: must have at most 64 items");
    }

    #[test]
    fn a_parent_is_repeated_as_it_was_written() {
        let parent =
            json!({"group": "", "kind": "Service", "name": "cart", "port": 80, "sectionName": "http"});
        let read: ParentRef = serde_json::from_value(parent.clone()).unwrap();
        assert!(read.is_service());
        assert_eq!(serde_json::to_value(&read).unwrap(), parent);
        let gateway: ParentRef = serde_json::from_value(json!({"name": "edge"})).unwrap();
        assert!(!gateway.is_service());
    }
}
