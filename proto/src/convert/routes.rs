//! Routes: the rules of several objects, as one resource.
//!
//! On the wire it is a list of routes, each with its object, when that was created, its hosts and its rules. A rule
//! is matches, filters, one action, timeouts and a retry policy. The order of routes has no meaning:
//! [`RouteTable`](tidegate_core::route::RouteTable) sorts them by Gateway API's precedence, for which it needs the
//! objects' age and name.
//!
//! The model's constructors check each value, so that a table that was decoded is as valid as one that was compiled;
//! this file turns their errors into paths. Beyond that it refuses an absent action, an unknown enum value, a
//! duration with a second or more of nanoseconds, and more than 1,024 regular expressions, because compiled ones take
//! memory.

pub(super) mod filter;
pub(super) mod matching;
pub(super) mod retry;
#[cfg(test)]
mod tests;

use tidegate_core::backend::BackendRef;
use tidegate_core::route::filter::{Redirect, Scheme};
use tidegate_core::route::{
    Action, BackendTarget, DirectResponse, HostMatch, MAX_EXPRESSIONS, Route, RouteError, RouteRule,
    RouteTable, Timeouts, WeightedBackend,
};

use self::filter::{filter_from_wire, filter_to_wire, path_edit_from_wire, path_edit_to_wire};
use self::matching::{match_from_wire, match_to_wire};
use self::retry::{retry_from_wire, retry_to_wire};
use super::backend::{backend_ref_from_wire, backend_ref_to_wire};
use super::duration::{duration_from_wire, duration_to_wire};
use super::{ConversionError, bad, missing, object_from_wire, object_to_wire, port_number};
use crate::discovery as wire;

impl From<&[Route]> for wire::Routes {
    fn from(routes: &[Route]) -> Self {
        Self { routes: routes.iter().map(route_to_wire).collect() }
    }
}

/// Counts the regular expressions before it compiles the first one: compiling is what costs memory and time.
impl TryFrom<wire::Routes> for RouteTable {
    type Error = ConversionError;

    fn try_from(routes: wire::Routes) -> Result<Self, ConversionError> {
        let rules = routes.routes.iter().flat_map(|route| &route.rules);
        let expressions: usize = rules.flat_map(|rule| &rule.matches).map(matching::expressions).sum();
        if expressions > MAX_EXPRESSIONS {
            return Err(bad(
                "routes",
                format!("{expressions} regular expressions, more than {MAX_EXPRESSIONS}"),
            ));
        }
        let route = |(i, route)| route_from_wire(&format!("routes[{i}]"), route);
        let routes = routes.routes.into_iter().enumerate().map(route).collect::<Result<_, _>>()?;
        Self::new(routes).map_err(|error| bad(&error.field, value_and_problem(&error)))
    }
}

fn route_to_wire(route: &Route) -> wire::Route {
    wire::Route {
        origin: Some(object_to_wire(&route.origin)),
        created: route.created,
        hosts: route.hosts.iter().map(ToString::to_string).collect(),
        rules: route.rules.iter().map(rule_to_wire).collect(),
    }
}

/// `path` is the route's place in the resource, such as `routes[2]`. Hosts may be empty, which means every host.
fn route_from_wire(path: &str, route: wire::Route) -> Result<Route, ConversionError> {
    let host = |host: &String| HostMatch::parse(host).map_err(|error| inner(path, &error));
    let rule = |(i, rule)| rule_from_wire(&format!("{path}.rules[{i}]"), rule);
    Ok(Route {
        origin: object_from_wire(&format!("{path}.origin"), route.origin)?,
        created: route.created,
        hosts: route.hosts.iter().map(host).collect::<Result<_, _>>()?,
        rules: route.rules.into_iter().enumerate().map(rule).collect::<Result<_, _>>()?,
    })
}

/// Timeouts are always sent, also without a value; an absent retry policy means the sidecar's default.
fn rule_to_wire(rule: &RouteRule) -> wire::RouteRule {
    let action = match &rule.action {
        Action::Forward(backends) => wire::route_rule::Action::Forward(wire::Forward {
            backends: backends.iter().map(weighted_to_wire).collect(),
        }),
        Action::Redirect(redirect) => wire::route_rule::Action::Redirect(redirect_to_wire(redirect)),
        Action::Respond(response) => wire::route_rule::Action::Respond(response_to_wire(response)),
    };
    wire::RouteRule {
        name: rule.name.as_deref().unwrap_or_default().to_owned(),
        matches: rule.matches.iter().map(match_to_wire).collect(),
        filters: rule.filters.iter().map(filter_to_wire).collect(),
        action: Some(action),
        timeouts: Some(wire::Timeouts {
            request: rule.timeouts.request().map(duration_to_wire),
            backend_request: rule.timeouts.backend_request().map(duration_to_wire),
        }),
        retry: rule.retry.as_ref().map(retry_to_wire),
    }
}

/// A rule without matches applies to every request, as in Gateway API; a rule without an action is refused.
fn rule_from_wire(path: &str, rule: wire::RouteRule) -> Result<RouteRule, ConversionError> {
    let action = match rule.action.ok_or_else(|| missing(&format!("{path}.action")))? {
        wire::route_rule::Action::Forward(forward) => {
            let backend = |(i, backend)| weighted_from_wire(&format!("{path}.backends[{i}]"), backend);
            Action::Forward(forward.backends.into_iter().enumerate().map(backend).collect::<Result<_, _>>()?)
        }
        wire::route_rule::Action::Redirect(redirect) => {
            Action::Redirect(redirect_from_wire(&format!("{path}.action.redirect"), &redirect)?)
        }
        wire::route_rule::Action::Respond(response) => {
            Action::Respond(response_from_wire(&format!("{path}.action.respond"), response)?)
        }
    };
    let matching = |(i, matching)| match_from_wire(&format!("{path}.matches[{i}]"), matching);
    let filter = |(i, filter)| filter_from_wire(&format!("{path}.filters[{i}]"), filter);
    Ok(RouteRule {
        name: (!rule.name.is_empty()).then(|| rule.name.into()),
        matches: rule.matches.into_iter().enumerate().map(matching).collect::<Result<_, _>>()?,
        filters: rule.filters.into_iter().enumerate().map(filter).collect::<Result<_, _>>()?,
        action,
        timeouts: timeouts_from_wire(path, &rule.timeouts.unwrap_or_default())?,
        retry: rule.retry.map(|retry| retry_from_wire(path, retry)).transpose()?,
    })
}

/// The share of a reference that the controller could not resolve is sent with the response that this share gets.
fn weighted_to_wire(backend: &WeightedBackend) -> wire::WeightedBackend {
    let target = match &backend.target {
        BackendTarget::Backend(backend) => {
            wire::weighted_backend::Target::Backend(backend_ref_to_wire(backend))
        }
        BackendTarget::App => wire::weighted_backend::Target::App(wire::App {}),
        BackendTarget::Invalid(response) => {
            wire::weighted_backend::Target::Invalid(response_to_wire(response))
        }
    };
    wire::WeightedBackend {
        weight: backend.weight,
        target: Some(target),
        filters: backend.filters.iter().map(filter_to_wire).collect(),
    }
}

/// Any 32-bit weight is decoded here; the route's check refuses one above `MAX_WEIGHT`.
fn weighted_from_wire(
    path: &str,
    backend: wire::WeightedBackend,
) -> Result<WeightedBackend, ConversionError> {
    let target = match backend.target.ok_or_else(|| missing(&format!("{path}.target")))? {
        wire::weighted_backend::Target::Backend(backend) => {
            BackendTarget::Backend(backend_from_wire(path, Some(backend))?)
        }
        wire::weighted_backend::Target::App(wire::App {}) => BackendTarget::App,
        wire::weighted_backend::Target::Invalid(response) => {
            BackendTarget::Invalid(response_from_wire(&format!("{path}.invalid"), response)?)
        }
    };
    let filter = |(i, filter)| filter_from_wire(&format!("{path}.filters[{i}]"), filter);
    let filters = backend.filters.into_iter().enumerate().map(filter).collect::<Result<_, _>>()?;
    Ok(WeightedBackend { weight: backend.weight, target, filters })
}

fn backend_from_wire(path: &str, backend: Option<wire::BackendRef>) -> Result<BackendRef, ConversionError> {
    backend_ref_from_wire(&format!("{path}.backend"), backend)
}

/// Parts that a redirect keeps from the request are absent: an empty host name, port 0, an unspecified scheme.
fn redirect_to_wire(redirect: &Redirect) -> wire::Redirect {
    let scheme = match redirect.scheme() {
        None => wire::Scheme::Unspecified,
        Some(Scheme::Http) => wire::Scheme::Http,
        Some(Scheme::Https) => wire::Scheme::Https,
    };
    wire::Redirect {
        status: redirect.status().into(),
        scheme: scheme.into(),
        hostname: redirect.hostname().unwrap_or_default().to_owned(),
        port: redirect.port().map(u32::from).unwrap_or_default(),
        path: redirect.path().map(path_edit_to_wire),
    }
}

/// The one place where an unspecified enum value is valid: it means the request's scheme.
fn redirect_from_wire(path: &str, redirect: &wire::Redirect) -> Result<Redirect, ConversionError> {
    let status = status(&format!("{path}.status"), redirect.status)?;
    let mut decoded = Redirect::new(status).map_err(|error| inner(path, &error))?;
    decoded = match wire::Scheme::try_from(redirect.scheme) {
        Ok(wire::Scheme::Unspecified) => decoded,
        Ok(wire::Scheme::Http) => decoded.with_scheme(Scheme::Http),
        Ok(wire::Scheme::Https) => decoded.with_scheme(Scheme::Https),
        Err(_) => return Err(unknown(&format!("{path}.scheme"), redirect.scheme)),
    };
    if !redirect.hostname.is_empty() {
        decoded = decoded.with_hostname(&redirect.hostname).map_err(|error| inner(path, &error))?;
    }
    if redirect.port != 0 {
        let port = port_number(&format!("{path}.port"), redirect.port)?;
        decoded = decoded.with_port(port).map_err(|error| inner(path, &error))?;
    }
    Ok(match &redirect.path {
        Some(edit) => decoded.with_path(path_edit_from_wire(path, edit)?),
        None => decoded,
    })
}

fn response_to_wire(response: &DirectResponse) -> wire::DirectResponse {
    wire::DirectResponse { status: response.status.into(), reason: response.reason.to_string() }
}

fn response_from_wire(path: &str, response: wire::DirectResponse) -> Result<DirectResponse, ConversionError> {
    let status = status(&format!("{path}.status"), response.status)?;
    Ok(DirectResponse { status, reason: response.reason.into() })
}

/// Absent means without a limit, and so does zero (GEP-1742). An attempt may not last longer than the request.
fn timeouts_from_wire(path: &str, timeouts: &wire::Timeouts) -> Result<Timeouts, ConversionError> {
    let duration = |field: &str, duration: Option<wire::Duration>| {
        let path = format!("{path}.timeouts.{field}");
        duration.map(|duration| duration_from_wire(&path, Some(duration))).transpose()
    };
    let request = duration("request", timeouts.request)?;
    let backend_request = duration("backend_request", timeouts.backend_request)?;
    Timeouts::new(request, backend_request).map_err(|error| inner(path, &error))
}

/// A number that may be a status; the model checks its range.
pub(super) fn status(path: &str, status: u32) -> Result<u16, ConversionError> {
    u16::try_from(status).map_err(|_| bad(path, format!("{status} is not a status")))
}

/// The error of an enum's number that this version does not define.
fn unknown(path: &str, value: i32) -> ConversionError {
    bad(path, format!("unknown value {value}"))
}

/// The model's error about a field of the message at `path`.
pub(super) fn inner(path: &str, error: &RouteError) -> ConversionError {
    bad(&format!("{path}.{}", error.field), value_and_problem(error))
}

/// The model's errors have the value apart from the problem; on the wire's side they are one text, with the value
/// quoted.
fn value_and_problem(error: &RouteError) -> String {
    format!("{:?} {}", error.value, error.problem)
}
