//! Checks of an UpstreamTrafficSetting.

use std::collections::BTreeSet;

use tidegate_core::route::RouteError;
use tidegate_core::route::filter::HeaderEdits;
use tidegate_core::route::matching::PathMatch;

use super::Finding;
use super::findings::Findings;
use crate::upstream_traffic_setting::{HttpRateLimitSpec, UpstreamTrafficSettingSpec};

/// All probable mistakes in an UpstreamTrafficSetting of this namespace, in the order of its fields. OSM accepted everything
/// that its schema does, so nothing is refused; what has no effect is reported.
pub fn upstream_traffic_setting(namespace: &str, spec: &UpstreamTrafficSettingSpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    if spec.service(namespace).is_none() {
        findings.add("host", || {
            let message = format!(
                "'{}' is not the host of a Service of namespace {namespace}, such as name.{namespace}.svc.cluster.local, \
                 so nothing is limited",
                spec.host
            );
            Finding::warning("spec.host", message)
        });
    }
    if spec.connection_settings.is_some() {
        findings.add("connections", || {
            let message = "limits of connections and requests in flight are not enforced yet";
            Finding::warning("spec.connectionSettings", message)
        });
    }
    if let Some(limit) = spec.local().and_then(|local| local.http.as_ref()) {
        check_headers(limit, "spec.rateLimit.local.http", &mut findings);
    }
    let mut paths = BTreeSet::new();
    for (i, route, limit) in spec.limited_routes() {
        let path = format!("spec.httpRoutes[{i}]");
        if let Err(error) = PathMatch::regex(&route.path) {
            findings.add("path", || wrong(format!("{path}.path"), &error));
        }
        if !paths.insert(route.path.as_str()) {
            findings.add("repeated", || {
                let message = format!("'{}' has a limit already, which applies", route.path);
                Finding::warning(format!("{path}.path"), message)
            });
        }
        check_headers(limit, &format!("{path}.rateLimit.local"), &mut findings);
    }
    findings.finish()
}

impl HttpRateLimitSpec {
    /// The header fields of the response above the limit.
    pub fn response_headers(&self) -> Result<HeaderEdits, RouteError> {
        let headers = self.response_headers_to_add.iter().flatten();
        let lines: Vec<_> = headers.map(|header| (header.name.as_str(), header.value.as_str())).collect();
        HeaderEdits::new(&lines, &[], &[])
    }
}

fn check_headers(limit: &HttpRateLimitSpec, path: &str, findings: &mut Findings) {
    if let Err(error) = limit.response_headers() {
        findings.add("headers", || wrong(format!("{path}.responseHeadersToAdd"), &error));
    }
}

fn wrong(path: String, error: &RouteError) -> Finding {
    Finding::warning(path, format!("{:?} {}", error.value, error.problem))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn findings(spec: Value) -> Vec<String> {
        let spec: UpstreamTrafficSettingSpec = serde_json::from_value(spec).unwrap();
        upstream_traffic_setting("shop", &spec).iter().map(Finding::with_severity).collect()
    }

    #[test]
    fn a_host_is_a_service_of_the_same_namespace() {
        assert_eq!(findings(json!({"host": "cart.shop.svc.cluster.local"})), Vec::<String>::new());
        for host in
            ["cart", "cart.shop", "cart.other.svc.cluster.local", ".shop.svc.cluster.local", "a.example"]
        {
            assert_eq!(
                findings(json!({"host": host})),
                [format!(
                    "warning: spec.host: '{host}' is not the host of a Service of namespace shop, such as \
                     name.shop.svc.cluster.local, so nothing is limited"
                )]
            );
        }
    }

    #[test]
    fn what_has_no_effect_is_a_warning() {
        let limit = |headers: Value| json!({"requests": 1, "unit": "hour", "responseHeadersToAdd": headers});
        let route = |path: &str, headers| json!({"path": path, "rateLimit": {"local": limit(headers)}});
        let host = "cart.shop.svc.cluster.local";
        let spec = json!({
            "host": host,
            "connectionSettings": {"tcp": {"maxConnections": 1}},
            "rateLimit": {"local": {"http": limit(json!([{"name": "a b", "value": "c"}]))}},
            "httpRoutes": [route("/a(", json!([])), route("/b", json!([])), route("/b", json!([{"name": "host", "value": "c"}])),
                {"path": "/c("}],
        });
        assert_eq!(
            findings(spec),
            [
                "warning: spec.connectionSettings: limits of connections and requests in flight are not enforced yet",
                "warning: spec.rateLimit.local.http.responseHeadersToAdd: \"a b\" is not a header name",
                "warning: spec.httpRoutes[0].path: \"/a(\" is not a regular expression: unclosed group",
                "warning: spec.httpRoutes[2].path: '/b' has a limit already, which applies",
                "warning: spec.httpRoutes[2].rateLimit.local.responseHeadersToAdd: \"host\" is a header that routes \
                 may not change: use a rewrite of the hostname",
            ]
        );
    }
}
