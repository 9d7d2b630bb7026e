//! Checks of an UpstreamTrafficSetting.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate_core::route::RouteError;
use tidegate_core::route::filter::HeaderEdits;
use tidegate_core::route::matching::PathMatch;

use super::Finding;
use super::findings::Findings;
use crate::upstream_traffic_setting::{HttpRateLimitSpec, UpstreamTrafficSettingSpec, read_descriptors};

/// All probable mistakes in an UpstreamTrafficSetting of this namespace, in the order of its fields. OSM accepted everything
/// that its schema does, so nothing is refused; what has no effect is reported.
pub fn upstream_traffic_setting(namespace: &str, spec: &UpstreamTrafficSettingSpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    if spec.service(namespace).is_none() {
        findings.add("host", || {
            let message = format!(
                "'{}' is not the host of a Service of namespace {namespace}, such as name.{namespace}.svc.cluster.local, \
                 so only Egresses that refer to this object are limited",
                spec.host
            );
            Finding::warning("spec.host", message)
        });
    }
    let wrong_timeout = match spec.connect_timeout() {
        Some(Err(error)) => Some(error.to_string()),
        Some(Ok(Duration::ZERO)) => Some("must be longer than 0".to_owned()),
        Some(Ok(_)) | None => None,
    };
    if let Some(problem) = wrong_timeout {
        findings.add("timeout", || Finding::warning("spec.connectionSettings.tcp.connectTimeout", problem));
    }
    if let Some(limit) = spec.local().and_then(|local| local.http.as_ref()) {
        check_headers(limit, "spec.rateLimit.local.http", &mut findings);
    }
    check_global(spec, &mut findings);
    check_routes(spec, &mut findings);
    findings.finish()
}

fn check_routes(spec: &UpstreamTrafficSettingSpec, findings: &mut Findings) {
    let mut paths = BTreeSet::new();
    for (i, route) in spec.limited_routes() {
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
        if let Some(limit) = route.local() {
            check_headers(limit, &format!("{path}.rateLimit.local"), findings);
        }
    }
}

/// The limits that a rate limit service counts, with those of routes.
fn check_global(spec: &UpstreamTrafficSettingSpec, findings: &mut Findings) {
    const GLOBAL: &str = "spec.rateLimit.global";
    let global = spec.global();
    let (tcp, http) =
        (global.and_then(|global| global.tcp.as_ref()), global.and_then(|global| global.http.as_ref()));
    let mut problem =
        |path: String, problem: String| findings.add("global", || Finding::warning(path, problem));
    if let Some(tcp) = tcp {
        tcp.read(&format!("{GLOBAL}.tcp"), &mut problem);
    }
    if let Some(http) = http {
        http.read(&format!("{GLOBAL}.http"), &mut problem);
    }
    for (i, route) in spec.limited_routes() {
        let path = format!("spec.httpRoutes[{i}].rateLimit.global");
        match (route.global(), http) {
            (Some(_), None) => {
                problem(
                    path,
                    format!("has no effect without {GLOBAL}.http, which names the rate limit service"),
                );
            }
            (Some(route), Some(_)) => drop(read_descriptors(&route.descriptors, &path, &mut problem)),
            (None, _) => {}
        }
    }
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
                     name.shop.svc.cluster.local, so only Egresses that refer to this object are limited"
                )]
            );
        }
    }

    #[test]
    fn a_mistake_in_a_global_limit_names_its_field() {
        let service = json!({"host": "ratelimit.shop.svc", "port": 8081});
        let wrong = json!([{"entries": [{"requestHeader": {"name": "a b", "key": "c"}}]}]);
        let route = json!({"path": "/a", "rateLimit": {"global": {"descriptors": wrong}}});
        let with = |global: Value| {
            let host = "cart.shop.svc.cluster.local";
            findings(json!({"host": host, "rateLimit": {"global": global}, "httpRoutes": [route]}))
        };
        let tcp = json!({
            "rateLimitService": {"host": "", "port": 8081},
            "domain": "shop",
            "descriptors": [{"entries": [{"key": "a", "value": "b"}]}],
        });
        let of_tcp = with(json!({"tcp": tcp}));
        assert!(
            of_tcp[0].starts_with("warning: spec.rateLimit.global.tcp.rateLimitService.host: "),
            "{of_tcp:?}"
        );
        assert_eq!(
            of_tcp[1..],
            [
                "warning: spec.httpRoutes[0].rateLimit.global: has no effect without spec.rateLimit.global.http, which names \
              the rate limit service"
            ]
        );
        assert_eq!(
            with(json!({"http": {"rateLimitService": service, "domain": "shop", "descriptors": wrong}})),
            [
                "warning: spec.rateLimit.global.http.descriptors[0].entries[0].requestHeader.name: \"a b\" is not a \
                 header name",
                "warning: spec.httpRoutes[0].rateLimit.global.descriptors[0].entries[0].requestHeader.name: \"a b\" is \
                 not a header name",
            ]
        );
    }

    #[test]
    fn what_has_no_effect_is_a_warning() {
        let limit = |headers: Value| json!({"requests": 1, "unit": "hour", "responseHeadersToAdd": headers});
        let route = |path: &str, headers| json!({"path": path, "rateLimit": {"local": limit(headers)}});
        let host = "cart.shop.svc.cluster.local";
        let spec = json!({
            "host": host,
            "connectionSettings": {"tcp": {"connectTimeout": "soon"}},
            "rateLimit": {"local": {"http": limit(json!([{"name": "a b", "value": "c"}]))}},
            "httpRoutes": [route("/a(", json!([])), route("/b", json!([])), route("/b", json!([{"name": "host", "value": "c"}])),
                {"path": "/c("}],
        });
        assert_eq!(
            findings(spec),
            [
                "warning: spec.connectionSettings.tcp.connectTimeout: \"soon\" is not a duration: write numbers and units (ns, us, \
                 ms, s, m, h), such as 24h or 1h30m",
                "warning: spec.rateLimit.local.http.responseHeadersToAdd: \"a b\" is not a header name",
                "warning: spec.httpRoutes[0].path: \"/a(\" is not a regular expression: unclosed group",
                "warning: spec.httpRoutes[2].path: '/b' has a limit already, which applies",
                "warning: spec.httpRoutes[2].rateLimit.local.responseHeadersToAdd: \"host\" is a header that routes \
                 may not change: use a rewrite of the hostname",
            ]
        );
    }
}
