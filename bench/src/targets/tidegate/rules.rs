//! The rules of a pair: who may call, and many routes and matches before the one that applies to every request of the
//! measurement.

use serde_json::{Value, json};

/// Rules of one HTTPRoute: Gateway API's limit.
const RULES_OF_ROUTE: usize = 16;
/// Matches of one HTTPRouteGroup: its limit.
const MATCHES_OF_GROUP: usize = 256;

/// A TrafficTarget that lets the caller in, with `count` matches and one more for the requests that are measured; with a
/// count, also HTTPRoutes of Service `httpbin` for its clients, with as many rules. JSON documents, as YAML. `protocol`
/// is what the app's port declares: with `tcp` nothing distinguishes requests.
pub(super) fn manifests(count: usize, port: u16, protocol: &str) -> String {
    if protocol == "tcp" {
        let all =
            object("specs.smi-spec.io/v1alpha4", "TCPRoute", "all", &json!({"matches": {"ports": [port]}}));
        let target = target(&[json!({"kind": "TCPRoute", "name": "all"})]);
        return format!("{all}\n---\n{target}");
    }
    let backends = json!([{"name": "httpbin", "port": port}]);
    let exact =
        |at| json!({"matches": [{"path": {"type": "Exact", "value": path(at)}}], "backendRefs": backends});
    let rest = json!({"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": backends});
    let rules: Vec<_> = (0..count).map(exact).chain((count > 0).then_some(rest)).collect();
    let routes = rules.chunks(RULES_OF_ROUTE).enumerate().map(|(at, rules)| {
        let spec =
            json!({"parentRefs": [{"group": "", "kind": "Service", "name": "httpbin"}], "rules": rules});
        object("gateway.networking.k8s.io/v1", "HTTPRoute", &format!("routes-{at}"), &spec)
    });

    let one = |at| json!({"name": format!("m{at}"), "methods": ["GET"], "pathRegex": path(at)});
    let rest = json!({"name": "rest", "methods": ["*"], "pathRegex": "/.*"});
    let matches: Vec<_> = (0..count).map(one).chain([rest]).collect();
    let groups: Vec<_> = matches
        .chunks(MATCHES_OF_GROUP)
        .enumerate()
        .map(|(at, matches)| {
            let spec = json!({"matches": matches});
            object("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup", &format!("groups-{at}"), &spec)
        })
        .collect();
    let of_group = |at| json!({"kind": "HTTPRouteGroup", "name": format!("groups-{at}")});
    let target = target(&(0..groups.len()).map(of_group).collect::<Vec<_>>());
    let documents: Vec<_> = routes.chain(groups).chain([target]).map(|object| object.to_string()).collect();
    documents.join("\n---\n")
}

/// What the caller may do.
fn target(rules: &[Value]) -> Value {
    let spec = json!({
        "destination": {"kind": "ServiceAccount", "name": "httpbin", "namespace": "httpbin"},
        "rules": rules,
        "sources": [{"kind": "ServiceAccount", "name": "caller", "namespace": "httpbin"}],
    });
    object("access.smi-spec.io/v1alpha3", "TrafficTarget", "caller", &spec)
}

/// A path that no request has.
fn path(at: usize) -> String {
    format!("/rule-{at}")
}

fn object(version: &str, kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "httpbin"}, "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_object_has_more_rules_than_its_kind_allows() {
        let manifests = manifests(1000, 4001, "http");
        let objects: Vec<Value> =
            manifests.split("\n---\n").map(|text| serde_json::from_str(text).unwrap()).collect();
        let count = |kind: &str, field: &str| -> Vec<usize> {
            let of_kind = objects.iter().filter(|object| object["kind"] == *kind);
            of_kind.map(|object| object["spec"][field].as_array().unwrap().len()).collect()
        };
        for (kind, field, most) in
            [("HTTPRoute", "rules", RULES_OF_ROUTE), ("HTTPRouteGroup", "matches", MATCHES_OF_GROUP)]
        {
            let counts = count(kind, field);
            assert_eq!(counts.iter().sum::<usize>(), 1001);
            assert!(counts.iter().all(|count| *count <= most), "{counts:?}");
        }
        assert_eq!(count("TrafficTarget", "rules"), [4]);
    }
}
