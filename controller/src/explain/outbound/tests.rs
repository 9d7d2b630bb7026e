use super::*;
use crate::testing::{NOT_PERMISSIVE, PERMISSIVE, index};

const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}, {name: tcp-db, port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop}
spec: {serviceAccountName: cart, containers: [{name: app, ports: [{containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: one, namespace: shop}}]
ports: [{name: http, port: 8080}]
";

/// A TrafficTarget that lets service account `web/web` read carts.
const TARGET: &str = r"
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: readers, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: cart, namespace: shop}
  rules: [{kind: HTTPRouteGroup, name: carts, matches: [read]}]
  sources: [{kind: ServiceAccount, name: web, namespace: web}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: carts, namespace: shop}
spec: {matches: [{name: read, pathRegex: /carts/.*, methods: [GET], headers: [{x-version: '2'}]}]}
";

fn asked(
    documents: &[&str],
    is_workload: fn(&Pod) -> bool,
    caller: &str,
    path: &str,
) -> Result<OutboundExplanation, ExplainError> {
    let request = HttpRequest { path: path.to_owned(), ..HttpRequest::default() };
    let service = ObjectName::new("shop", "cart");
    let query = OutboundQuery { caller: ObjectName::parse(caller).unwrap(), service, port: None, request };
    let index = index(documents);
    let domain = TrustDomain::default();
    let missing_policy = &|_: &ObjectName| None;
    let view = OutboundView { index: &index, trust_domain: &domain, is_workload, missing_policy };
    explain_outbound(view, &query)
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart}}], rules: [{rules}]}}\n"
    )
}

fn explained(rules: &str, caller: &str, path: &str) -> OutboundExplanation {
    let route = route(rules);
    let documents: &[_] =
        if rules.is_empty() { &[SERVICES, PERMISSIVE] } else { &[SERVICES, PERMISSIVE, &route] };
    asked(documents, |_| true, caller, path).unwrap()
}

#[test]
fn without_routes_a_request_goes_to_the_service_s_endpoints() {
    let found = explained("", "web/web", "/");
    assert_eq!((found.decision, found.route, found.port), ("allow", None, 80));
    assert_eq!(found.backends[0].backend.as_deref(), Some("shop/cart:80"));
    assert_eq!(found.backends[0].endpoints, ["10.1.0.1:8080"]);
}

#[test]
fn the_rule_that_applies_is_named_with_its_shares() {
    let rules = "{name: split, matches: [{path: {value: /a}}], backendRefs: [{name: cart, port: 80, weight: 9}, {name: gone, \
                 port: 80}]}";
    let found = explained(rules, "web/web", "/x/../a?b");
    assert_eq!((found.decision, found.route.as_deref()), ("allow", Some("HTTPRoute/shop/r/split")));
    let [good, gone] = found.backends.as_slice() else { panic!("{found:?}") };
    assert_eq!((good.weight, &good.error), ((9, 10), &None));
    assert_eq!((gone.weight, gone.error.as_deref()), ((1, 10), Some("500: there is no Service shop/gone")));
    let missed = explained(rules, "web/web", "/b");
    assert_eq!((missed.decision, missed.code), ("deny", Some("route_not_found")));
}

#[test]
fn what_one_client_may_have_open_to_a_backend_is_said() {
    let setting = r"
apiVersion: policy.openservicemesh.io/v1alpha1
kind: UpstreamTrafficSetting
metadata: {name: cart, namespace: shop}
spec:
  host: cart.shop.svc.cluster.local
  connectionSettings: {tcp: {maxConnections: 1}, http: {maxPendingRequests: 2}}
";
    let found = asked(&[SERVICES, PERMISSIVE, setting], |_| true, "web/web", "/").unwrap();
    assert_eq!(found.backends[0].limits.as_deref(), Some("maxConnections: 1, maxPendingRequests: 2"));
    assert_eq!(explained("", "web/web", "/").backends[0].limits, None);
}

#[test]
fn redirects_and_errors_are_said() {
    let redirect = "{filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]}";
    let found = explained(redirect, "web/web", "/a");
    assert_eq!(found.reason, "redirected with 302 to http://a.example/a");
    let nothing = explained("{matches: [{path: {value: /}}]}", "web/web", "/");
    assert_eq!((nothing.decision, nothing.code), ("deny", Some("direct_response")));
    let weightless = explained("{backendRefs: [{name: cart, port: 80, weight: 0}]}", "web/web", "/");
    assert_eq!((weightless.decision, weightless.code), ("deny", Some("no_backend")));
}

#[test]
fn the_documentation_s_split_is_explained_with_its_shares() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/smi");
    let index = Index::of(crate::source::folder::FolderSource::new(folder).load().changes);
    let query = OutboundQuery {
        caller: ObjectName::new("bookbuyer", "bookbuyer"),
        service: ObjectName::new("bookstore", "bookstore"),
        port: None,
        request: HttpRequest::default(),
    };
    let domain = TrustDomain::default();
    let missing_policy = &|_: &ObjectName| None;
    let view = OutboundView { index: &index, trust_domain: &domain, is_workload: |_| true, missing_policy };
    let found = explain_outbound(view, &query).unwrap();
    assert_eq!(found.route.as_deref(), Some("TrafficSplit/bookstore/bookstore"));
    let shares = found.backends.into_iter().map(|share| (share.backend.unwrap(), share.weight));
    let expected = [("bookstore/bookstore-v1:80", (90, 100)), ("bookstore/bookstore-v2:80", (10, 100))];
    assert!(shares.eq(expected.map(|(name, weight)| (name.to_owned(), weight))));
}

#[test]
fn the_rule_at_the_far_side_decides_about_the_request_that_a_route_has_edited() {
    let edits = route(
        "{matches: [{path: {value: /v2}}], backendRefs: [{name: cart, port: 80}], filters: [\
           {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /carts}}}, \
           {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Version, value: '2'}]}}]}",
    );
    let documents = [SERVICES, NOT_PERMISSIVE, TARGET, &edits];
    let allowed = asked(&documents, |_| true, "web/web", "/v2/1?a=b").unwrap();
    assert_eq!((allowed.decision, allowed.client_identity.as_str()), ("allow", "web.web.cluster.local"));
    let [there] = allowed.backends[0].far_side.as_slice() else { panic!("{allowed:?}") };
    assert_eq!((there.decision, there.rule.as_deref()), ("allow", Some("shop/readers")));
    assert_eq!(there.reason, "TrafficTarget shop/readers, mesh peer web.web.cluster.local");
    assert_eq!(there.request.as_deref(), Some("GET /carts/1?a=b"));
    assert_eq!(there.endpoints, ["10.1.0.1:8080"]);

    let unedited = asked(&documents[..3], |_| true, "web/web", "/carts/1").unwrap();
    assert_eq!((unedited.decision, unedited.code), ("deny", Some("request_not_allowed")));
    assert!(unedited.reason.contains("refused there: "), "{}", unedited.reason);
    let stranger = asked(&documents, |_| true, "web/thief", "/v2/1").unwrap();
    assert_eq!((stranger.decision, stranger.code), ("deny", Some("peer_not_allowed")));
    assert_eq!(stranger.route.as_deref(), Some("HTTPRoute/shop/r/0"));
}

#[test]
fn permissive_mode_and_an_endpoint_without_a_sidecar_are_said() {
    let there = |is_workload| {
        let found = asked(&[SERVICES, PERMISSIVE], is_workload, "web/web", "/").unwrap();
        found.backends[0].far_side[0].reason.clone()
    };
    assert_eq!(there(|_| true), "permissive mode lets every workload of the mesh in");
    assert_eq!(there(|_| false), "it has no sidecar; no rule of the mesh applies there");
}

#[test]
fn a_client_is_a_pod_with_a_sidecar() {
    let found = asked(&[SERVICES, PERMISSIVE], |_| true, "shop/one", "/").unwrap();
    assert_eq!(found.client_identity, "cart.shop.cluster.local");
    let error = asked(&[SERVICES, PERMISSIVE], |_| false, "shop/one", "/").unwrap_err();
    assert_eq!(error, ExplainError::NoSidecar(ObjectName::new("shop", "one")));
}

#[test]
fn what_is_sent_again_and_what_is_copied_is_said() {
    let retry = "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Retry\nmetadata: {name: again, namespace: web}\n\
                 spec:\n  source: {kind: ServiceAccount, name: web, namespace: web}\n  \
                 destinations: [{kind: Service, name: cart, namespace: shop}]\n  \
                 retryPolicy: {retryOn: 5xx, numRetries: 3}\n";
    let by_object = Some("at most 3 times, as Retry web/again says".to_owned());
    let unrouted = asked(&[SERVICES, PERMISSIVE, retry], |_| true, "web/web", "/").unwrap();
    assert_eq!((unrouted.retries, unrouted.mirrors), (by_object.clone(), Vec::new()));
    let other = asked(&[SERVICES, PERMISSIVE, retry], |_| true, "web/other", "/").unwrap();
    assert_eq!(other.retries, None);
    let mirror = "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 80}, percent: 5}}], \
                  backendRefs: [{name: cart, port: 80}]}";
    let copied = asked(&[SERVICES, PERMISSIVE, retry, &route(mirror)], |_| true, "web/web", "/").unwrap();
    assert_eq!((copied.retries, copied.mirrors), (by_object, vec!["shop/cart:80 (5 of 100)".to_owned()]));
    let own = route("{retry: {codes: [503]}, backendRefs: [{name: cart, port: 80}]}");
    let own = asked(&[SERVICES, PERMISSIVE, retry, &own], |_| true, "web/web", "/").unwrap();
    assert_eq!(own.retries.as_deref(), Some("at most 1 times, as the rule says"));
}
