//! Checks of a TrafficSplit.

use super::Finding;
use super::findings::Findings;
use crate::traffic_split::{TrafficSplitSpec, service_name};

/// No backend has a share.
const NO_WEIGHT: &str =
    "the weights add up to 0: requests are answered with 500, and other connections are reset";

/// All probable mistakes in a TrafficSplit of this namespace, in the order of its fields. OSM accepted everything that its
/// schema does, so nothing is refused.
pub fn traffic_split(namespace: &str, spec: &TrafficSplitSpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    check_service(namespace, &spec.service, "spec.service", &mut findings);
    if spec.backends.iter().all(|backend| backend.weight == 0) {
        findings.add("weights", || Finding::warning("spec.backends", NO_WEIGHT));
    }
    for (i, backend) in spec.backends.iter().enumerate() {
        check_service(namespace, &backend.service, &format!("spec.backends[{i}].service"), &mut findings);
    }
    for (i, found) in spec.matches.iter().flatten().enumerate() {
        if found.kind != "HTTPRouteGroup" {
            findings.add("match kind", || {
                let message = format!("'{}' is not supported: only HTTPRouteGroup is", found.kind);
                Finding::warning(format!("spec.matches[{i}].kind"), message)
            });
        }
    }
    findings.finish()
}

fn check_service(namespace: &str, service: &str, path: &str, findings: &mut Findings) {
    if service_name(service, namespace).is_none() {
        findings.add("service", || {
            let message = format!("'{service}' does not name a Service of namespace {namespace}");
            Finding::warning(path, message)
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn findings(spec: Value) -> Vec<String> {
        let spec: TrafficSplitSpec = serde_json::from_value(spec).unwrap();
        traffic_split("shop", &spec).iter().map(Finding::with_severity).collect()
    }

    #[test]
    fn what_splits_nothing_or_means_a_service_elsewhere_is_a_warning() {
        let fine = json!({
            "service": "cart.shop.svc.cluster.local",
            "backends": [{"service": "v1", "weight": 1}, {"service": "cart", "weight": 0}],
            "matches": [{"kind": "HTTPRouteGroup", "name": "a"}],
        });
        assert_eq!(findings(fine), Vec::<String>::new());
        assert_eq!(
            findings(json!({
                "service": "cart.other",
                "backends": [{"service": "v1.other", "weight": 0}],
                "matches": [{"kind": "TCPRoute", "name": "a"}],
            })),
            [
                "warning: spec.service: 'cart.other' does not name a Service of namespace shop",
                "warning: spec.backends: the weights add up to 0: requests are answered with 500, and other connections \
                 are reset",
                "warning: spec.backends[0].service: 'v1.other' does not name a Service of namespace shop",
                "warning: spec.matches[0].kind: 'TCPRoute' is not supported: only HTTPRouteGroup is",
            ]
        );
        assert_eq!(
            findings(json!({"service": "cart", "backends": []})),
            [
                "warning: spec.backends: the weights add up to 0: requests are answered with 500, and other connections are reset"
            ]
        );
    }
}
