//! Checks of an HTTPRouteGroup.

use std::collections::BTreeSet;

use tidegate_core::route::{MAX_EXPRESSIONS, RouteError};

use super::Finding;
use super::findings::Findings;
use crate::http_route_group::{HTTPRouteGroupSpec, HttpMatch};

/// All probable mistakes in an HTTPRouteGroup, in the order of its fields. OSM accepted everything that its schema does, so
/// nothing is refused; a match that no request can meet is reported, and TrafficTargets that use it grant nothing.
pub fn http_route_group(spec: &HTTPRouteGroupSpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    if spec.matches.is_empty() {
        findings
            .add("matches", || Finding::warning("spec.matches", "no match is listed, so no request matches"));
    }
    if let Some(problem) = too_many_expressions(spec) {
        findings.add("expressions", || Finding::warning("spec.matches", problem));
        return findings.finish();
    }
    let mut names = BTreeSet::new();
    for (i, one) in spec.matches.iter().enumerate() {
        let path = format!("spec.matches[{i}]");
        if !names.insert(one.name.as_str()) {
            findings.add("name", || {
                let message =
                    format!("'{}' names another match, too: rules that name it mean both", one.name);
                Finding::warning(format!("{path}.name"), message)
            });
        }
        if let Err(error) = one.to_route_match() {
            findings.add("match", || {
                Finding::warning(
                    format!("{path}.{}", field(&error)),
                    format!("{:?} {}", error.value, error.problem),
                )
            });
        }
    }
    findings.finish()
}

/// Why no expression of a group is compiled, if it has too many.
pub fn too_many_expressions(spec: &HTTPRouteGroupSpec) -> Option<String> {
    let of_match = |one: &HttpMatch| {
        usize::from(one.path_regex.is_some()) + one.headers.as_ref().map_or(0, |headers| headers.0.len())
    };
    let count: usize = spec.matches.iter().map(of_match).sum();
    (count > MAX_EXPRESSIONS).then(|| format!("{count} regular expressions, more than {MAX_EXPRESSIONS}"))
}

/// The object's field for one of a route match.
fn field(error: &RouteError) -> &'static str {
    match error.field.as_str() {
        "path.value" => "pathRegex",
        "method" => "methods",
        _ => "headers",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn findings(matches: Value) -> Vec<String> {
        let spec: HTTPRouteGroupSpec = serde_json::from_value(json!({"matches": matches})).unwrap();
        http_route_group(&spec).iter().map(Finding::with_severity).collect()
    }

    #[test]
    fn what_can_match_no_request_is_named_with_its_field() {
        assert_eq!(
            findings(json!([{"name": "a", "pathRegex": "/a.*", "methods": ["*"]}])),
            Vec::<String>::new()
        );
        assert_eq!(
            findings(json!([
                {"name": "a", "pathRegex": "/a(", "methods": ["GET"]},
                {"name": "a", "headers": [{"x-a": ".*"}, {"a b": ".*"}]},
                {"name": "b", "headers": {"x-a": "[[a]]"}},
                {"name": "c", "methods": ["GE T"]},
            ])),
            [
                "warning: spec.matches[0].pathRegex: \"/a(\" is not a regular expression: unclosed group",
                "warning: spec.matches[1].name: 'a' names another match, too: rules that name it mean both",
                "warning: spec.matches[1].headers: \"a b\" is not a header name",
                "warning: spec.matches[2].headers: \"[[a]]\" is not a regular expression of RE2: write \"[\" in a class \
                 as \"\\[\"",
                "warning: spec.matches[3].methods: \"GE T\" is not a method",
            ]
        );
        assert_eq!(findings(json!([])), ["warning: spec.matches: no match is listed, so no request matches"]);
    }

    #[test]
    fn the_number_of_expressions_is_bounded() {
        let headers: Value = (0..16).map(|i| (format!("x-{i}"), json!("a|b"))).collect();
        let one = json!({"name": "a", "headers": headers});
        let found = findings(json!(vec![one; 100]));
        assert_eq!(found, ["warning: spec.matches: 1600 regular expressions, more than 1024"]);
    }
}
