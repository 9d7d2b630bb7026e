//! Gateway API's routes, by name, by the Services that are their parents and by those that are their backends.
//!
//! All kinds are one type and have one part each. A route whose parents are Gateways alone is kept, but found by nothing
//! except its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tidegate_core::contract::names::GATEWAY_CONTROLLER;
use tidegate_crds::gateway_api::rule::{
    BackendRefSpec, FilterSpec, HeaderModifier, MethodMatch, PathMatchType, RuleMatchSpec, RuleSpec,
    ValueMatchSpec, ValueMatchType,
};
use tidegate_crds::gateway_api::{
    GatewayRoute, Lenient, MOST_PARENTS, ParentRef, RouteProtocol, RouteSpec, Routed,
};
use tidegate_kubernetes::lean::{First, Meta};

use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::stored::Stored;
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::{Kind, Object, ObjectName, OfKind};

/// The routes of one kind.
#[derive(Clone, Debug)]
pub(crate) struct GatewayRoutes<P> {
    by_name: BTreeMap<ObjectName, Arc<GatewayRoute<P>>>,
    by_parent: ReferenceIndex,
    by_backend: ReferenceIndex,
}

/// A route of any kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteObject<'i> {
    pub(crate) kind: Kind,
    pub(crate) name: &'i ObjectName,
    pub(crate) metadata: &'i ObjectMeta,
    pub(crate) spec: &'i RouteSpec,
    /// What its rules are about.
    pub(crate) routed: Routed,
    /// Whether its stored status has an entry of this mesh's controller.
    pub(crate) is_reported: bool,
}

/// What the rules of routes take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RouteWeight {
    /// Bytes of memory, which are more than on the wire.
    pub(crate) bytes: usize,
    /// Regular expressions.
    pub(crate) expressions: usize,
}

impl<P> Default for GatewayRoutes<P> {
    fn default() -> Self {
        Self {
            by_name: BTreeMap::new(),
            by_parent: ReferenceIndex::default(),
            by_backend: ReferenceIndex::default(),
        }
    }
}

impl<P: RouteProtocol> GatewayRoutes<P>
where
    GatewayRoute<P>: OfKind,
{
    /// Every route.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RouteObject<'_>> {
        self.by_name.iter().map(view)
    }

    /// The route of this name.
    pub(super) fn named(&self, name: &ObjectName) -> Option<RouteObject<'_>> {
        self.by_name.get_key_value(name).map(view)
    }

    /// Routes of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = RouteObject<'_>> {
        in_namespace(&self.by_name, namespace).map(view)
    }

    /// The routes that name a Service as a parent.
    pub(super) fn with_parent<'p>(
        &'p self,
        service: &ObjectName,
    ) -> impl Iterator<Item = RouteObject<'p>> + use<'p, P> {
        self.by_parent.to(service).filter_map(|name| self.by_name.get_key_value(name)).map(view)
    }

    /// The routes that send requests or copies to a Service.
    pub(super) fn with_backend<'p>(
        &'p self,
        service: &ObjectName,
    ) -> impl Iterator<Item = RouteObject<'p>> + use<'p, P> {
        self.by_backend.to(service).filter_map(|name| self.by_name.get_key_value(name)).map(view)
    }
}

impl RouteObject<'_> {
    /// The Services that are its parents.
    pub(crate) fn parents(&self) -> BTreeSet<ObjectName> {
        parents_of(self.name, self.spec)
    }

    /// What its rules take. Nothing is compiled for it.
    pub(crate) fn weight(&self) -> RouteWeight {
        let rules = self.spec.rules.iter().filter_map(|rule| rule.read().ok());
        let matches = rules.flat_map(|rule| &rule.matches).filter_map(|found| found.read().ok());
        RouteWeight { bytes: parts(&self.spec.rules, rule_size), expressions: matches.map(expressions).sum() }
    }

    /// The backendRefs of its rules, mirrors included, each with the place of its rule.
    pub(crate) fn backend_refs(&self) -> impl Iterator<Item = (usize, &BackendRefSpec)> {
        let rules = self.spec.rules.iter().enumerate();
        let rules = rules.filter_map(|(at, rule)| Some((at, rule.read().ok()?)));
        rules.flat_map(|(at, rule)| backend_refs(rule).map(move |backend| (at, backend)))
    }
}

impl<P: RouteProtocol> Indexed for GatewayRoute<P> {
    type Part = GatewayRoutes<P>;

    fn get<'p>(part: &'p GatewayRoutes<P>, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut GatewayRoutes<P>, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        for parent in parents_of(&name, &object.spec) {
            part.by_parent.add(parent, &name);
        }
        for backend in backends_of(&name, &object.spec) {
            part.by_backend.add(backend, &name);
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut GatewayRoutes<P>, name: &ObjectName) {
        let Some(object) = part.by_name.remove(name) else { return };
        for parent in parents_of(name, &object.spec) {
            part.by_parent.remove(&parent, name);
        }
        for backend in backends_of(name, &object.spec) {
            part.by_backend.remove(&backend, name);
        }
    }

    fn effects(part: &GatewayRoutes<P>, name: &ObjectName) -> Vec<Effect> {
        let object = part.by_name.get(name);
        let parents = object.map(|object| parents_of(name, &object.spec)).unwrap_or_default();
        vec![Effect::Route(name.clone(), parents)]
    }
}

impl<P: RouteProtocol> Stored for GatewayRoute<P>
where
    Self: OfKind,
{
    const IS_OPTIONAL: bool = true;

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        let (metadata, status, spec) = match serde_json::from_str::<LeanRoute<RouteSpec>>(text) {
            Ok(LeanRoute { metadata, status, spec }) => (metadata, status, spec),
            Err(error) => unreadable(text, &error.to_string())?,
        };
        let is_reported = status.is_some_and(|status| status.has_ours());
        Ok(Self::wrap(Self::new(metadata.of_policy(), spec, is_reported).into()))
    }

    fn size(&self) -> usize {
        let parents = self.spec.parent_refs.iter().map(|parent| {
            let texts = [&parent.group, &parent.kind, &parent.namespace, &parent.section_name];
            let texts: usize = texts.into_iter().map(optional).sum();
            // The parent with its reference and its part of the status.
            item::<ParentRef>() + REFERENCE + STATUS + text(&parent.name) + texts
        });
        let rules: usize = parts(&self.spec.rules, rule_size);
        let hostnames = self.spec.hostnames.as_ref().and_then(|part| part.read().ok()).into_iter();
        let hostnames = hostnames.flat_map(|names| &names.0).map(|name| item::<String>() + text(name));
        let rules = rules + hostnames.sum::<usize>();
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + parents.sum::<usize>() + rules
    }
}

/// A route as far as it is decoded.
#[derive(Deserialize)]
struct LeanRoute<S> {
    metadata: Meta,
    spec: S,
    #[serde(default)]
    status: Option<LeanRouteStatus>,
}

/// Of the status: which controllers report.
#[derive(Deserialize)]
struct LeanRouteStatus {
    #[serde(default)]
    parents: Option<First<LeanParentStatus, MOST_PARENTS>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanParentStatus {
    #[serde(default)]
    controller_name: String,
}

impl LeanRouteStatus {
    fn has_ours(&self) -> bool {
        let parents = self.parents.iter().flat_map(|parents| &parents.0);
        parents.into_iter().any(|parent| parent.controller_name == GATEWAY_CONTROLLER)
    }
}

/// A route whose rules cannot be read, for this reason, with its parents, if at least these can be read.
fn unreadable(text: &str, reason: &str) -> serde_json::Result<(Meta, Option<LeanRouteStatus>, RouteSpec)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Parents {
        parent_refs: Vec<ParentRef>,
    }
    if let Ok(LeanRoute { metadata, status, spec }) = serde_json::from_str::<LeanRoute<Parents>>(text)
        && spec.parent_refs.len() <= MOST_PARENTS
    {
        return Ok((metadata, status, RouteSpec::without_rules(spec.parent_refs, reason)));
    }
    let LeanRoute { metadata, .. } = serde_json::from_str::<LeanRoute<IgnoredAny>>(text)?;
    Ok((metadata, None, RouteSpec::default()))
}

fn view<'p, P: RouteProtocol>((name, object): (&'p ObjectName, &'p Arc<GatewayRoute<P>>)) -> RouteObject<'p>
where
    GatewayRoute<P>: OfKind,
{
    RouteObject {
        kind: GatewayRoute::<P>::KIND,
        name,
        metadata: &object.metadata,
        spec: &object.spec,
        routed: P::ROUTED,
        is_reported: object.is_reported,
    }
}

/// The Service that a parentRef of a route names.
pub(crate) fn parent_of(route: &ObjectName, parent: &ParentRef) -> ObjectName {
    in_namespace_of(route, parent.namespace.as_deref(), &parent.name)
}

/// The object that a backendRef of a route names.
pub(crate) fn backend_of(route: &ObjectName, backend: &BackendRefSpec) -> ObjectName {
    in_namespace_of(route, backend.namespace.as_deref(), &backend.name)
}

fn in_namespace_of(route: &ObjectName, namespace: Option<&str>, name: &str) -> ObjectName {
    let namespace = namespace.map_or_else(|| route.namespace.clone(), Into::into);
    ObjectName::new(namespace, name)
}

fn parents_of(name: &ObjectName, spec: &RouteSpec) -> BTreeSet<ObjectName> {
    spec.services().map(|parent| parent_of(name, parent)).collect()
}

/// The Services that rules and mirrors name; none for a route without parents of a mesh.
fn backends_of(name: &ObjectName, spec: &RouteSpec) -> BTreeSet<ObjectName> {
    if spec.services().next().is_none() {
        return BTreeSet::new();
    }
    let rules = spec.rules.iter().filter_map(|rule| rule.read().ok());
    rules.flat_map(backend_refs).map(|backend| backend_of(name, backend)).collect()
}

/// The backendRefs of a rule, its mirrors' included.
fn backend_refs(rule: &RuleSpec) -> impl Iterator<Item = &BackendRefSpec> {
    let shares = || rule.backend_refs.iter().filter_map(|backend| backend.read().ok());
    let filters = rule.filters.iter().chain(shares().flat_map(|backend| &backend.filters));
    let mirrors = filters.filter_map(|filter| match filter.read() {
        Ok(FilterSpec::RequestMirror { request_mirror }) => Some(&request_mirror.backend_ref),
        _ => None,
    });
    shares().chain(mirrors)
}

/// Bytes of parts, each with its slot.
fn parts<T>(all: &[Lenient<T>], of: impl Fn(&T) -> usize) -> usize {
    all.iter().map(|part| item::<Lenient<T>>() + part.read().map_or_else(text, &of)).sum()
}

fn rule_size(rule: &RuleSpec) -> usize {
    let unknown: usize = rule.unknown.keys().map(|name| REFERENCE + text(name)).sum();
    let timeouts = rule.timeouts.as_ref().map_or(0, |part| {
        part.read()
            .map_or_else(text, |timeouts| optional(&timeouts.request) + optional(&timeouts.backend_request))
    });
    let retry = rule.retry.as_ref().map_or(0, |part| {
        part.read()
            .map_or_else(text, |retry| optional(&retry.backoff) + item::<u16>() * retry.codes.len() + 32)
    });
    let backends = parts(&rule.backend_refs, backend_size);
    let filters = parts(&rule.filters, filter_size);
    optional(&rule.name) + parts(&rule.matches, match_size) + filters + backends + timeouts + retry + unknown
}

fn expressions(found: &RuleMatchSpec) -> usize {
    let is_path = found.path.as_ref().is_some_and(|path| path.how == PathMatchType::RegularExpression);
    let call = match &found.method {
        Some(MethodMatch::Grpc(call)) if call.how == ValueMatchType::RegularExpression => {
            usize::from(call.service.is_some()) + usize::from(call.method.is_some())
        }
        _ => 0,
    };
    let values = found.headers.iter().chain(&found.query_params);
    usize::from(is_path)
        + call
        + values.filter(|value| value.how == ValueMatchType::RegularExpression).count()
}

fn match_size(found: &RuleMatchSpec) -> usize {
    let path = found.path.iter().map(|path| optional(&path.value)).sum::<usize>();
    let method = match &found.method {
        Some(MethodMatch::Http(method)) => text(method),
        Some(MethodMatch::Grpc(call)) => optional(&call.service) + optional(&call.method),
        None => 0,
    };
    let values = found.headers.iter().chain(&found.query_params);
    let slot = item::<ValueMatchSpec>();
    path + method + values.map(|value| slot + text(&value.name) + text(&value.value)).sum::<usize>() + 64
}

fn filter_size(filter: &FilterSpec) -> usize {
    let edits = |edits: &HeaderModifier| {
        let lines = edits.set.iter().chain(&edits.add);
        let lines: usize =
            lines.map(|line| 2 * item::<String>() + text(&line.name) + text(&line.value)).sum();
        lines + edits.remove.iter().map(|name| item::<String>() + text(name)).sum::<usize>() + 96
    };
    match filter {
        FilterSpec::RequestHeaderModifier { request_header_modifier: modifier }
        | FilterSpec::ResponseHeaderModifier { response_header_modifier: modifier } => edits(modifier),
        // Hosts and paths are at most this long by every definition.
        FilterSpec::RequestRedirect { request_redirect: redirect } => {
            optional(&redirect.scheme) + optional(&redirect.hostname) + 2048
        }
        FilterSpec::URLRewrite { url_rewrite: rewrite } => optional(&rewrite.hostname) + 2048,
        FilterSpec::RequestMirror { request_mirror } => REFERENCE + backend_size(&request_mirror.backend_ref),
    }
}

fn backend_size(backend: &BackendRefSpec) -> usize {
    let texts = [&backend.group, &backend.kind, &backend.namespace].into_iter().map(optional);
    REFERENCE + text(&backend.name) + texts.sum::<usize>() + parts(&backend.filters, filter_size)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tidegate_crds::gateway_api::Http;

    use super::*;
    use crate::object::stored::size;

    fn decoded(spec: &Value, status: &Value) -> Object {
        let metadata =
            json!({"name": "r", "namespace": "shop", "generation": 3, "managedFields": [{"a": "b"}]});
        let text = json!({"metadata": metadata, "spec": spec, "status": status}).to_string();
        <GatewayRoute<Http> as Stored>::decode(&text, "tidegate-system").unwrap()
    }

    fn route(object: &Object) -> &GatewayRoute<Http> {
        let Object::HTTPRoute(route) = object else { panic!("{object:?}") };
        route
    }

    fn parents(count: usize) -> Vec<Value> {
        (0..count).map(|i| json!({"group": "", "kind": "Service", "name": format!("s{i}")})).collect()
    }

    #[test]
    fn an_object_that_no_definition_of_today_accepts_does_not_end_the_list_that_contains_it() {
        let too_many =
            decoded(&json!({"parentRefs": parents(2), "rules": vec![json!({}); 65]}), &Value::Null);
        let spec = &route(&too_many).spec;
        assert_eq!(spec.parent_refs.len(), 2, "its parents are read");
        assert!(spec.rules[0].read().unwrap_err().starts_with("spec.rules: Too many"));
        for spec in
            [json!({"parentRefs": "cart"}), json!({"parentRefs": parents(33)}), json!(null), json!([])]
        {
            assert_eq!(route(&decoded(&spec, &Value::Null)).spec, RouteSpec::default(), "{spec}");
        }
    }

    #[test]
    fn of_a_status_it_is_known_whether_one_of_its_entries_is_ours() {
        let status = |controllers: &[&str]| {
            let entries: Vec<_> = controllers.iter().map(|name| json!({"controllerName": name})).collect();
            json!({"parents": entries})
        };
        let spec = json!({"parentRefs": parents(1)});
        for (status, expected) in [
            (Value::Null, false),
            (json!({}), false),
            (status(&["example.com/other"]), false),
            (status(&["example.com/other", GATEWAY_CONTROLLER]), true),
        ] {
            assert_eq!(route(&decoded(&spec, &status)).is_reported, expected, "{status}");
        }
    }

    #[test]
    fn a_route_takes_no_more_than_what_is_reckoned_for_it() {
        let header = json!({"name": "x-version", "value": "v".repeat(100)});
        let matches: Vec<_> = (0..64)
            .map(|i| json!({"path": {"type": "Exact", "value": format!("/{i}")}, "method": "GET", "headers": [header]}))
            .collect();
        let edits = json!({"set": vec![header; 16], "remove": ["a", "b"]});
        let rule = json!({
            "name": "r",
            "matches": matches,
            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": edits}, {"type": "CORS", "cors": {}}],
            "backendRefs": vec![json!({"name": "v1", "port": 80, "weight": 1}); 16],
            "timeouts": {"request": "10s"},
            "retry": {"codes": [500, 503], "backoff": "1s"},
            "sessionPersistence": {},
        });
        for spec in [
            json!({"parentRefs": parents(32), "rules": vec![rule; 16]}),
            json!({"parentRefs": parents(1), "rules": vec![json!({"matches": vec![json!({}); 64]}); 64]}),
            json!({"parentRefs": parents(1), "rules": ["x"]}),
        ] {
            let object = decoded(&spec, &Value::Null);
            let (mut kept, mut held) = (None, 0);
            let measured = allocation_counter::measure(|| kept = Some(decoded(&spec, &Value::Null)));
            held += measured.bytes_current;
            drop(kept);
            let (held, reckoned) = (usize::try_from(held).unwrap(), size::of(&object));
            assert!(
                held <= reckoned && reckoned < 3 * held + 32 * STATUS,
                "{held} held, {reckoned} reckoned"
            );
        }
    }
}
