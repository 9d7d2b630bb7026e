//! Where a request of a workload's app would go: the routes and backends that its sidecar gets, asked a question.

use k8s_openapi::api::core::v1::Service;
use serde::Serialize;
use tidegate_core::TrustDomain;
use tidegate_core::backend::BackendRef;
use tidegate_core::route::filter::{Redirect, RedirectInput, Scheme};
use tidegate_core::route::{Action, BackendTarget, RequestView, RouteTable, Selected, WeightedBackend};

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
    /// The namespace of the app's workload.
    pub caller: String,
    /// The Service whose cluster IP it dials.
    pub service: ObjectName,
    /// The Service's port; may be left out if it has only one.
    pub port: Option<u16>,
    /// The request.
    pub request: HttpRequest,
}

/// What the app's sidecar does with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundExplanation {
    /// `allow` if it is forwarded or redirected, `deny` if it is answered with an error.
    pub decision: &'static str,
    /// Why, in a sentence.
    pub reason: String,
    /// `response_code_details` of an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// The rule that applies, as the access log names it. `None`: the Service has no routes, or no rule matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The request.
    pub request: String,
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
    /// The addresses of its endpoints.
    pub endpoints: Vec<String>,
    /// Why its requests are answered with an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answers a question from the objects alone, like [`explain`](super::explain).
pub fn explain_outbound(
    index: &Index,
    trust_domain: &TrustDomain,
    query: &OutboundQuery,
) -> Result<OutboundExplanation, ExplainError> {
    let OutboundQuery { caller, service: name, request, .. } = query;
    let service = index.service(name).ok_or_else(|| ExplainError::NoService(name.clone()))?;
    let port = port(service, query)?;
    // Only the transport of endpoints depends on which Pods are workloads.
    let resolver = Resolver { index, trust_domain, is_workload: |_| true, features: Features::EXECUTED };
    let unrouted = Unrouted { request: request.to_string(), port };
    let Some(found) = resolver.routes(name, port, caller) else {
        let itself = BackendRef { object: name.to_ref(Kind::Service), port };
        let share = WeightedBackend::new(1, BackendTarget::Backend(itself));
        return Ok(unrouted.forwarded("the Service has no routes", None, shares(&resolver, &[share])));
    };
    let table = RouteTable::new(found.routes)
        .map_err(|error| ExplainError::NoRoutes(name.clone(), error.to_string()))?;
    let normal = request.normal(table.needs_normal_path());
    let normal = normal.map_err(|error| ExplainError::NoPath(request.to_string(), error))?;
    Ok(match table.select(&normal) {
        None => unrouted.refused("no rule of the Service's routes matches", "route_not_found", None),
        Some(found) => unrouted.applied(&resolver, &normal, &found),
    })
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
    port: u16,
}

impl Unrouted {
    /// A rule applies.
    fn applied(
        self,
        resolver: &Resolver<'_>,
        request: &ExplainedRequest<'_>,
        found: &Selected<'_>,
    ) -> OutboundExplanation {
        let route = Some(found.route.label(found.rule));
        match &found.rule.action {
            Action::Forward(backends) => {
                let reason = format!("{} says where it goes", found.route.origin);
                self.forwarded(&reason, route, shares(resolver, backends))
            }
            Action::Respond(response) => {
                let reason = format!("answered with {}: {}", response.status, response.reason);
                self.refused(&reason, "direct_response", route)
            }
            Action::Redirect(redirect) => {
                let reason = redirection(redirect, request, found, self.port);
                OutboundExplanation { route, ..self.answer("allow", reason) }
            }
        }
    }

    /// It goes to these shares.
    fn forwarded(
        self,
        reason: &str,
        route: Option<String>,
        backends: Vec<BackendShare>,
    ) -> OutboundExplanation {
        let is_served = |share: &BackendShare| share.error.is_none() && share.weight.0 > 0;
        let (decision, code) = if backends.iter().any(is_served) {
            ("allow", None)
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

    fn answer(self, decision: &'static str, reason: String) -> OutboundExplanation {
        let Self { request, port } = self;
        OutboundExplanation { decision, reason, code: None, route: None, request, port, backends: Vec::new() }
    }
}

/// The shares of a rule, with the endpoints of the moment.
fn shares(resolver: &Resolver<'_>, backends: &[WeightedBackend]) -> Vec<BackendShare> {
    let sum = backends.iter().map(|share| u64::from(share.weight)).sum();
    let share = |share: &WeightedBackend| {
        let (backend, endpoints, error) = match &share.target {
            BackendTarget::Backend(name) => {
                let found = resolver.backend(name).value.map(|backend| backend.endpoints).unwrap_or_default();
                let endpoints: Vec<_> = found.iter().map(|endpoint| endpoint.address.to_string()).collect();
                let error = endpoints.is_empty().then(|| "503: it has no endpoints".to_owned());
                let BackendRef { object, port } = name;
                (Some(format!("{}/{}:{port}", object.namespace, object.name)), endpoints, error)
            }
            BackendTarget::Invalid(response) => {
                (None, Vec::new(), Some(format!("{}: {}", response.status, response.reason)))
            }
            BackendTarget::App => (None, Vec::new(), None),
        };
        BackendShare { backend, weight: (share.weight, sum), endpoints, error }
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
mod tests {
    use super::*;
    use crate::testing::index;

    const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}, {name: tcp-db, port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop}
status: {podIP: 10.1.0.1}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: one, namespace: shop}}]
ports: [{name: http, port: 8080}]
";

    fn explained(rules: &str, caller: &str, path: &str) -> OutboundExplanation {
        let route = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: cart}}], rules: [{rules}]}}\n"
        );
        let documents = if rules.is_empty() { vec![SERVICES] } else { vec![SERVICES, &route] };
        let request = HttpRequest { path: path.to_owned(), ..HttpRequest::default() };
        let service = ObjectName::new("shop", "cart");
        let query = OutboundQuery { caller: caller.to_owned(), service, port: None, request };
        explain_outbound(&index(&documents), &TrustDomain::default(), &query).unwrap()
    }

    #[test]
    fn without_routes_a_request_goes_to_the_service_s_endpoints() {
        let found = explained("", "web", "/");
        assert_eq!((found.decision, found.route, found.port), ("allow", None, 80));
        assert_eq!(found.backends[0].backend.as_deref(), Some("shop/cart:80"));
        assert_eq!(found.backends[0].endpoints, ["10.1.0.1:8080"]);
    }

    #[test]
    fn the_rule_that_applies_is_named_with_its_shares() {
        let rules = "{name: split, matches: [{path: {value: /a}}], backendRefs: [{name: cart, port: 80, weight: 9}, {name: gone, \
                     port: 80}]}";
        let found = explained(rules, "web", "/x/../a?b");
        assert_eq!((found.decision, found.route.as_deref()), ("allow", Some("HTTPRoute/shop/r/split")));
        let [good, gone] = found.backends.as_slice() else { panic!("{found:?}") };
        assert_eq!((good.weight, &good.error), ((9, 10), &None));
        assert_eq!(
            (gone.weight, gone.error.as_deref()),
            ((1, 10), Some("500: there is no Service shop/gone"))
        );
        let missed = explained(rules, "web", "/b");
        assert_eq!((missed.decision, missed.code), ("deny", Some("route_not_found")));
    }

    #[test]
    fn redirects_and_errors_are_said() {
        let redirect = "{filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]}";
        let found = explained(redirect, "web", "/a");
        assert_eq!(found.reason, "redirected with 302 to http://a.example/a");
        let nothing = explained("{matches: [{path: {value: /}}]}", "web", "/");
        assert_eq!((nothing.decision, nothing.code), ("deny", Some("direct_response")));
        let weightless = explained("{backendRefs: [{name: cart, port: 80, weight: 0}]}", "web", "/");
        assert_eq!((weightless.decision, weightless.code), ("deny", Some("no_backend")));
    }

    #[test]
    fn the_documentation_s_split_is_explained_with_its_shares() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/smi");
        let index = Index::of(crate::source::folder::FolderSource::new(folder).load().changes);
        let query = OutboundQuery {
            caller: "bookbuyer".to_owned(),
            service: ObjectName::new("bookstore", "bookstore"),
            port: None,
            request: HttpRequest::default(),
        };
        let found = explain_outbound(&index, &TrustDomain::default(), &query).unwrap();
        assert_eq!(found.route.as_deref(), Some("TrafficSplit/bookstore/bookstore"));
        let shares = found.backends.into_iter().map(|share| (share.backend.unwrap(), share.weight));
        let expected = [("bookstore/bookstore-v1:80", (90, 100)), ("bookstore/bookstore-v2:80", (10, 100))];
        assert!(shares.eq(expected.map(|(name, weight)| (name.to_owned(), weight))));
    }
}
