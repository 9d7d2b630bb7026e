//! Rates, and limits of requests.
//!
//! A rate is a number of tokens for a period, and how many may be taken at once on top of them. Tokens are connections or
//! requests; periods are those of protobuf's `Duration`. Refused: a period of zero, in which any number would be allowed.

use tidegate_core::route::filter::LocalRateLimit;
use tidegate_core::token_bucket::TokenRate;

use super::duration::{duration_from_wire, duration_to_wire};
use super::routes::filter::{edits_from_wire, edits_to_wire};
use super::routes::{inner, status};
use super::{ConversionError, bad, object_from_wire, object_to_wire};
use crate::discovery as wire;

/// Never fails: each rate of the model can be sent.
pub(super) fn rate_to_wire(rate: TokenRate) -> wire::TokenRate {
    wire::TokenRate { tokens: rate.tokens, per: Some(duration_to_wire(rate.per)), burst: rate.burst }
}

/// The period must be longer than nothing.
pub(super) fn rate_from_wire(path: &str, rate: wire::TokenRate) -> Result<TokenRate, ConversionError> {
    let per = duration_from_wire(&format!("{path}.per"), rate.per)?;
    if per.is_zero() {
        return Err(bad(&format!("{path}.per"), "0"));
    }
    Ok(TokenRate { tokens: rate.tokens, per, burst: rate.burst })
}

/// A limit with the object that it comes from, the response to what is beyond it, and the key of its bucket.
pub(super) fn limit_to_wire(limit: &LocalRateLimit) -> wire::LocalRateLimit {
    wire::LocalRateLimit {
        origin: Some(object_to_wire(&limit.origin)),
        bucket: limit.bucket.to_string(),
        requests: limit.rate.tokens,
        per: Some(duration_to_wire(limit.rate.per)),
        burst: limit.rate.burst,
        status: limit.status.into(),
        headers: Some(edits_to_wire(&limit.headers)),
    }
}

/// Refuses an unknown status, and header fields that no response may have.
pub(super) fn limit_from_wire(
    path: &str,
    limit: wire::LocalRateLimit,
) -> Result<LocalRateLimit, ConversionError> {
    let rate = wire::TokenRate { tokens: limit.requests, per: limit.per, burst: limit.burst };
    let headers = edits_from_wire(&format!("{path}.headers"), &limit.headers.unwrap_or_default())?;
    let limit = LocalRateLimit {
        origin: object_from_wire(&format!("{path}.origin"), limit.origin)?,
        bucket: limit.bucket.into(),
        rate: rate_from_wire(path, rate)?,
        status: status(&format!("{path}.status"), limit.status)?,
        headers: headers.into(),
    };
    limit.check().map_err(|error| inner(path, &error))?;
    Ok(limit)
}
