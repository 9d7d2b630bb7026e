//! `TrafficSplit` of the Service Mesh Interface: which backends share the traffic of a Service, by weight.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use tidegate_core::route::MAX_WEIGHT;

use crate::bounded::{self, NAME, WORD};
use crate::common_status::CommonStatus;

/// The `apiVersion` that Open Service Mesh served. It has the same fields, but for `matches`.
pub const OLDER_TRAFFIC_SPLIT: &str = "split.smi-spec.io/v1alpha2";
/// Maximum backends of one TrafficSplit.
pub const MOST_BACKENDS: usize = 64;
/// Maximum HTTPRouteGroups of one TrafficSplit.
pub(crate) const MOST_GROUPS: usize = 64;

/// Which Services share the traffic of a Service.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "split.smi-spec.io",
    version = "v1alpha4",
    kind = "TrafficSplit",
    plural = "trafficsplits",
    singular = "trafficsplit",
    shortname = "ts",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Splits what clients send to a Service among several Services of its namespace, by weight.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct TrafficSplitSpec {
    /// The root: the Service that clients dial. A name, or a host name such as `cart.shop.svc.cluster.local`; its namespace is
    /// that of this object.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub service: String,
    /// The Services that share its traffic.
    #[serde(deserialize_with = "backends")]
    #[schemars(length(max = MOST_BACKENDS))]
    pub backends: Vec<SplitBackend>,
    /// The requests that are split; all others go to the root. Absent or empty: everything is split.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "matches")]
    #[schemars(length(max = MOST_GROUPS))]
    pub matches: Option<Vec<SplitMatch>>,
}

/// A Service with its share.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SplitBackend {
    /// The Service, as the root is written. It serves the ports that it has in common with the root.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub service: String,
    /// Its share is this weight divided by the sum of all.
    #[schemars(schema_with = "weight")]
    pub weight: u32,
}

/// A reference to requests.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SplitMatch {
    /// `HTTPRouteGroup`.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(schema_with = "match_kind")]
    pub kind: String,
    /// Name of the HTTPRouteGroup, of which all matches count.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
}

/// The name of the Service that a TrafficSplit of this namespace means by a name or a host name: `cart`, `cart.shop`,
/// `cart.shop.svc` or `cart.shop.svc.cluster.local`. `None` if it is of another namespace.
pub fn service_name<'s>(text: &'s str, namespace: &str) -> Option<&'s str> {
    let mut labels = text.split('.');
    let name = labels.next().filter(|name| !name.is_empty())?;
    let is_here = labels.next().is_none_or(|label| label == namespace);
    (is_here && labels.next().is_none_or(|label| label == "svc")).then_some(name)
}

fn backends<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SplitBackend>, D::Error> {
    bounded::list(deserializer, "spec.backends", MOST_BACKENDS)
}

fn matches<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<SplitMatch>>, D::Error> {
    bounded::optional_list(deserializer, "spec.matches", MOST_GROUPS)
}

fn weight(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": MAX_WEIGHT })
}

fn match_kind(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": ["HTTPRouteGroup"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_as_clients_name_it_within_its_namespace() {
        for text in ["cart", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local"] {
            assert_eq!(service_name(text, "shop"), Some("cart"), "{text}");
        }
        for text in ["", ".shop", "cart.other", "cart.shop.pod", "cart."] {
            assert_eq!(service_name(text, "shop"), None, "{text}");
        }
    }
}
