//! What the service's answer means, as in Envoy's filter.
//!
//! A field for the request replaces the client's lines of that name: the app must not read one that the client has forged.

use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use tidegate_core::route::filter::HeaderEdits;
use tidegate_proto::rate_limit::rate_limit_response::Code;
use tidegate_proto::rate_limit::{HeaderValue as Field, RateLimitResponse};

use super::LimitCallError;
use super::quota;
use crate::http::verdict::{Edits, InvalidField, RefusalResponse};

/// Says to clients, and to retry policies, that a rate limit was exceeded.
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// A valid answer.
pub(super) enum LimitAnswer {
    /// No limit is exceeded. The changes to a request and its response.
    Within(Option<Box<Edits>>),
    /// A limit is exceeded. The response to a request.
    Exceeded(RefusalResponse),
}

impl LimitAnswer {
    /// The meaning of an answer about a connection.
    pub(super) fn of_connection(response: RateLimitResponse) -> Result<Self, LimitCallError> {
        match response.overall_code() {
            Code::Ok => Ok(Self::Within(None)),
            Code::OverLimit => Ok(Self::Exceeded(RefusalResponse::of_status(StatusCode::TOO_MANY_REQUESTS))),
            Code::Unknown => Err(LimitCallError::NoCode),
        }
    }

    /// The meaning of an answer about a request. `status`: of the response above the limit.
    pub(super) fn of_request(
        response: RateLimitResponse,
        status: u16,
        has_rate_limit_headers: bool,
    ) -> Result<Self, LimitCallError> {
        let quota = has_rate_limit_headers.then(|| quota::fields(&response.statuses)).flatten();
        match response.overall_code() {
            Code::Ok => within(&response, quota).map(Self::Within),
            Code::OverLimit => exceeded(response, status, quota).map(Self::Exceeded),
            Code::Unknown => Err(LimitCallError::NoCode),
        }
    }
}

fn within(
    response: &RateLimitResponse,
    quota: Option<[(&'static str, String); 3]>,
) -> Result<Option<Box<Edits>>, LimitCallError> {
    let for_request: Vec<_> = response.request_headers_to_add.iter().filter_map(field).collect();
    let replaced: Vec<_> = for_request.iter().map(|(name, _)| *name).collect();
    let for_response: Vec<_> = response.response_headers_to_add.iter().filter_map(field).collect();
    let quota: Vec<_> = quota.iter().flatten().map(|(name, value)| (*name, value.as_str())).collect();
    let invalid = |error: tidegate_core::route::RouteError| InvalidField(error.to_string());
    let request = HeaderEdits::new(&[], &for_request, &replaced).map_err(invalid)?;
    let response = HeaderEdits::new(&quota, &for_response, &[]).map_err(invalid)?;
    let edits = Edits { request, response, ..Edits::default() };
    Ok((!edits.is_empty()).then(|| Box::new(edits)))
}

fn exceeded(
    response: RateLimitResponse,
    status: u16,
    quota: Option<[(&'static str, String); 3]>,
) -> Result<RefusalResponse, LimitCallError> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let mut refusal = RefusalResponse::of_status(status);
    refusal.fields.insert(RATE_LIMITED, HeaderValue::from_static("true"));
    for (name, value) in quota.into_iter().flatten() {
        refusal.add(name, &value)?;
    }
    for (name, value) in response.response_headers_to_add.iter().filter_map(field) {
        refusal.add(name, value)?;
    }
    refusal.body = Bytes::from(response.raw_body);
    Ok(refusal)
}

/// Name and value of a field that may be edited.
fn field(field: &Field) -> Option<(&str, &str)> {
    let value = match field.value.as_str() {
        "" => std::str::from_utf8(&field.raw_value).ok()?,
        value => value,
    };
    HeaderEdits::may_edit(&field.key).then_some((field.key.as_str(), value))
}
