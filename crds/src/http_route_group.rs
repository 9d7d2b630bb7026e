//! `HTTPRouteGroup` of the Service Mesh Interface: named sets of HTTP requests.

use std::fmt;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidegate_core::route::matching::{HeaderMatch, PathMatch, RouteMatch};
use tidegate_core::route::{Method, RouteError};

use crate::bounded::{self, NAME, WORD, too_many};
use crate::common_status::CommonStatus;

/// Maximum matches of one HTTPRouteGroup.
pub(crate) const MOST_MATCHES: usize = 256;
/// Maximum methods of one match.
const MOST_METHODS: usize = 16;
/// Maximum header fields of one match.
pub(crate) const MOST_HEADERS: usize = 16;
/// Maximum characters of a regular expression.
const PATTERN: usize = 1024;

/// Sets of HTTP requests.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "specs.smi-spec.io",
    version = "v1alpha4",
    kind = "HTTPRouteGroup",
    plural = "httproutegroups",
    singular = "httproutegroup",
    shortname = "htr",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Names sets of HTTP requests for the TrafficTargets of its namespace.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct HTTPRouteGroupSpec {
    /// The sets.
    #[serde(deserialize_with = "matches")]
    #[schemars(length(max = MOST_MATCHES))]
    pub matches: Vec<HttpMatch>,
}

/// One set of requests: those that meet all of its conditions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// The name by which TrafficTargets refer to it.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
    /// A regular expression (RE2) that the whole path matches, without the query. Absent or empty: every path.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, PATTERN>"
    )]
    #[schemars(length(max = PATTERN))]
    pub path_regex: Option<String>,
    /// Methods. Absent, empty or with `*`: every method.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "methods")]
    #[schemars(schema_with = "method_list")]
    pub methods: Option<Vec<String>>,
    /// Header fields, each with a regular expression (RE2) that its whole value matches; `host` is the authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// Conditions on header fields: names and regular expressions. Written as a map, as the specification has it, or as a list
/// of maps, as Open Service Mesh's definition has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers(pub Vec<(String, String)>);

impl HttpMatch {
    /// The same as a match of requests. The error names a field of [`RouteMatch`].
    pub fn to_route_match(&self) -> Result<RouteMatch, RouteError> {
        let path =
            self.path_regex.as_deref().filter(|path| !path.is_empty()).map(PathMatch::regex).transpose()?;
        let named = self.methods.as_deref().unwrap_or_default();
        let is_any = named.iter().any(|method| method == "*");
        let methods = named.iter().filter(|_| !is_any).map(|method| Method::parse(method));
        let headers = self.headers.iter().flat_map(|headers| &headers.0);
        let headers = headers.map(|(name, pattern)| HeaderMatch::regex(name, pattern));
        Ok(RouteMatch::new(
            path,
            methods.collect::<Result<_, _>>()?,
            headers.collect::<Result<_, _>>()?,
            Vec::new(),
        ))
    }
}

impl Serialize for Headers {
    /// In the form of Open Service Mesh's definition.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer
            .collect_seq(self.0.iter().map(|(name, value)| std::collections::BTreeMap::from([(name, value)])))
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of header names to regular expressions, or a list of such maps")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers = Vec::new();
        while headers.len() < MOST_HEADERS {
            let Some((name, value)) = map.next_entry::<bounded::Text<NAME>, bounded::Text<PATTERN>>()? else {
                return Ok(Headers(headers));
            };
            headers.push((name.into(), value.into()));
        }
        match map.next_entry::<IgnoredAny, IgnoredAny>()? {
            None => Ok(Headers(headers)),
            Some(_) => Err(too_many_headers()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut maps: A) -> Result<Headers, A::Error> {
        let mut headers = Vec::new();
        while let Some(Headers(more)) = maps.next_element()? {
            headers.extend(more);
            if headers.len() > MOST_HEADERS {
                return Err(too_many_headers());
            }
        }
        Ok(Headers(headers))
    }
}

impl JsonSchema for Headers {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Headers".into()
    }

    fn inline_schema() -> bool {
        true
    }

    /// No schema allows both a map and a list: what is inside is checked when the object is read.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
    }
}

fn too_many_headers<E: Error>() -> E {
    E::custom(format!("spec.matches[].headers: {}", too_many(MOST_HEADERS)))
}

fn matches<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HttpMatch>, D::Error> {
    bounded::list(deserializer, "spec.matches", MOST_MATCHES)
}

fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    bounded::optional_texts::<_, WORD>(deserializer, "spec.matches[].methods", MOST_METHODS)
}

fn method_list(_: &mut SchemaGenerator) -> Schema {
    let methods = ["*", "GET", "HEAD", "PUT", "POST", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    json_schema!({
        "type": "array", "maxItems": MOST_METHODS, "nullable": true,
        "items": { "type": "string", "enum": methods },
    })
}
