//! A route's rules, compiled to the route model.
//!
//! A rule whose matches are understood keeps its requests: if anything else in it cannot be carried out, they are answered
//! with an error, as Gateway API requires for filters. A rule whose matches are not understood is left out. A backendRef
//! that cannot be resolved takes its share of the requests, and these are answered with an error.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ServicePort;
use tidegate_core::backend::BackendRef;
use tidegate_core::route::matching::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, RpcMatch};
use tidegate_core::route::retry::{Backoff, RetryMethods, RetryOn};
use tidegate_core::route::{
    Action, BackendTarget, DirectResponse, HostMatch, Method, RetryPolicy, Route, RouteError, RouteRule,
    Timeouts, WeightedBackend,
};
use tidegate_crds::gateway_api::rule::{self as written, MethodMatch, PathMatchType, ValueMatchType};
use tidegate_crds::gateway_api::{Lenient, Routed, duration};

use super::fault::{BACKEND_NOT_FOUND, INVALID_KIND, RouteFault, UNSUPPORTED_PROTOCOL, UNSUPPORTED_VALUE};
use super::filter;
use crate::compile::route_features::{Feature, Features};
use crate::index::{Index, RouteObject, backend_of};
use crate::object::Kind;
use crate::service::{is_alias, port_protocol, tcp_ports};

/// A route, as far as it can be carried out.
#[derive(Clone, Debug)]
pub(super) struct CompiledRoute {
    pub(super) route: Route,
    /// What is wrong with rules: one for each that is left out or answers with an error.
    pub(super) faults: Vec<RouteFault>,
}

/// Compiles the rules of one route.
pub(super) struct Rules<'i> {
    pub(super) index: &'i Index,
    pub(super) object: RouteObject<'i>,
    pub(super) features: Features,
    /// The place of the rule that is compiled.
    at: usize,
}

/// The rules of a route.
pub(super) fn compile(index: &Index, object: RouteObject<'_>, features: Features) -> CompiledRoute {
    let mut rules = Rules { index, object, features, at: 0 };
    let (mut compiled, mut faults) = (Vec::new(), Vec::new());
    let hosts = hosts(&object);
    for (at, part) in object.spec.rules.iter().enumerate() {
        rules.at = at;
        let (rule, fault) = match &hosts {
            Ok(_) => rules.rule(part),
            // Without its hostnames, it would apply to others.
            Err(fault) => (None, Some(fault.clone())),
        };
        compiled.extend(rule);
        faults.extend(fault);
    }
    let route = Route {
        origin: object.name.to_ref(object.kind),
        created: created(&object),
        hosts: hosts.unwrap_or_default(),
        rules: compiled,
    };
    CompiledRoute { route, faults }
}

/// The servers that a TLSRoute is about. For other routes of a Service, hostnames have no meaning.
fn hosts(object: &RouteObject<'_>) -> Result<Vec<HostMatch>, RouteFault> {
    if object.routed != Routed::Tls {
        return Ok(Vec::new());
    }
    let names = match object.spec.hostnames.as_ref().map(Lenient::read) {
        Some(Ok(names)) if !names.0.is_empty() => &names.0,
        Some(Err(reason)) => return Err(RouteFault::unsupported("hostnames", reason)),
        _ => return Err(RouteFault::unsupported("hostnames", "none is listed")),
    };
    let host = |(at, name): (usize, &String)| match HostMatch::parse(name) {
        Ok(host @ HostMatch::Name(_)) => Ok(host),
        _ => Err(RouteFault::unsupported(&format!("hostnames[{at}]"), "is not a name of a server")),
    };
    names.iter().enumerate().map(host).collect()
}

/// The references of a route that cannot be resolved.
pub(super) fn unresolved(index: &Index, object: &RouteObject<'_>) -> Vec<RouteFault> {
    let fault = |(at, backend)| Some(resolve(index, object, backend).err()?.in_rule(at));
    object.backend_refs().filter_map(fault).collect()
}

/// When a route was created, in seconds since 1970; 0 for a file.
pub(super) fn created(object: &RouteObject<'_>) -> i64 {
    object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

impl Rules<'_> {
    /// The rule, if its matches are understood, and what is wrong with it.
    fn rule(&self, part: &Lenient<written::RuleSpec>) -> (Option<RouteRule>, Option<RouteFault>) {
        let rule = match part.read() {
            Ok(rule) => rule,
            Err(reason) => return (None, Some(RouteFault::new(UNSUPPORTED_VALUE, reason).in_rule(self.at))),
        };
        let matches = match self.matches(rule) {
            Ok(matches) => matches,
            Err(fault) => return (None, Some(fault.in_rule(self.at))),
        };
        let name: Arc<str> = rule.name.as_deref().map_or_else(|| self.at.to_string().into(), Into::into);
        let empty = RouteRule { name: Some(name), matches, ..RouteRule::new(Action::Forward(Vec::new())) };
        match self.filled(rule, empty.clone()) {
            Ok(rule) => (Some(rule), None),
            Err(fault) => {
                let fault = fault.in_rule(self.at);
                let action = Action::Respond(self.error(&fault.message));
                (Some(RouteRule { action, ..empty }), Some(fault))
            }
        }
    }

    /// The rule with filters, action, timeouts and retries.
    fn filled(&self, rule: &written::RuleSpec, empty: RouteRule) -> Result<RouteRule, RouteFault> {
        if let Some(field) = rule.unknown.keys().map(String::as_str).chain(self.of_requests(rule)).next() {
            return Err(RouteFault::unsupported(field, "is not supported"));
        }
        let (filters, redirect) = filter::filters(self, &rule.filters, "filters")?;
        let timeouts = rule.timeouts.as_ref().map(|part| self.timeouts(part)).transpose()?;
        let retry = rule.retry.as_ref().map(|part| self.retry(part)).transpose()?;
        let action = match redirect {
            Some(_) if !rule.backend_refs.is_empty() => {
                let message = "filters: RequestRedirect cannot be combined with backendRefs";
                return Err(RouteFault::new(super::fault::INCOMPATIBLE_FILTERS, message));
            }
            Some(redirect) => Action::Redirect(redirect),
            None if rule.backend_refs.is_empty() => {
                Action::Respond(self.error("the rule has no backendRefs"))
            }
            None => Action::Forward(self.backends(&rule.backend_refs)?),
        };
        let rule = RouteRule { filters, action, timeouts: timeouts.unwrap_or_default(), retry, ..empty };
        self.check(&rule)?;
        Ok(rule)
    }

    /// The parts of a rule that only requests have, if it is about connections.
    fn of_requests(&self, rule: &written::RuleSpec) -> Option<&'static str> {
        let parts = [
            ("matches", !rule.matches.is_empty()),
            ("filters", !rule.filters.is_empty()),
            ("timeouts", rule.timeouts.is_some()),
            ("retry", rule.retry.is_some()),
        ];
        let found = parts.into_iter().find(|(_, is_there)| *is_there && self.object.routed < Routed::Http);
        found.map(|(name, _)| name)
    }

    /// Whether the parts of a rule fit each other.
    fn check(&self, rule: &RouteRule) -> Result<(), RouteFault> {
        let origin = self.object.name.to_ref(self.object.kind);
        let route = Route { origin, created: 0, hosts: Vec::new(), rules: vec![rule.clone()] };
        route.check().map_err(|mut error| {
            if let Some(field) = error.field.strip_prefix("rules[0].") {
                error.field = field.to_owned();
            }
            RouteFault::of_model("", &error)
        })
    }

    /// The response to requests that cannot be forwarded: 500, and 503 for gRPC, which clients read as UNAVAILABLE.
    pub(super) fn error(&self, reason: &str) -> DirectResponse {
        DirectResponse {
            status: if self.object.routed == Routed::Grpc { 503 } else { 500 },
            reason: reason.into(),
        }
    }

    /// Fails unless sidecars carry out a feature that `field` needs.
    pub(super) fn need(&self, feature: Feature, field: &str) -> Result<(), RouteFault> {
        if self.features.has(feature) {
            return Ok(());
        }
        Err(RouteFault::unsupported(field, &format!("this version does not support {}", feature.what())))
    }

    /// The matches of a rule; none in the object is one that matches everything.
    fn matches(&self, rule: &written::RuleSpec) -> Result<Vec<RouteMatch>, RouteFault> {
        let any = || {
            if self.object.routed == Routed::Http {
                http_match(&written::RuleMatchSpec::default())
            } else {
                Ok(RouteMatch::any())
            }
        };
        if rule.matches.is_empty() {
            return any()
                .map(|matching| vec![matching])
                .map_err(|error| RouteFault::of_model("matches", &error));
        }
        let one = |(at, part): (usize, &Lenient<written::RuleMatchSpec>)| {
            let field = format!("matches[{at}]");
            let found = part.read().map_err(|reason| RouteFault::unsupported(&field, reason))?;
            let matching =
                if self.object.routed == Routed::Grpc { grpc_match(found) } else { http_match(found) };
            matching.map_err(|error| RouteFault::of_model(&field, &error))
        };
        rule.matches.iter().enumerate().map(one).collect()
    }

    /// The shares of a rule. One that cannot be resolved answers with an error.
    fn backends(
        &self,
        refs: &[Lenient<written::BackendRefSpec>],
    ) -> Result<Vec<WeightedBackend>, RouteFault> {
        let mut shares = Vec::with_capacity(refs.len());
        for (at, part) in refs.iter().enumerate() {
            let field = format!("backendRefs[{at}]");
            let backend = part.read().map_err(|reason| RouteFault::unsupported(&field, reason))?;
            let target = match resolve(self.index, &self.object, backend) {
                Ok(name) => BackendTarget::Backend(name),
                Err(fault) => BackendTarget::Invalid(self.error(&fault.message)),
            };
            if !backend.filters.is_empty() {
                self.need(Feature::BackendFilters, &field)?;
            }
            let (filters, redirect) = filter::filters(self, &backend.filters, &format!("{field}.filters"))?;
            if redirect.is_some() {
                return Err(RouteFault::unsupported(&field, "a backendRef cannot have a RequestRedirect"));
            }
            shares.push(WeightedBackend { weight: backend.weight.unwrap_or(1), target, filters });
        }
        Ok(shares)
    }

    /// The timeouts of a rule. Zero disables one, as GEP-2257 has it.
    fn timeouts(&self, part: &Lenient<written::TimeoutsSpec>) -> Result<Timeouts, RouteFault> {
        let timeouts = part.read().map_err(|reason| RouteFault::unsupported("timeouts", reason))?;
        let parse = |text: &Option<String>, field, feature| {
            let Some(text) = text else { return Ok(None) };
            self.need(feature, field)?;
            parse_duration(text, field).map(Some)
        };
        let request = parse(&timeouts.request, "timeouts.request", Feature::RequestTimeout)?;
        let attempt = parse(&timeouts.backend_request, "timeouts.backendRequest", Feature::BackendTimeout)?;
        Timeouts::new(request, attempt).map_err(|error| RouteFault::of_model("", &error))
    }

    /// Every method is retried: the specification names none, and authors restrict a rule by its matches.
    fn retry(&self, part: &Lenient<written::Retry>) -> Result<RetryPolicy, RouteFault> {
        let retry = part.read().map_err(|reason| RouteFault::unsupported("retry", reason))?;
        self.need(Feature::Retry, "retry")?;
        let policy = || {
            let backoff = match &retry.backoff {
                Some(text) => {
                    let base = parse_duration(text, "retry.backoff")?;
                    Backoff::new(base, None).map_err(|error| RouteFault::of_model("", &error))?
                }
                None => Backoff::default(),
            };
            let on = RetryOn::codes(&retry.codes).map_err(|error| RouteFault::of_model("", &error))?;
            let attempts = retry.attempts.unwrap_or(1);
            RetryPolicy::new(on, RetryMethods::All, attempts, backoff, None)
                .map_err(|error| RouteFault::of_model("", &error))
        };
        policy()
    }
}

/// The backend that a reference names. No grant is needed for another namespace's: the workload that serves the request
/// decides which clients it admits (GEP-1294).
pub(super) fn resolve(
    index: &Index,
    object: &RouteObject<'_>,
    backend: &written::BackendRefSpec,
) -> Result<BackendRef, RouteFault> {
    let (group, kind) = (backend.group.as_deref(), backend.kind.as_deref());
    if group.is_some_and(|group| !group.is_empty()) || kind.is_some_and(|kind| kind != "Service") {
        let (group, kind) = (group.unwrap_or_default(), kind.unwrap_or("Service"));
        return Err(RouteFault::new(INVALID_KIND, format!("{kind} of group {group:?} is not a Service")));
    }
    let name = backend_of(object.name, backend);
    let missing = |what: String| RouteFault::new(BACKEND_NOT_FOUND, what);
    let service = index.service(&name).ok_or_else(|| missing(format!("there is no Service {name}")))?;
    if is_alias(service) {
        return Err(missing(format!("Service {name} is an alias of a name outside the cluster")));
    }
    let number = backend.port.ok_or_else(|| missing(format!("Service {name} needs a port")))?;
    let mut ports = tcp_ports(service);
    let port = ports.find(|port| port.port == i32::from(number));
    let port = port.ok_or_else(|| missing(format!("Service {name} has no TCP port {number}")))?;
    if object.routed >= Routed::Http && !speaks_http(port) {
        let message = format!("port {number} of Service {name} carries opaque bytes");
        return Err(RouteFault::new(UNSUPPORTED_PROTOCOL, message));
    }
    Ok(BackendRef { object: name.to_ref(Kind::Service), port: number })
}

/// Whether requests can be sent to a port: unless connections to it carry opaque bytes.
pub(super) fn speaks_http(port: &ServicePort) -> bool {
    !port_protocol(port).carried().is_opaque()
}

/// A duration in the form of GEP-2257.
fn parse_duration(text: &str, field: &str) -> Result<Duration, RouteFault> {
    let problem =
        "is not a duration: write up to four numbers of up to five digits with h, m, s or ms, such as 1m30s";
    duration(text).ok_or_else(|| RouteFault::unsupported(field, &format!("{text:?} {problem}")))
}

/// Without a path it matches all paths, as the definition's default `PathPrefix /` says.
fn http_match(found: &written::RuleMatchSpec) -> Result<RouteMatch, RouteError> {
    let (how, value) = match &found.path {
        Some(path) => (path.how, path.value.as_deref().unwrap_or("/")),
        None => (PathMatchType::PathPrefix, "/"),
    };
    let path = match how {
        PathMatchType::Exact => PathMatch::exact(value)?,
        PathMatchType::PathPrefix => PathMatch::prefix(value)?,
        PathMatchType::RegularExpression => PathMatch::regex(value)?,
    };
    let method = match &found.method {
        Some(MethodMatch::Http(method)) => vec![Method::parse(method)?],
        Some(MethodMatch::Grpc(_)) => return Err(misplaced_method("an object")),
        None => Vec::new(),
    };
    let query = found.query_params.iter().enumerate().map(|(at, value)| {
        let query = match value.how {
            ValueMatchType::Exact => QueryMatch::exact(&value.name, &value.value),
            ValueMatchType::RegularExpression => QueryMatch::regex(&value.name, &value.value),
        };
        query.map_err(|error| error.within(&format!("queryParams[{at}]")))
    });
    Ok(RouteMatch::new(Some(path), method, headers(found)?, query.collect::<Result<_, _>>()?))
}

/// A match of gRPC: service and method as a path.
fn grpc_match(found: &written::RuleMatchSpec) -> Result<RouteMatch, RouteError> {
    let path = match &found.method {
        Some(MethodMatch::Grpc(call)) => {
            let parse = |name: &Option<String>| {
                let name = name.as_deref().filter(|name| !name.is_empty());
                name.map(|name| match call.how {
                    ValueMatchType::Exact => RpcMatch::exact(name),
                    ValueMatchType::RegularExpression => RpcMatch::regex(name),
                })
                .transpose()
            };
            RpcMatch::path(parse(&call.service)?, parse(&call.method)?)
        }
        Some(MethodMatch::Http(method)) => return Err(misplaced_method(method)),
        None => None,
    };
    Ok(RouteMatch::new(path, Vec::new(), headers(found)?, Vec::new()))
}

/// A method of the other kind of route, which no definition accepts.
fn misplaced_method(value: &str) -> RouteError {
    let problem = tidegate_core::route::Problem::Method;
    RouteError { field: "method".to_owned(), value: value.to_owned(), problem }
}

/// Header matches, in the order of the object.
fn headers(found: &written::RuleMatchSpec) -> Result<Vec<HeaderMatch>, RouteError> {
    let header = |(at, value): (usize, &written::ValueMatchSpec)| {
        let header = match value.how {
            ValueMatchType::Exact => HeaderMatch::exact(&value.name, &value.value),
            ValueMatchType::RegularExpression => HeaderMatch::regex(&value.name, &value.value),
        };
        header.map_err(|error| error.within(&format!("headers[{at}]")))
    };
    found.headers.iter().enumerate().map(header).collect()
}
