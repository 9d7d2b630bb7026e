//! Retry policies.
//!
//! A policy is the failures that are retried (HTTP statuses as inclusive ranges, gRPC statuses, resets, timeouts),
//! the methods, the number of attempts beyond the first, the backoff and an optional budget. An absent policy is not
//! an empty one: it means that only requests that provably were not processed are retried. Absent methods are
//! refused, because "all" would repeat requests that are not idempotent (RFC 9110 §9.2.2).

use tidegate_core::route::RetryPolicy;
use tidegate_core::route::retry::{Backoff, Budget, RetryMethods, RetryOn};

use super::super::duration::{duration_from_wire, duration_to_wire};
use super::super::{ConversionError, bad, missing};
use super::{inner, status, unknown};
use crate::discovery as wire;

/// Writes every field, also those that have the model's defaults, so that both sides agree whatever their versions'
/// defaults are.
pub(in crate::convert) fn retry_to_wire(policy: &RetryPolicy) -> wire::RetryPolicy {
    let on = policy.on();
    let range =
        |(first, last): &(u16, u16)| wire::StatusRange { first: (*first).into(), last: (*last).into() };
    let methods = match policy.methods() {
        RetryMethods::Idempotent => wire::RetryMethods::Idempotent,
        RetryMethods::All => wire::RetryMethods::All,
    };
    wire::RetryPolicy {
        on: Some(wire::RetryOn {
            statuses: on.statuses().iter().map(range).collect(),
            grpc: on.grpc().iter().map(|code| u32::from(*code)).collect(),
            reset: on.reset(),
            timeout: on.timeout(),
            rate_limited: on.rate_limited(),
        }),
        methods: methods.into(),
        attempts: policy.attempts(),
        backoff: Some(wire::Backoff {
            base: Some(duration_to_wire(policy.backoff().base())),
            max: Some(duration_to_wire(policy.backoff().max())),
        }),
        budget: policy.budget().map(|budget| wire::RetryBudget {
            percent: budget.percent(),
            interval: Some(duration_to_wire(budget.interval())),
            min_count: budget.min_count(),
            min_interval: Some(duration_to_wire(budget.min_interval())),
        }),
    }
}

/// The policy of the rule at `path`, of which the model's errors name the field.
pub(in crate::convert) fn retry_from_wire(
    path: &str,
    policy: wire::RetryPolicy,
) -> Result<RetryPolicy, ConversionError> {
    let field = |name: &str| format!("{path}.retry.{name}");
    let on = on_from_wire(path, policy.on.ok_or_else(|| missing(&field("on")))?)?;
    let methods = match wire::RetryMethods::try_from(policy.methods) {
        Ok(wire::RetryMethods::Idempotent) => RetryMethods::Idempotent,
        Ok(wire::RetryMethods::All) => RetryMethods::All,
        Ok(wire::RetryMethods::Unspecified) | Err(_) => {
            return Err(unknown(&field("methods"), policy.methods));
        }
    };
    let backoff = policy.backoff.ok_or_else(|| missing(&field("backoff")))?;
    let base = duration_from_wire(&field("backoff.base"), backoff.base)?;
    let max = duration_from_wire(&field("backoff.max"), backoff.max)?;
    let backoff = Backoff::new(base, Some(max)).map_err(|error| inner(path, &error))?;
    let budget = policy.budget.map(|budget| budget_from_wire(&field("budget"), path, &budget)).transpose()?;
    RetryPolicy::new(on, methods, policy.attempts, backoff, budget).map_err(|error| inner(path, &error))
}

/// Numbers are only narrowed here; the model checks that statuses are within 400 to 599 and gRPC statuses within 0 to
/// 16.
fn on_from_wire(path: &str, on: wire::RetryOn) -> Result<RetryOn, ConversionError> {
    let range = |(i, range): (usize, &wire::StatusRange)| {
        let path = format!("{path}.retry.on.statuses[{i}]");
        Ok((status(&path, range.first)?, status(&path, range.last)?))
    };
    let statuses = on.statuses.iter().enumerate().map(range).collect::<Result<_, ConversionError>>()?;
    let code = |(i, code): (usize, &u32)| {
        let path = format!("{path}.retry.on.grpc[{i}]");
        u8::try_from(*code).map_err(|_| bad(&path, format!("{code} is not a gRPC status")))
    };
    let grpc = on.grpc.iter().enumerate().map(code).collect::<Result<_, _>>()?;
    RetryOn::failures(statuses, grpc, on.reset, on.timeout, on.rate_limited)
        .map_err(|error| inner(path, &error))
}

/// `path` is the budget's own, for its durations; the model's errors name the field within `rule`.
fn budget_from_wire(path: &str, rule: &str, budget: &wire::RetryBudget) -> Result<Budget, ConversionError> {
    let interval = duration_from_wire(&format!("{path}.interval"), budget.interval)?;
    let min_interval = duration_from_wire(&format!("{path}.min_interval"), budget.min_interval)?;
    Budget::new(budget.percent, interval, budget.min_count, min_interval)
        .map_err(|error| inner(&format!("{rule}.retry"), &error))
}
