//! HTTPRouteGroups, by name, each with its matches.
//!
//! A regular expression is compiled once, when its object changes, to find what is wrong with it. The program is not kept:
//! a short expression may have a large one, and only sidecars match requests.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_core::route::RouteMatch;
use tidegate_crds::http_route_group::HttpMatch;
use tidegate_crds::{HTTPRouteGroup, HTTPRouteGroupSpec, validate};

use super::part::{Effect, Indexed, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Kind, Object, ObjectName};

#[derive(Clone, Debug, Default)]
pub(crate) struct HttpRouteGroups(BTreeMap<ObjectName, RouteGroup>);

/// An HTTPRouteGroup and its matches.
#[derive(Clone, Debug)]
pub(crate) struct RouteGroup {
    pub(crate) object: Arc<HTTPRouteGroup>,
    /// By name, or why there are none.
    pub(crate) matches: Result<NamedMatches, Arc<str>>,
}

/// A match of requests, or why it is invalid.
pub(crate) type CompiledMatch = Result<Arc<RouteMatch>, Arc<str>>;

/// The matches of an HTTPRouteGroup by name. A name may be given twice.
#[derive(Clone, Debug, Default)]
pub(crate) struct NamedMatches(BTreeMap<String, Vec<CompiledMatch>>);

impl HttpRouteGroups {
    /// Every HTTPRouteGroup.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &RouteGroup)> {
        self.0.iter()
    }

    /// HTTPRouteGroups of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &RouteGroup)> {
        in_namespace(&self.0, namespace)
    }

    /// An HTTPRouteGroup.
    pub(crate) fn of(&self, name: &ObjectName) -> Option<&RouteGroup> {
        self.0.get(name)
    }
}

impl NamedMatches {
    fn new(matches: &[HttpMatch]) -> Self {
        let mut named: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for (i, one) in matches.iter().enumerate() {
            let compiled = one.to_route_match().map(|found| Arc::new(found.without_programs()));
            let compiled = compiled.map_err(|error| {
                format!("spec.matches[{i}], '{}': {:?} {}", one.name, error.value, error.problem).into()
            });
            named.entry(one.name.clone()).or_default().push(compiled);
        }
        Self(named)
    }

    /// The matches of a name, if there are any.
    pub(crate) fn named(&self, name: &str) -> Option<&[CompiledMatch]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// All matches.
    pub(crate) fn all(&self) -> impl Iterator<Item = &CompiledMatch> {
        self.0.values().flatten()
    }

    /// The names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}

impl Indexed for HTTPRouteGroup {
    type Part = HttpRouteGroups;

    fn get<'p>(part: &'p HttpRouteGroups, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.0.get(name).map(|group| &group.object)
    }

    fn insert(part: &mut HttpRouteGroups, name: ObjectName, object: Arc<Self>) {
        let matches = match validate::too_many_expressions(&object.spec) {
            Some(problem) => Err(format!("spec.matches: {problem}").into()),
            None => Ok(NamedMatches::new(&object.spec.matches)),
        };
        part.0.insert(name, RouteGroup { object, matches });
    }

    fn remove(part: &mut HttpRouteGroups, name: &ObjectName) {
        part.0.remove(name);
    }

    fn effects(_: &HttpRouteGroups, name: &ObjectName) -> Vec<Effect> {
        vec![Effect::Statuses(name.namespace.clone()), Effect::Target(Kind::HTTPRouteGroup, name.clone())]
    }
}

impl Stored for HTTPRouteGroup {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        // As an object and as a match of requests, or as the text of its error.
        let matches: usize = self.spec.matches.iter().map(|one| REFERENCE + 3 * match_size(one)).sum();
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + matches
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(HTTPRouteGroup::crd);
        Some(CustomKind::new(&DEFINITION, |_, object| validate::http_route_group(&object.spec)))
    }
}

impl Custom for HTTPRouteGroup {
    fn of(metadata: ObjectMeta, spec: HTTPRouteGroupSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

fn match_size(one: &HttpMatch) -> usize {
    let methods: usize = one.methods.iter().flatten().map(|method| item::<String>() + text(method)).sum();
    let headers = one.headers.iter().flat_map(|headers| &headers.0);
    let headers: usize =
        headers.map(|(name, value)| item::<(String, String)>() + REFERENCE + text(name) + text(value)).sum();
    item::<HttpMatch>()
        + size_of::<RouteMatch>()
        + text(&one.name)
        + optional(&one.path_regex)
        + methods
        + headers
}
