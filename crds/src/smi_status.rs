//! The status of objects of the Service Mesh Interface, which has none of its own, of Retries and UpstreamTrafficSettings, for
//! which OSM defines `currentStatus` and `reason` at most, and of EgressProxies.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mesh_config::Condition;

/// Status of a TrafficTarget, TrafficSplit, HTTPRouteGroup, TCPRoute, Retry, UpstreamTrafficSetting or EgressProxy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SmiStatus {
    /// `committed` or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_status: Option<String>,
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: whether the object is in force, with a reason in one word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Fields that other writers have set.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}
