//! Checks of a TrafficTarget.

use super::Finding;
use super::findings::Findings;
use crate::traffic_target::{Subject, TargetRule, TrafficTargetSpec};

/// All errors and probable mistakes in a TrafficTarget of this namespace, in the order of its fields. OSM refused only a
/// destination in another namespace; whatever else keeps the target from granting anything is a warning.
pub fn traffic_target(namespace: &str, spec: &TrafficTargetSpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    let destination = &spec.destination;
    check_subject(destination, "spec.destination", &mut findings);
    let other = destination.namespace_or(namespace);
    if other != namespace {
        findings.add("namespace", || {
            let message = format!(
                "The traffic target namespace ({namespace}) must match spec.Destination.Namespace ({other})"
            );
            Finding::error("spec.destination.namespace", message)
        });
    }
    if spec.rules.is_empty() {
        findings.add("rules", || {
            Finding::warning("spec.rules", "no rule is listed, so this target grants nothing")
        });
    }
    for (i, rule) in spec.rules.iter().enumerate() {
        check_rule(rule, &format!("spec.rules[{i}]"), &mut findings);
    }
    if spec.sources.is_empty() {
        findings.add("sources", || {
            Finding::warning("spec.sources", "no source is listed, so this target grants nothing")
        });
    }
    for (i, source) in spec.sources.iter().enumerate() {
        check_subject(source, &format!("spec.sources[{i}]"), &mut findings);
    }
    findings.finish()
}

fn check_subject(subject: &Subject, path: &str, findings: &mut Findings) {
    if subject.kind != "ServiceAccount" {
        findings.add("subject", || {
            let message = format!("'{}' is not supported: only ServiceAccount is", subject.kind);
            Finding::warning(format!("{path}.kind"), message)
        });
    }
}

fn check_rule(rule: &TargetRule, path: &str, findings: &mut Findings) {
    let has_matches = rule.matches.as_ref().is_some_and(|matches| !matches.is_empty());
    match rule.kind.as_str() {
        "HTTPRouteGroup" => {}
        "TCPRoute" if has_matches => findings.add("matches", || {
            Finding::warning(format!("{path}.matches"), "ignored: a TCPRoute has no named matches")
        }),
        "TCPRoute" => {}
        kind => findings.add("rule kind", || {
            let message = format!("'{kind}' is not supported: only HTTPRouteGroup and TCPRoute are");
            Finding::warning(format!("{path}.kind"), message)
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn findings(destination: Value, rules: Value, sources: Value) -> Vec<String> {
        let spec = json!({"destination": destination, "rules": rules, "sources": sources});
        let spec: TrafficTargetSpec = serde_json::from_value(spec).unwrap();
        traffic_target("shop", &spec).iter().map(Finding::with_severity).collect()
    }

    fn account(name: &str) -> Value {
        json!({"kind": "ServiceAccount", "name": name})
    }

    #[test]
    fn a_destination_elsewhere_is_refused_in_osm_s_words() {
        let destination = json!({"kind": "ServiceAccount", "name": "cart", "namespace": "other"});
        assert_eq!(
            findings(destination, json!([{"kind": "TCPRoute", "name": "a"}]), json!([account("web")])),
            ["error: spec.destination.namespace: The traffic target namespace (shop) must match \
              spec.Destination.Namespace (other)"]
        );
        for namespace in [Value::Null, json!("shop"), json!("")] {
            let destination = json!({"kind": "ServiceAccount", "name": "cart", "namespace": namespace});
            let rules = json!([{"kind": "HTTPRouteGroup", "name": "a", "matches": ["b"]}]);
            assert_eq!(findings(destination, rules, json!([account("web")])), Vec::<String>::new());
        }
    }

    #[test]
    fn what_osm_accepted_and_grants_nothing_is_a_warning() {
        assert_eq!(
            findings(account("cart"), json!([]), json!([])),
            [
                "warning: spec.rules: no rule is listed, so this target grants nothing",
                "warning: spec.sources: no source is listed, so this target grants nothing",
            ]
        );
        let rules =
            json!([{"kind": "UDPRoute", "name": "a"}, {"kind": "TCPRoute", "name": "b", "matches": ["c"]}]);
        assert_eq!(
            findings(account("cart"), rules, json!([{"kind": "IdentityBinding", "name": "web"}])),
            [
                "warning: spec.rules[0].kind: 'UDPRoute' is not supported: only HTTPRouteGroup and TCPRoute are",
                "warning: spec.rules[1].matches: ignored: a TCPRoute has no named matches",
                "warning: spec.sources[0].kind: 'IdentityBinding' is not supported: only ServiceAccount is",
            ]
        );
    }
}
