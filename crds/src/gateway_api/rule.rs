//! The rules of routes, as written: texts are checked when they are compiled.
//!
//! Types refuse fields that they do not have, because a field that is left out may be a condition or a restriction.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Lenient;

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleSpec {
    /// Its name within the route.
    pub name: Option<String>,
    /// The requests that it applies to; if empty, all.
    pub matches: Vec<Lenient<RuleMatchSpec>>,
    /// Changes to requests and responses.
    pub filters: Vec<Lenient<FilterSpec>>,
    /// Where requests go.
    pub backend_refs: Vec<Lenient<BackendRefSpec>>,
    /// How long a request may take.
    pub timeouts: Option<Lenient<TimeoutsSpec>>,
    /// When a request is retried.
    pub retry: Option<Lenient<Retry>>,
    /// Fields that are not read.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, IgnoredAny>,
}

/// Conditions on a request, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RuleMatchSpec {
    /// On the path.
    pub path: Option<PathMatchSpec>,
    /// On the method.
    pub method: Option<MethodMatch>,
    /// On headers.
    pub headers: Vec<ValueMatchSpec>,
    /// On query parameters.
    pub query_params: Vec<ValueMatchSpec>,
}

/// The condition on a path.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathMatchSpec {
    /// How it is compared; `PathPrefix` by default.
    #[serde(rename = "type", default)]
    pub how: PathMatchType,
    /// The path; `/` by default.
    pub value: Option<String>,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PathMatchType {
    /// The same path.
    Exact,
    /// This path and those below it.
    #[default]
    PathPrefix,
    /// A regular expression.
    RegularExpression,
}

/// The condition on a method: HTTP's, or the service and the method of a gRPC call.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum MethodMatch {
    /// An HTTP method.
    Http(String),
    /// A gRPC method.
    Grpc(GrpcMethodMatch),
}

/// The condition on a gRPC call.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// How both names are compared; `Exact` by default.
    #[serde(rename = "type", default)]
    pub how: ValueMatchType,
    /// The service with its package.
    pub service: Option<String>,
    /// The method.
    pub method: Option<String>,
}

/// The condition on a header or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueMatchSpec {
    /// How values are compared; `Exact` by default.
    #[serde(rename = "type", default)]
    pub how: ValueMatchType,
    /// Its name.
    pub name: String,
    /// The value, or the expression.
    pub value: String,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ValueMatchType {
    /// The same value.
    #[default]
    Exact,
    /// A regular expression.
    RegularExpression,
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum FilterSpec {
    /// Edits the request's headers.
    RequestHeaderModifier {
        /// The edits.
        request_header_modifier: HeaderModifier,
    },
    /// Edits the response's headers.
    ResponseHeaderModifier {
        /// The edits.
        response_header_modifier: HeaderModifier,
    },
    /// Redirects the client.
    RequestRedirect {
        /// Where to.
        request_redirect: RequestRedirect,
    },
    /// Replaces host and path.
    URLRewrite {
        /// By what.
        url_rewrite: UrlRewrite,
    },
    /// Copies requests.
    RequestMirror {
        /// Where to.
        request_mirror: RequestMirror,
    },
}

/// Edits of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeaderModifier {
    /// Headers that are replaced.
    pub set: Vec<Header>,
    /// Values that are appended.
    pub add: Vec<Header>,
    /// Headers that are removed.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A redirect. What is left out is the request's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host without a port.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
    /// Port.
    pub port: Option<u16>,
    /// Status of the response; 302 by default.
    pub status_code: Option<u16>,
}

/// A new host, a new path, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UrlRewrite {
    /// Host without a port.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// How a path is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum PathModifier {
    /// All of it.
    ReplaceFullPath {
        /// By this.
        replace_full_path: String,
    },
    /// The prefix that matched.
    ReplacePrefixMatch {
        /// By this.
        replace_prefix_match: String,
    },
}

/// Copies of requests; of all by default.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where the copies go.
    pub backend_ref: BackendRefSpec,
    /// Percentage of the requests.
    pub percent: Option<u32>,
    /// Share of the requests.
    pub fraction: Option<FractionSpec>,
}

/// A share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FractionSpec {
    /// How many.
    pub numerator: u32,
    /// Of how many; 100 by default.
    pub denominator: Option<u32>,
}

/// Where a share of the requests goes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRefSpec {
    /// API group; the core group by default.
    pub group: Option<String>,
    /// Kind; `Service` by default.
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; the route's by default.
    pub namespace: Option<String>,
    /// The Service's port.
    pub port: Option<u16>,
    /// Relative share; 1 by default.
    pub weight: Option<u32>,
    /// Changes to the requests of this share.
    #[serde(default)]
    pub filters: Vec<Lenient<FilterSpec>>,
}

/// How long a request may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TimeoutsSpec {
    /// The whole request.
    pub request: Option<String>,
    /// One attempt.
    pub backend_request: Option<String>,
}

/// When a request is retried (GEP-1731).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Statuses that are retried, besides failed connections.
    pub codes: Vec<u16>,
    /// Attempts beyond the first; 1 by default.
    pub attempts: Option<u32>,
    /// Base interval between attempts.
    pub backoff: Option<String>,
}
