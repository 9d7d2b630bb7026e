//! `UpstreamTrafficSetting`: limits of the traffic to a Service. `global` has those that a rate limit service counts, `read` what they
//! mean.

mod global;
mod read;

use std::time::Duration;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use tidegate_core::go_duration::{self, GoDurationError};

pub use self::global::{
    DescriptorSpec, GenericKeySpec, GlobalRateLimitSpec, HeaderConditionSpec, HeaderValueMatchSpec,
    HttpDescriptorEntrySpec, HttpGlobalRateLimitSpec, RateLimitServiceSpec, RemoteAddressSpec,
    RequestHeaderSpec, RouteGlobalRateLimitSpec, TcpDescriptorEntrySpec, TcpGlobalRateLimitSpec,
};
pub use self::read::{TOO_MANY_REQUESTS, read_descriptors};
use crate::bounded;
use crate::common_status::CommonStatus;
use crate::numbers::optional_count;

/// Maximum routes with a limit.
pub const MOST_ROUTES: usize = 64;
/// Maximum fields that are added to the response above a limit.
pub(crate) const MOST_HEADERS: usize = 10;
/// Maximum characters of a host.
const HOST: usize = 253;
/// Maximum characters of a path's regular expression.
const PATTERN: usize = 1024;
/// Maximum characters of a header field's name.
const HEADER_NAME: usize = 256;
/// Maximum characters of a header field's value.
const HEADER_VALUE: usize = 1024;
/// Maximum characters of a length of time.
const DURATION: usize = 63;
/// What hosts of Services end with.
const CLUSTER: &str = ".svc.cluster.local";

/// Limits of the traffic to one Service.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "UpstreamTrafficSetting",
    plural = "upstreamtrafficsettings",
    singular = "upstreamtrafficsetting",
    shortname = "upstreamtrafficsetting",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Limits what workloads of the mesh send to a Service of its namespace.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamTrafficSettingSpec {
    /// The Service: `<name>.<namespace>.svc.cluster.local`, in the namespace of this object.
    #[serde(deserialize_with = "bounded::text::<_, HOST>")]
    #[schemars(length(max = HOST))]
    pub host: String,
    /// What one client's sidecar may have open at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_settings: Option<ConnectionSettingsSpec>,
    /// How much each Pod of the Service takes per time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSpec>,
    /// Limits of requests with certain paths, in place of those of `rateLimit`. Of several, the first that matches.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "routes")]
    #[schemars(length(max = MOST_ROUTES))]
    pub http_routes: Option<Vec<HttpRouteLimitSpec>>,
}

/// What one client's sidecar may have open at a time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionSettingsSpec {
    /// Of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpConnectionsSpec>,
    /// Of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpConnectionsSpec>,
}

/// Limits of connections.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TcpConnectionsSpec {
    /// Connections, idle ones included. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub max_connections: Option<u32>,
    /// Time in which a connection opens, TLS handshake included, such as `2s`. Absent: the sidecar's defaults.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, DURATION>"
    )]
    #[schemars(length(max = DURATION))]
    pub connect_timeout: Option<String>,
}

/// Limits of requests.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpConnectionsSpec {
    /// Requests in flight. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub max_requests: Option<u32>,
    /// Requests on one connection, which is closed after them. Absent, or 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub max_requests_per_connection: Option<u32>,
    /// Requests that wait for a connection. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub max_pending_requests: Option<u32>,
    /// Retries in flight. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub max_retries: Option<u32>,
}

/// How much each Pod takes per time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitSpec {
    /// Limits that each Pod counts for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalRateLimitSpec>,
    /// Limits that a rate limit service counts for all Pods together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalRateLimitSpec>,
}

/// Limits that each Pod counts for itself.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LocalRateLimitSpec {
    /// Of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpRateLimitSpec>,
    /// Of HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRateLimitSpec>,
}

/// A rate of connections.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TcpRateLimitSpec {
    /// Connections per unit.
    #[schemars(schema_with = "positive_count")]
    pub connections: u32,
    /// The unit.
    #[schemars(schema_with = "unit")]
    pub unit: RateLimitUnit,
    /// Connections beyond those of one unit that may come at once. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub burst: Option<u32>,
}

/// A rate of HTTP requests.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpRateLimitSpec {
    /// Requests per unit.
    #[schemars(schema_with = "positive_count")]
    pub requests: u32,
    /// The unit.
    #[schemars(schema_with = "unit")]
    pub unit: RateLimitUnit,
    /// Requests beyond those of one unit that may come at once. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub burst: Option<u32>,
    /// Status of the response above the limit. Default: 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_status")]
    pub response_status_code: Option<u16>,
    /// Header fields of the response above the limit.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "headers")]
    #[schemars(length(max = MOST_HEADERS))]
    pub response_headers_to_add: Option<Vec<ResponseHeaderSpec>>,
}

/// A unit of time.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RateLimitUnit {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

/// A header field.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResponseHeaderSpec {
    /// Its name.
    #[serde(deserialize_with = "bounded::text::<_, HEADER_NAME>")]
    #[schemars(length(min = 1, max = HEADER_NAME))]
    pub name: String,
    /// Its value.
    #[serde(deserialize_with = "bounded::text::<_, HEADER_VALUE>")]
    #[schemars(length(min = 1, max = HEADER_VALUE))]
    pub value: String,
}

/// Requests with certain paths.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteLimitSpec {
    /// A regular expression (RE2) that the whole path matches, without the query. It must be the `pathRegex` of a match in an
    /// HTTPRouteGroup of the namespace, or `.*`.
    #[serde(deserialize_with = "bounded::text::<_, PATTERN>")]
    #[schemars(length(min = 1, max = PATTERN))]
    pub path: String,
    /// Their limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RouteRateLimitSpec>,
}

/// The limit of a route.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RouteRateLimitSpec {
    /// A limit that each Pod counts for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<HttpRateLimitSpec>,
    /// What describes them to the rate limit service of `spec.rateLimit.global.http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<RouteGlobalRateLimitSpec>,
}

impl UpstreamTrafficSettingSpec {
    /// The name of the Service, if `host` is one of this namespace.
    pub fn service(&self, namespace: &str) -> Option<&str> {
        let (name, of) = self.host.strip_suffix(CLUSTER)?.split_once('.')?;
        (of == namespace && !name.is_empty()).then_some(name)
    }

    /// Time in which a connection opens, if that is limited.
    pub fn connect_timeout(&self) -> Option<Result<Duration, GoDurationError>> {
        let tcp = self.connection_settings.as_ref()?.tcp.as_ref()?;
        tcp.connect_timeout.as_deref().map(go_duration::parse)
    }

    /// The limits that each Pod counts for itself, without those of routes.
    pub fn local(&self) -> Option<&LocalRateLimitSpec> {
        self.rate_limit.as_ref()?.local.as_ref()
    }

    /// The limits that a rate limit service counts, without those of routes.
    pub fn global(&self) -> Option<&GlobalRateLimitSpec> {
        self.rate_limit.as_ref()?.global.as_ref()
    }

    /// The rate limit services that are called.
    pub fn rate_limit_services(&self) -> impl Iterator<Item = &RateLimitServiceSpec> {
        let tcp = self.global().and_then(|global| global.tcp.as_ref()).map(|tcp| &tcp.rate_limit_service);
        let http = self.global().and_then(|global| global.http.as_ref()).map(|http| &http.rate_limit_service);
        tcp.into_iter().chain(http)
    }

    /// The routes with a limit of either kind, each with its place in the list.
    pub fn limited_routes(&self) -> impl Iterator<Item = (usize, &HttpRouteLimitSpec)> {
        let routes = self.http_routes.iter().flatten().enumerate();
        routes.filter(|(_, route)| route.local().is_some() || route.global().is_some())
    }
}

impl HttpRouteLimitSpec {
    /// The limit that each Pod counts for itself.
    pub fn local(&self) -> Option<&HttpRateLimitSpec> {
        self.rate_limit.as_ref()?.local.as_ref()
    }

    /// What describes its requests to the rate limit service.
    pub fn global(&self) -> Option<&RouteGlobalRateLimitSpec> {
        self.rate_limit.as_ref()?.global.as_ref()
    }
}

impl RateLimitUnit {
    /// Its length.
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        })
    }
}

fn routes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<HttpRouteLimitSpec>>, D::Error> {
    bounded::optional_list(deserializer, "spec.httpRoutes", MOST_ROUTES)
}

fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ResponseHeaderSpec>>, D::Error> {
    bounded::optional_list(deserializer, "responseHeadersToAdd", MOST_HEADERS)
}

fn positive_count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 1, "maximum": u32::MAX })
}

fn optional_status(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 400, "maximum": 599, "nullable": true })
}

fn unit(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["second", "minute", "hour"] })
}
