//! Filters.
//!
//! A filter is one member of a `oneof`; the list keeps its order, in which filters run. Rate limits, external
//! authorization and JWT are references to the objects that configure them. A filter of an unknown kind decodes as an
//! absent one and is refused: skipping it might skip an authorization.

use tidegate_core::route::filter::{Fault, Filter, Fraction, HeaderEdits, Mirror, PathEdit, Rewrite};
use tidegate_core::route::{FieldName, FieldValue};

use super::super::backend::backend_ref_to_wire;
use super::super::duration::{duration_from_wire, duration_to_wire};
use super::super::rate::{limit_from_wire, limit_to_wire};
use super::super::{ConversionError, missing, object_from_wire, object_to_wire};
use super::{backend_from_wire, inner, status};
use crate::discovery as wire;
use crate::discovery::filter::Kind;

/// Header edits are sent as the model has normalized them: "set" is a removal and an addition.
pub(super) fn filter_to_wire(filter: &Filter) -> wire::Filter {
    let kind = match filter {
        Filter::RequestHeaders(edits) => Kind::RequestHeaders(edits_to_wire(edits)),
        Filter::ResponseHeaders(edits) => Kind::ResponseHeaders(edits_to_wire(edits)),
        Filter::Rewrite(rewrite) => Kind::Rewrite(wire::Rewrite {
            hostname: rewrite.hostname().unwrap_or_default().to_owned(),
            path: rewrite.path().map(path_edit_to_wire),
        }),
        Filter::Mirror(mirror) => Kind::Mirror(wire::Mirror {
            backend: Some(backend_ref_to_wire(&mirror.backend)),
            fraction: Some(fraction_to_wire(mirror.fraction)),
        }),
        Filter::Fault(fault) => Kind::Fault(wire::Fault {
            delay: fault.delay.map(|(duration, fraction)| wire::Delay {
                duration: Some(duration_to_wire(duration)),
                fraction: Some(fraction_to_wire(fraction)),
            }),
            abort: fault.abort.map(|(status, fraction)| wire::Abort {
                status: status.into(),
                fraction: Some(fraction_to_wire(fraction)),
            }),
        }),
        Filter::LocalRateLimit(limit) => Kind::LocalRateLimit(limit_to_wire(limit)),
        Filter::GlobalRateLimit(object) => Kind::GlobalRateLimit(object_to_wire(object)),
        Filter::ExternalAuth(object) => Kind::ExternalAuth(object_to_wire(object)),
        Filter::Jwt(object) => Kind::Jwt(object_to_wire(object)),
    };
    wire::Filter { kind: Some(kind) }
}

/// `path` is the filter's place in its rule or backend, such as `routes[0].rules[1].filters[0]`. Combinations that
/// are invalid, such as two rewrites in one rule, are refused by the route's check.
pub(super) fn filter_from_wire(path: &str, filter: wire::Filter) -> Result<Filter, ConversionError> {
    let object = |object| object_from_wire(path, Some(object));
    Ok(match filter.kind.ok_or_else(|| missing(path))? {
        Kind::RequestHeaders(edits) => Filter::RequestHeaders(edits_from_wire(path, &edits)?),
        Kind::ResponseHeaders(edits) => Filter::ResponseHeaders(edits_from_wire(path, &edits)?),
        Kind::Rewrite(rewrite) => Filter::Rewrite(rewrite_from_wire(path, &rewrite)?),
        Kind::Mirror(mirror) => Filter::Mirror(Mirror {
            backend: backend_from_wire(path, mirror.backend)?,
            fraction: fraction_from_wire(path, mirror.fraction)?,
        }),
        Kind::Fault(fault) => Filter::Fault(fault_from_wire(path, fault)?),
        Kind::LocalRateLimit(limit) => Filter::LocalRateLimit(limit_from_wire(path, limit)?),
        Kind::GlobalRateLimit(reference) => Filter::GlobalRateLimit(object(reference)?),
        Kind::ExternalAuth(reference) => Filter::ExternalAuth(object(reference)?),
        Kind::Jwt(reference) => Filter::Jwt(object(reference)?),
    })
}

/// Rewrites and redirects edit the path the same way.
pub(super) fn path_edit_to_wire(edit: &PathEdit) -> wire::PathEdit {
    let kind = match edit {
        PathEdit::Full(path) => wire::path_edit::Kind::Full(path.to_string()),
        PathEdit::Prefix(prefix) => wire::path_edit::Kind::Prefix(prefix.to_string()),
    };
    wire::PathEdit { kind: Some(kind) }
}

/// An empty prefix is valid: it removes the prefix that matched.
pub(super) fn path_edit_from_wire(path: &str, edit: &wire::PathEdit) -> Result<PathEdit, ConversionError> {
    let decoded = match edit.kind.as_ref().ok_or_else(|| missing(&format!("{path}.path")))? {
        wire::path_edit::Kind::Full(text) => PathEdit::full(text),
        wire::path_edit::Kind::Prefix(text) => PathEdit::prefix(text),
    };
    decoded.map_err(|error| inner(path, &error))
}

fn rewrite_from_wire(path: &str, rewrite: &wire::Rewrite) -> Result<Rewrite, ConversionError> {
    let hostname = Some(rewrite.hostname.as_str()).filter(|hostname| !hostname.is_empty());
    let edit = rewrite.path.as_ref().map(|edit| path_edit_from_wire(path, edit)).transpose()?;
    Rewrite::new(hostname, edit).map_err(|error| inner(path, &error))
}

/// Delay and abort are independent, each with its own fraction. The status of an abort is checked with the rule.
fn fault_from_wire(path: &str, fault: wire::Fault) -> Result<Fault, ConversionError> {
    let delay = |delay: wire::Delay| {
        let path = format!("{path}.delay");
        let duration = duration_from_wire(&format!("{path}.duration"), delay.duration)?;
        Ok((duration, fraction_from_wire(&path, delay.fraction)?))
    };
    let abort = |abort: wire::Abort| {
        let path = format!("{path}.abort");
        Ok((status(&format!("{path}.status"), abort.status)?, fraction_from_wire(&path, abort.fraction)?))
    };
    Ok(Fault { delay: fault.delay.map(delay).transpose()?, abort: fault.abort.map(abort).transpose()? })
}

pub(in crate::convert) fn edits_to_wire(edits: &HeaderEdits) -> wire::HeaderEdits {
    let header = |(name, value): (&FieldName, &FieldValue)| wire::Header {
        name: name.to_string(),
        value: value.as_str().to_owned(),
    };
    wire::HeaderEdits {
        dropped: edits.dropped().iter().map(ToString::to_string).collect(),
        appended: edits.appended().map(header).collect(),
    }
}

/// Only removals and additions arrive; the constructor's list of fields to set stays empty.
pub(in crate::convert) fn edits_from_wire(
    path: &str,
    edits: &wire::HeaderEdits,
) -> Result<HeaderEdits, ConversionError> {
    let dropped: Vec<_> = edits.dropped.iter().map(String::as_str).collect();
    let appended: Vec<_> =
        edits.appended.iter().map(|header| (header.name.as_str(), header.value.as_str())).collect();
    HeaderEdits::new(&[], &appended, &dropped).map_err(|error| inner(path, &error))
}

fn fraction_to_wire(fraction: Fraction) -> wire::Fraction {
    wire::Fraction { numerator: fraction.numerator(), denominator: fraction.denominator() }
}

/// An absent fraction is an error: proto3's default would be 0 of 0.
fn fraction_from_wire(path: &str, fraction: Option<wire::Fraction>) -> Result<Fraction, ConversionError> {
    let fraction = fraction.ok_or_else(|| missing(&format!("{path}.fraction")))?;
    Fraction::new(fraction.numerator, fraction.denominator).map_err(|error| inner(path, &error))
}
