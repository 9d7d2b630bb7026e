//! What a rule changes in a request and its response.
//!
//! Filters are data; their effects are pure functions of a message head. They run in the listed order, the filters of a
//! rule before those of a backend (Gateway API v1.7). A filter that cannot be compiled is never skipped: its rule
//! responds with 500 instead.

mod headers;
mod mirror;
mod redirect;
mod rewrite;

use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use self::headers::HeaderEdits;
pub use self::mirror::{Fraction, Mirror};
pub use self::redirect::{Redirect, RedirectInput, Scheme};
pub use self::rewrite::{PathEdit, Rewrite};

use super::RouteRule;
use super::error::{Problem, RouteError};
use crate::object_ref::ObjectRef;
use crate::token_bucket::TokenRate;

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Filter {
    /// Edits the request's headers.
    RequestHeaders(HeaderEdits),
    /// Edits response headers, including those of responses that the proxy generates.
    ResponseHeaders(HeaderEdits),
    /// Replaces host or path of the request that the backend receives.
    Rewrite(Rewrite),
    /// Sends a copy to another backend, whose response is dropped. A rule may have several.
    Mirror(Mirror),
    /// Injects delays or errors into a share of the requests.
    Fault(Fault),
    /// Responds with 429 above a rate that this sidecar counts.
    LocalRateLimit(LocalRateLimit),
    /// Calls a rate limit service (`envoy.service.ratelimit.v3`). The object configures it.
    GlobalRateLimit(ObjectRef),
    /// Calls an authorization service (Envoy's `ext_authz`; Gateway API: `ExternalAuth`, GEP-1494). The object
    /// configures it.
    ExternalAuth(ObjectRef),
    /// Requires a JSON Web Token (RFC 7519). The object configures issuers and keys.
    Jwt(ObjectRef),
}

/// Fault injection (Istio: `HTTPFaultInjection`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Delay before the request is forwarded, and the share of requests that it applies to.
    pub delay: Option<(Duration, Fraction)>,
    /// Status of the response that replaces the backend's, and the share of requests that it applies to. A delayed
    /// request may be aborted as well.
    pub abort: Option<(u16, Fraction)>,
}

/// A limit of requests, by a token bucket (OSM: `UpstreamTrafficSetting`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalRateLimit {
    /// The object that sets the limit. Rules that name the same object and bucket share it.
    pub origin: ObjectRef,
    /// Name of the limit within the object, such as its path. Empty if the object has only one.
    pub bucket: Arc<str>,
    /// How fast requests may come.
    pub rate: TokenRate,
    /// Status of the response above the limit, 400 to 599; Envoy's default is 429.
    pub status: u16,
    /// Headers of that response.
    pub headers: Arc<HeaderEdits>,
}

/// Checks that filters are consistent with each other and with their rule.
pub(super) fn check(filters: &[Filter], rule: &RouteRule) -> Result<(), RouteError> {
    for (i, filter) in filters.iter().enumerate() {
        let same = |other: &Filter| discriminant(other) == discriminant(filter);
        let may_repeat = matches!(
            filter,
            Filter::Mirror(_)
                | Filter::LocalRateLimit(_)
                | Filter::GlobalRateLimit(_)
                | Filter::ExternalAuth(_)
                | Filter::Jwt(_)
        );
        let within = |error: RouteError| error.within(&format!("filters[{i}]"));
        if !may_repeat && filters.iter().take(i).any(same) {
            return Err(within(RouteError::new("type", filter.kind(), Problem::Repeated)));
        }
        filter.check(rule).map_err(within)?;
    }
    Ok(())
}

/// Checks that a rule allows this edit of the path.
pub(super) fn check_path_edit(
    edit: Option<&PathEdit>,
    rule: &RouteRule,
    field: &str,
) -> Result<(), RouteError> {
    match edit {
        Some(PathEdit::Prefix(prefix)) if !rule.has_one_prefix() => {
            let field = format!("{field}.replacePrefixMatch");
            Err(RouteError::new(&field, prefix, Problem::NeedsPrefix))
        }
        _ => Ok(()),
    }
}

impl LocalRateLimit {
    /// Checks the values that its type does not constrain.
    pub fn check(&self) -> Result<(), RouteError> {
        if !(400..=599).contains(&self.status) {
            return Err(RouteError::new("status", self.status, Problem::Status("400 to 599")));
        }
        if self.rate.per.is_zero() {
            return Err(RouteError::new("per", format!("{:?}", self.rate.per), Problem::Empty));
        }
        Ok(())
    }
}

impl Filter {
    /// Its type in Gateway API's spelling.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RequestHeaders(_) => "RequestHeaderModifier",
            Self::ResponseHeaders(_) => "ResponseHeaderModifier",
            Self::Rewrite(_) => "URLRewrite",
            Self::Mirror(_) => "RequestMirror",
            Self::Fault(_) => "Fault",
            Self::LocalRateLimit(_) => "LocalRateLimit",
            Self::GlobalRateLimit(_) => "GlobalRateLimit",
            Self::ExternalAuth(_) => "ExternalAuth",
            Self::Jwt(_) => "JWT",
        }
    }

    fn check(&self, rule: &RouteRule) -> Result<(), RouteError> {
        match self {
            Self::Rewrite(rewrite) => check_path_edit(rewrite.path(), rule, "path"),
            Self::Fault(Fault { abort: Some((status, _)), .. }) if !(200..=599).contains(status) => {
                Err(RouteError::new("abort.status", status, Problem::Status("200 to 599")))
            }
            Self::LocalRateLimit(limit) => limit.check(),
            _ => Ok(()),
        }
    }
}
