use tidegate_core::EgressMode;
use tidegate_core::egress::policies::{EgressDenial, EgressRule, EgressTraffic};

use super::rules::egress_of;
use crate::compile::egress_mode;
use crate::explain::HttpRequest;
use crate::object::ObjectName;
use crate::testing::index;

mod naive;

const CLOSED: &str = "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\nmetadata: {name: osm-mesh-config, \
                      namespace: tidegate-system}\nspec: {traffic: {enableEgress: false}}\n";
const OPEN: &str = "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\nmetadata: {name: osm-mesh-config, \
                    namespace: tidegate-system}\nspec: {traffic: {enableEgress: true}}\n";
const GROUP: &str = "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {name: get, namespace: shop}\n\
                     spec: {matches: [{name: get, pathRegex: /get, methods: [GET]}]}\n";

/// A policy of namespace `shop` for the service account `web/curl`.
fn policy(name: &str, annotations: &str, more: &str) -> String {
    format!(
        "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Egress\nmetadata: {{name: {name}, namespace: shop, annotations: \
         {{{annotations}}}}}\nspec: {{sources: [{{kind: ServiceAccount, name: curl, namespace: web}}], {more}}}\n"
    )
}

fn egress(documents: &[&str], account: &str) -> EgressMode {
    let index = index(documents);
    egress_of(&index, &egress_mode(&index), &ObjectName::new("web", account), |_| true)
}

/// `currentStatus`, the reason, and the warnings.
fn judged(documents: &[&str]) -> (String, String, Vec<String>) {
    let all = crate::status::all(&index(documents));
    let status = all.into_iter().find(|status| status.kind == "Egress").unwrap();
    (status.current_status.to_owned(), status.reason, status.warnings)
}

const ALL: &str = "hosts: [httpbin.org], ports: [{number: 80, protocol: http}, {number: 443, protocol: https}, {number: 22, \
                   protocol: tcp-server-first}]";

#[test]
fn each_protocol_allows_what_open_service_mesh_allowed() {
    let EgressMode::Policies(policies) = egress(&[CLOSED, &policy("a", "", ALL)], "curl") else { panic!() };
    let at = |address: &str| address.parse().unwrap();
    assert!(policies.for_bytes(at("192.0.2.1:22")).is_some());
    assert!(policies.for_bytes(at("192.0.2.1:443")).is_none());
    assert!(policies.for_tls(at("192.0.2.1:443"), Some("httpbin.org")).is_some());
    assert!(policies.for_tls(at("192.0.2.1:443"), Some("example.org")).is_none());
    let request = HttpRequest { method: "GET".to_owned(), path: "/x".to_owned(), headers: Vec::new() };
    let request = request.normal(false).unwrap();
    assert!(policies.for_request(at("192.0.2.1:80"), "httpbin.org", &request).is_ok());
    assert_eq!(policies.for_request(at("192.0.2.1:80"), "a.org", &request), Err(EgressDenial::Host));
    assert!(
        policies.reason.ends_with("no Egress for service account web/curl allows it"),
        "{}",
        policies.reason
    );
    assert_eq!(policies.rules[0].origin.to_string(), "Egress shop/a");
    assert!(matches!(egress(&[CLOSED, &policy("a", "", ALL)], "other"), EgressMode::RegistryOnly(_)));
    assert_eq!(egress(&[OPEN, &policy("a", "", ALL)], "curl"), EgressMode::AllowAny);
}

#[test]
fn an_http_route_group_restricts_requests_and_without_it_the_policy_is_not_in_force() {
    let matches = format!(
        "{ALL}, matches: [{{apiGroup: specs.smi-spec.io/v1alpha4, kind: HTTPRouteGroup, name: get}}]"
    );
    let policy = policy("a", "", &matches);
    let EgressMode::Policies(policies) = egress(&[CLOSED, GROUP, &policy], "curl") else { panic!() };
    let asked = |method: &str, path: &str| {
        let request = HttpRequest { method: method.to_owned(), path: path.to_owned(), headers: Vec::new() };
        policies
            .for_request("192.0.2.1:80".parse().unwrap(), "httpbin.org", &request.normal(true).unwrap())
            .map(|_| ())
    };
    assert_eq!(asked("GET", "/get"), Ok(()));
    assert_eq!(asked("POST", "/get"), Err(EgressDenial::Request));
    assert!(matches!(egress(&[CLOSED, &policy], "curl"), EgressMode::RegistryOnly(_)));
    let (current, reason, _) = judged(&[CLOSED, &policy]);
    assert_eq!((&*current, &*reason), ("error", "HTTPRouteGroup shop/get does not exist"));
}

#[test]
fn a_dangling_setting_invalidates_the_policy_and_one_that_exists_limits_each_host() {
    let matches = "ports: [{number: 443, protocol: https}, {number: 80, protocol: http}], hosts: [a.example, b.example], \
                   matches: [{apiGroup: policy.openservicemesh.io/v1alpha1, kind: UpstreamTrafficSetting, name: a}]";
    let (current, reason, _) = judged(&[CLOSED, &policy("a", "", matches)]);
    assert_eq!((&*current, &*reason), ("error", "UpstreamTrafficSetting shop/a does not exist"));
    let setting = "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: UpstreamTrafficSetting\nmetadata: {name: a, namespace: \
                   shop}\nspec: {host: a.example, connectionSettings: {http: {maxRequests: 3}}}\n";
    let documents = [CLOSED, setting, &policy("a", "", matches)];
    let (current, _, warnings) = judged(&documents);
    assert_eq!((&*current, warnings.len()), ("committed", 0), "{warnings:?}");
    let EgressMode::Policies(policies) = egress(&documents, "curl") else { panic!() };
    let hosts = |rule: &EgressRule| match &rule.traffic {
        EgressTraffic::Http { hosts, .. } | EgressTraffic::Tls(hosts) => hosts.len(),
        EgressTraffic::Tcp => 0,
    };
    assert_eq!(policies.rules.iter().map(hosts).collect::<Vec<_>>(), [2, 1, 1], "TLS, and each host of HTTP");
    assert!(policies.rules.iter().all(|rule| rule.limits.max_requests == Some(3)));
}

#[test]
fn audit_mode_logs_unless_another_policy_of_the_account_is_enforced() {
    let audit = policy("a", "tidegate.io/audit: 'true'", ALL);
    let EgressMode::Policies(policies) = egress(&[CLOSED, &audit], "curl") else { panic!() };
    assert!(policies.is_audit && policies.rules.len() == 3);
    let (_, _, warnings) = judged(&[CLOSED, &audit]);
    assert!(warnings.iter().any(|warning| warning.starts_with("audit mode: ")), "{warnings:?}");
    let enforced = policy("b", "", "ports: [{number: 5432, protocol: tcp}]");
    let EgressMode::Policies(policies) = egress(&[CLOSED, &audit, &enforced], "curl") else { panic!() };
    assert!(!policies.is_audit && policies.rules.len() == 1);
    let (_, _, warnings) = judged(&[CLOSED, &policy("a", "tidegate.io/audit: 'yes'", ALL)]);
    assert!(warnings.iter().any(|warning| warning.contains("got \"yes\"; this is enforced")), "{warnings:?}");
    let (_, _, warnings) = judged(&[OPEN, &audit]);
    let is_open = |warning: &String| warning.starts_with("spec.traffic.enableEgress is not false");
    assert!(warnings.iter().any(is_open), "{warnings:?}");
}
