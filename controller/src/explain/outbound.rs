//! Where a request of a workload's app would go: the routes and backends that its sidecar gets, asked a question; and what the
//! workloads there decide about it.

use k8s_openapi::api::core::v1::{Pod, Service};
use serde::Serialize;
use tidegate_core::TrustDomain;
use tidegate_core::backend::BackendRef;
use tidegate_core::route::filter::{Filter, Mirror, Redirect, RedirectInput, Scheme};
use tidegate_core::route::{
    Action, BackendTarget, RequestView, RetryPolicy, RouteRule, RouteTable, Selected, Timeouts,
    WeightedBackend,
};

use super::far_side::{FarSide, FarSideDecision};
use super::request::ExplainedRequest;
use super::{ExplainError, HttpRequest};
use crate::compile::destination::Resolver;
use crate::compile::route_features::Features;
use crate::index::Index;
use crate::object::{Kind, ObjectName};
use crate::service::{port_protocol, tcp_ports};

/// A request that an app sends to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundQuery {
    /// The app's Pod; where no Pod has the name, the service account with it.
    pub caller: ObjectName,
    /// The Service whose cluster IP it dials.
    pub service: ObjectName,
    /// The Service's port; may be left out if it has only one.
    pub port: Option<u16>,
    /// The request.
    pub request: HttpRequest,
}

/// The objects that questions about requests are answered from.
#[derive(Clone, Copy)]
pub struct OutboundView<'i> {
    /// The objects.
    pub index: &'i Index,
    /// The mesh's trust domain.
    pub trust_domain: &'i TrustDomain,
    /// Whether a Pod has a sidecar.
    pub is_workload: fn(&Pod) -> bool,
    /// Why a workload has no policy although its objects would compile to one.
    pub missing_policy: &'i dyn Fn(&ObjectName) -> Option<String>,
}

/// What the app's sidecar does with a request, and what the sidecar of each endpoint does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundExplanation {
    /// `allow` if it is forwarded to an endpoint that allows it, or redirected; `deny` if it is answered with an error.
    pub decision: &'static str,
    /// Why, in a sentence.
    pub reason: String,
    /// `response_code_details` of an error, or the code of the far side's refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// The rule that applies, as the access log names it. `None`: the Service has no routes, or no rule matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// How often a failed request is sent again, and what says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<String>,
    /// The Services that get copies, each with its share of the requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// The request.
    pub request: String,
    /// The name in the certificate of the app's sidecar.
    pub client_identity: String,
    /// The Service's port.
    pub port: u16,
    /// Where it goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendShare>,
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendShare {
    /// `<namespace>/<name>:<port>` of the Service; `None` if it cannot be resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Its weight, and the sum of all.
    pub weight: (u32, u64),
    /// What one client may have open to it, if that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<String>,
    /// The addresses of its endpoints.
    pub endpoints: Vec<String>,
    /// What is decided at these endpoints; those that decide the same are one entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub far_side: Vec<FarSideDecision>,
    /// Why its requests are answered with an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answers a question from the objects alone, like [`explain`](super::explain).
pub fn explain_outbound(
    view: OutboundView<'_>,
    query: &OutboundQuery,
) -> Result<OutboundExplanation, ExplainError> {
    let OutboundView { index, trust_domain, is_workload, .. } = view;
    let OutboundQuery { caller, service: name, request, .. } = query;
    let service = index.service(name).ok_or_else(|| ExplainError::NoService(name.clone()))?;
    let port = port(service, query)?;
    let resolver = Resolver { index, trust_domain, is_workload, features: Features::EXECUTED };
    let far_side = FarSide::new(view, resolver, caller)?;
    let unrouted =
        Unrouted { request: request.to_string(), client_identity: far_side.client_identity(), port };
    let Some(found) = resolver.routes(name, port, &caller.namespace) else {
        let itself = BackendRef { object: name.to_ref(Kind::Service), port };
        let share = WeightedBackend::new(1, BackendTarget::Backend(itself));
        let shares = shares(&far_side, &[share], |_| request.clone())?;
        let answer = unrouted.forwarded("the Service has no routes", None, shares);
        return Ok(OutboundExplanation { retries: retries(&far_side, name, None), ..answer });
    };
    let table = RouteTable::new(found.routes)
        .map_err(|error| ExplainError::NoRoutes(name.clone(), error.to_string()))?;
    let normal = request.normal(table.needs_normal_path());
    let normal = normal.map_err(|error| ExplainError::NoPath(request.to_string(), error))?;
    match table.select(&normal) {
        None => Ok(unrouted.refused("no rule of the Service's routes matches", "route_not_found", None)),
        Some(found) => {
            let is_forwarded = matches!(found.rule.action, Action::Forward(_));
            let rule = Some(found.rule);
            let retries = retries(&far_side, name, rule).filter(|_| is_forwarded);
            let mirrors = mirrors(found.rule).filter(|_| is_forwarded).collect();
            Ok(OutboundExplanation { retries, mirrors, ..unrouted.applied(&far_side, &normal, &found)? })
        }
    }
}

/// The Service's port that is meant.
fn port(service: &Service, query: &OutboundQuery) -> Result<u16, ExplainError> {
    let http = tcp_ports(service).filter(|port| !port_protocol(port).carried().is_opaque());
    let ports: Vec<_> = http.filter_map(|port| u16::try_from(port.port).ok()).collect();
    match (query.port, ports.as_slice()) {
        (Some(port), ports) if ports.contains(&port) => Ok(port),
        (None, [only]) => Ok(*only),
        _ => Err(ExplainError::WhichServicePort(query.service.clone(), ports)),
    }
}

/// What every answer says.
struct Unrouted {
    request: String,
    client_identity: String,
    port: u16,
}

impl Unrouted {
    /// A rule applies.
    fn applied(
        self,
        far_side: &FarSide<'_>,
        request: &ExplainedRequest<'_>,
        found: &Selected<'_>,
    ) -> Result<OutboundExplanation, ExplainError> {
        let route = Some(found.route.label(found.rule));
        Ok(match &found.rule.action {
            Action::Forward(backends) => {
                let reason = format!("{} says where it goes", found.route.origin);
                let shares = shares(far_side, backends, |share| request.forwarded(found, share))?;
                self.forwarded(&reason, route, shares)
            }
            Action::Respond(response) => {
                let reason = format!("answered with {}: {}", response.status, response.reason);
                self.refused(&reason, "direct_response", route)
            }
            Action::Redirect(redirect) => {
                let reason = redirection(redirect, request, found, self.port);
                OutboundExplanation { route, ..self.answer("allow", reason) }
            }
        })
    }

    /// It goes to these shares.
    fn forwarded(
        self,
        reason: &str,
        route: Option<String>,
        backends: Vec<BackendShare>,
    ) -> OutboundExplanation {
        let is_served = |share: &BackendShare| share.error.is_none() && share.weight.0 > 0;
        let served = || backends.iter().filter(|share| is_served(share)).flat_map(|share| &share.far_side);
        let (decision, code) = if served().any(FarSideDecision::is_allowed) {
            ("allow", None)
        } else if let Some(refusal) = served().next() {
            let reason = format!("{reason}; refused there: {}", refusal.reason);
            return OutboundExplanation {
                code: refusal.code,
                route,
                backends,
                ..self.answer("deny", reason)
            };
        } else if backends.iter().all(|share| share.weight.0 == 0) {
            ("deny", Some("no_backend"))
        } else if backends.iter().any(|share| share.backend.is_some()) {
            ("deny", Some("no_healthy_upstream"))
        } else {
            ("deny", Some("invalid_backend"))
        };
        OutboundExplanation { code, route, backends, ..self.answer(decision, reason.to_owned()) }
    }

    /// It is answered with an error.
    fn refused(self, reason: &str, code: &'static str, route: Option<String>) -> OutboundExplanation {
        OutboundExplanation { code: Some(code), route, ..self.answer("deny", reason.to_owned()) }
    }

    /// The explanation with this decision.
    fn answer(self, decision: &'static str, reason: String) -> OutboundExplanation {
        let Self { request, client_identity, port } = self;
        OutboundExplanation {
            decision,
            reason,
            code: None,
            route: None,
            retries: None,
            mirrors: Vec::new(),
            request,
            client_identity,
            port,
            backends: Vec::new(),
        }
    }
}

/// How often a failed request is sent again: as its rule says if that has limits of its own, else as an object about the
/// Service does.
fn retries(far_side: &FarSide<'_>, service: &ObjectName, rule: Option<&RouteRule>) -> Option<String> {
    let said = |policy: &RetryPolicy, by: &str| format!("at most {} times, as {by} says", policy.attempts());
    match rule.filter(|rule| rule.retry.is_some() || rule.timeouts != Timeouts::default()) {
        Some(rule) => rule.retry.as_ref().map(|policy| said(policy, "the rule")),
        None => far_side.retry(service).map(|retry| said(&retry.policy, &retry.origin.to_string())),
    }
}

/// The Services that get copies of a rule's requests.
fn mirrors(rule: &RouteRule) -> impl Iterator<Item = String> {
    rule.filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(Mirror { backend: BackendRef { object, port }, fraction }) => {
            let share = format!("{} of {}", fraction.numerator(), fraction.denominator());
            Some(format!("{}/{}:{port} ({share})", object.namespace, object.name))
        }
        _ => None,
    })
}

/// The shares of a rule, with the endpoints of the moment and what they decide about the request that each gets.
fn shares(
    far_side: &FarSide<'_>,
    backends: &[WeightedBackend],
    sent: impl Fn(&WeightedBackend) -> HttpRequest,
) -> Result<Vec<BackendShare>, ExplainError> {
    let sum = backends.iter().map(|share| u64::from(share.weight)).sum();
    let share = |share: &WeightedBackend| {
        let empty = BackendShare {
            backend: None,
            weight: (share.weight, sum),
            limits: None,
            endpoints: Vec::new(),
            far_side: Vec::new(),
            error: None,
        };
        Ok(match &share.target {
            BackendTarget::Backend(name) => {
                let backend = far_side.backend(name);
                let limits =
                    backend.as_ref().map(|backend| backend.limits).filter(|limits| !limits.is_unlimited());
                let found = backend.map(|backend| backend.endpoints).unwrap_or_default();
                let BackendRef { object, port } = name;
                BackendShare {
                    backend: Some(format!("{}/{}:{port}", object.namespace, object.name)),
                    limits: limits.map(|limits| limits.to_string()),
                    endpoints: found.iter().map(|endpoint| endpoint.address.to_string()).collect(),
                    far_side: far_side.decisions(&found, &sent(share))?,
                    error: found.is_empty().then(|| "503: it has no endpoints".to_owned()),
                    ..empty
                }
            }
            BackendTarget::Invalid(response) => {
                BackendShare { error: Some(format!("{}: {}", response.status, response.reason)), ..empty }
            }
            BackendTarget::App => empty,
        })
    };
    backends.iter().map(share).collect()
}

/// Where a client is redirected to.
fn redirection(
    redirect: &Redirect,
    request: &ExplainedRequest<'_>,
    found: &Selected<'_>,
    port: u16,
) -> String {
    let input = RedirectInput {
        scheme: Scheme::Http,
        port,
        authority: request.authority(),
        path: request.path(),
        query: request.query(),
        matching: found.matching,
    };
    let location = redirect.location(&input).map(|location| String::from_utf8_lossy(&location).into_owned());
    let location = location.unwrap_or_else(|| "the request's host, which `--header host:` names".to_owned());
    format!("redirected with {} to {location}", redirect.status())
}

#[cfg(test)]
mod tests;
