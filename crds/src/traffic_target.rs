//! `TrafficTarget` of the Service Mesh Interface: which workloads of the mesh may send what to the Pods of a service
//! account.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::bounded::{self, NAME, WORD};
use crate::common_status::CommonStatus;

/// Maximum sources of one TrafficTarget.
pub(crate) const MOST_SOURCES: usize = 1024;
/// Maximum rules of one TrafficTarget.
pub(crate) const MOST_RULES: usize = 64;
/// Maximum matches that one rule names.
pub const MOST_NAMES: usize = 256;

/// Which traffic between workloads of the mesh is allowed while permissive mode is off.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "access.smi-spec.io",
    version = "v1alpha3",
    kind = "TrafficTarget",
    plural = "traffictargets",
    singular = "traffictarget",
    shortname = "tt",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Lets workloads of the mesh reach the Pods of a service account of its namespace, while permissive mode is off.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct TrafficTargetSpec {
    /// The workloads that are reached: all Pods of this service account.
    pub destination: Subject,
    /// What may be sent. TCPRoutes limit the ports, HTTPRouteGroups the requests.
    #[serde(deserialize_with = "rules")]
    #[schemars(length(max = MOST_RULES))]
    pub rules: Vec<TargetRule>,
    /// The workloads that may send it.
    #[serde(deserialize_with = "sources")]
    #[schemars(length(max = MOST_SOURCES))]
    pub sources: Vec<Subject>,
}

/// The workloads of a service account.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// `ServiceAccount`.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub kind: String,
    /// Name of the service account.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
    /// Its namespace. Absent: the namespace of this object.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, WORD>"
    )]
    #[schemars(length(max = WORD))]
    pub namespace: Option<String>,
}

/// A reference to an object of the same namespace that says what may be sent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TargetRule {
    /// `HTTPRouteGroup` or `TCPRoute`.
    #[schemars(schema_with = "rule_kind")]
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    pub kind: String,
    /// Name of the object.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
    /// Names of matches of an HTTPRouteGroup. Absent or empty: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "matches")]
    #[schemars(length(max = MOST_NAMES), inner(length(max = NAME)))]
    pub matches: Option<Vec<String>>,
}

impl Subject {
    /// Its namespace; `own` is that of the object that names it.
    pub fn namespace_or<'s>(&'s self, own: &'s str) -> &'s str {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(own)
    }
}

fn rule_kind(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": ["HTTPRouteGroup", "TCPRoute", "UDPRoute"] })
}

fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TargetRule>, D::Error> {
    bounded::list(deserializer, "spec.rules", MOST_RULES)
}

fn sources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Subject>, D::Error> {
    bounded::list(deserializer, "spec.sources", MOST_SOURCES)
}

fn matches<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    bounded::optional_texts::<_, NAME>(deserializer, "spec.rules[].matches", MOST_NAMES)
}
