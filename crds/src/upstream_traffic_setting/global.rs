//! `rateLimit.global`: limits that a rate limit service counts for all Pods together.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{DURATION, HEADER_NAME, HEADER_VALUE, HOST, optional_status};
use crate::bounded;
use crate::numbers::port_number;

/// Maximum descriptors of a limit.
const MOST_DESCRIPTORS: usize = 16;
/// Maximum entries of a descriptor.
const MOST_ENTRIES: usize = 8;
/// Maximum conditions on headers in an entry.
const MOST_CONDITIONS: usize = 8;
/// Maximum characters of a key.
const KEY: usize = 256;
/// Maximum characters of a value.
const VALUE: usize = 1024;

/// Limits that a rate limit service counts for all Pods together.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GlobalRateLimitSpec {
    /// Of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpGlobalRateLimitSpec>,
    /// Of HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpGlobalRateLimitSpec>,
}

/// A server of Envoy's `envoy.service.ratelimit.v3.RateLimitService`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitServiceSpec {
    /// DNS name or IP address.
    #[serde(deserialize_with = "bounded::text::<_, HOST>")]
    #[schemars(length(min = 1, max = HOST))]
    pub host: String,
    /// Port.
    #[schemars(schema_with = "port_number")]
    pub port: u16,
}

/// Which connections the service is to count, and as what.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TcpGlobalRateLimitSpec {
    /// The rate limit service.
    pub rate_limit_service: RateLimitServiceSpec,
    /// The domain of the service's configuration.
    #[serde(deserialize_with = "bounded::text::<_, HOST>")]
    #[schemars(length(max = HOST))]
    pub domain: String,
    /// What describes each connection to the service.
    #[serde(deserialize_with = "descriptors")]
    #[schemars(length(min = 1, max = MOST_DESCRIPTORS))]
    pub descriptors: Vec<DescriptorSpec<TcpDescriptorEntrySpec>>,
    /// Time for one call, at most 60s. Default: 20ms.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, DURATION>"
    )]
    #[schemars(length(max = DURATION))]
    pub timeout: Option<String>,
    /// Whether connections that the service has no answer for are allowed. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
}

/// A descriptor.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", bound(deserialize = "E: Deserialize<'de>"))]
pub struct DescriptorSpec<E> {
    /// Its keys and values.
    #[serde(deserialize_with = "entries")]
    #[schemars(length(min = 1, max = MOST_ENTRIES))]
    pub entries: Vec<E>,
}

/// A key and a value.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TcpDescriptorEntrySpec {
    /// The key.
    #[serde(deserialize_with = "bounded::text::<_, KEY>")]
    #[schemars(length(max = KEY))]
    pub key: String,
    /// The value.
    #[serde(deserialize_with = "bounded::text::<_, VALUE>")]
    #[schemars(length(max = VALUE))]
    pub value: String,
}

/// Which requests the service is to count, and as what.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpGlobalRateLimitSpec {
    /// The rate limit service, also for `httpRoutes`.
    pub rate_limit_service: RateLimitServiceSpec,
    /// The domain of the service's configuration.
    #[serde(deserialize_with = "bounded::text::<_, HOST>")]
    #[schemars(length(max = HOST))]
    pub domain: String,
    /// What describes requests to the service. A request that lacks an entry of a descriptor is not described by it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_descriptors")]
    #[schemars(length(min = 1, max = MOST_DESCRIPTORS))]
    pub descriptors: Option<Vec<DescriptorSpec<HttpDescriptorEntrySpec>>>,
    /// Time for one call, at most 60s. Default: 20ms.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, DURATION>"
    )]
    #[schemars(length(max = DURATION))]
    pub timeout: Option<String>,
    /// Whether requests that the service has no answer for are allowed. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
    /// Whether responses have `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset`. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_x_rate_limit_headers: Option<bool>,
    /// Status of the response above the limit. Default: 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_status")]
    pub response_status_code: Option<u16>,
}

/// What describes the requests of a route, in place of `rateLimit.global.http.descriptors`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RouteGlobalRateLimitSpec {
    /// Their descriptors. A request that lacks an entry of one is not described by it.
    #[serde(deserialize_with = "descriptors")]
    #[schemars(length(min = 1, max = MOST_DESCRIPTORS))]
    pub descriptors: Vec<DescriptorSpec<HttpDescriptorEntrySpec>>,
}

/// A key and a value. Exactly one of the fields is set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpDescriptorEntrySpec {
    /// The same for each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic_key: Option<GenericKeySpec>,
    /// Key `remote_address` with the client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_address: Option<RemoteAddressSpec>,
    /// The value of a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header: Option<RequestHeaderSpec>,
    /// A key and a value for requests with certain headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_value_match: Option<HeaderValueMatchSpec>,
}

/// A key and a value that are the same for each request.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GenericKeySpec {
    /// The value.
    #[serde(deserialize_with = "bounded::text::<_, VALUE>")]
    #[schemars(length(min = 1, max = VALUE))]
    pub value: String,
    /// The key. Default: generic_key.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, KEY>"
    )]
    #[schemars(length(max = KEY))]
    pub key: Option<String>,
}

/// Nothing more is to be said of the client's address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct RemoteAddressSpec {}

/// The value of a header. A request without it lacks the entry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RequestHeaderSpec {
    /// The header's name, or :method, :path or :authority.
    #[serde(deserialize_with = "bounded::text::<_, HEADER_NAME>")]
    #[schemars(length(min = 1, max = HEADER_NAME))]
    pub name: String,
    /// The key.
    #[serde(deserialize_with = "bounded::text::<_, KEY>")]
    #[schemars(length(min = 1, max = KEY))]
    pub key: String,
}

/// A key and a value for requests whose headers match.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HeaderValueMatchSpec {
    /// The value.
    #[serde(deserialize_with = "bounded::text::<_, VALUE>")]
    #[schemars(length(min = 1, max = VALUE))]
    pub value: String,
    /// Conditions, all of which a request has to meet.
    #[serde(deserialize_with = "conditions")]
    #[schemars(length(min = 1, max = MOST_CONDITIONS))]
    pub headers: Vec<HeaderConditionSpec>,
    /// The key. Default: header_match.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, KEY>"
    )]
    #[schemars(length(max = KEY))]
    pub key: Option<String>,
    /// Whether a request has to meet the conditions; with false, one that does not meet them all has the entry. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_match: Option<bool>,
}

/// A condition on a header. Exactly one of the fields beside the name is set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HeaderConditionSpec {
    /// The header's name, or :method, :path or :authority.
    #[serde(deserialize_with = "bounded::text::<_, HEADER_NAME>")]
    #[schemars(length(min = 1, max = HEADER_NAME))]
    pub name: String,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "value")]
    #[schemars(length(max = HEADER_VALUE))]
    pub exact: Option<String>,
    /// How the value begins.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "value")]
    #[schemars(length(max = HEADER_VALUE))]
    pub prefix: Option<String>,
    /// How the value ends.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "value")]
    #[schemars(length(max = HEADER_VALUE))]
    pub suffix: Option<String>,
    /// A regular expression (RE2) that the whole value matches.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "value")]
    #[schemars(length(max = HEADER_VALUE))]
    pub regex: Option<String>,
    /// A part of the value.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "value")]
    #[schemars(length(max = HEADER_VALUE))]
    pub contains: Option<String>,
    /// Whether the header is present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

fn value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    bounded::optional_text::<_, HEADER_VALUE>(deserializer)
}

fn descriptors<'de, D: Deserializer<'de>, E: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<DescriptorSpec<E>>, D::Error> {
    bounded::list(deserializer, "descriptors", MOST_DESCRIPTORS)
}

fn optional_descriptors<'de, D: Deserializer<'de>, E: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<DescriptorSpec<E>>>, D::Error> {
    bounded::optional_list(deserializer, "descriptors", MOST_DESCRIPTORS)
}

fn entries<'de, D: Deserializer<'de>, E: Deserialize<'de>>(deserializer: D) -> Result<Vec<E>, D::Error> {
    bounded::list(deserializer, "entries", MOST_ENTRIES)
}

fn conditions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HeaderConditionSpec>, D::Error> {
    bounded::list(deserializer, "headers", MOST_CONDITIONS)
}
