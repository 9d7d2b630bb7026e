use tidegate_core::route::filter::{Filter, PathEdit};

use super::*;

/// The filters of the first rule, in words, or why the rule answers with an error.
fn filters(list: &str) -> String {
    let rules = format!(
        "{{matches: [{{path: {{value: /a}}}}], filters: [{list}], backendRefs: [{{name: v1, port: 80}}]}}"
    );
    let routes = routes(&index(&[SERVICES, &http(&rules)]), "shop").unwrap();
    let rule = &routes[0].rules[0];
    if let Action::Respond(response) = &rule.action {
        return response.reason.to_string();
    }
    rule.filters.iter().map(described).collect::<Vec<_>>().join("; ")
}

fn described(filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(edits) | Filter::ResponseHeaders(edits) => {
            let dropped: Vec<_> = edits.dropped().iter().map(ToString::to_string).collect();
            let appended: Vec<_> =
                edits.appended().map(|(name, value)| format!("{name}: {}", value.as_str())).collect();
            format!("{} -{} +{}", filter.kind(), dropped.join(","), appended.join(","))
        }
        Filter::Rewrite(rewrite) => {
            let path = match rewrite.path() {
                Some(PathEdit::Full(path)) => format!(" full {path}"),
                Some(PathEdit::Prefix(path)) => format!(" prefix {path}"),
                None => String::new(),
            };
            format!("URLRewrite {}{path}", rewrite.hostname().unwrap_or_default())
        }
        Filter::Mirror(mirror) => {
            let (share, of) = (mirror.fraction.numerator(), mirror.fraction.denominator());
            format!("RequestMirror {} {share}/{of}", mirror.backend)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn filters_are_compiled_in_their_order() {
    for (list, expected) in [
        (
            "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], remove: [c]}}, \
             {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: d, value: e}]}}",
            "RequestHeaderModifier -c,a +a: b; ResponseHeaderModifier - +d: e",
        ),
        (
            "{type: URLRewrite, urlRewrite: {hostname: x.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}",
            "URLRewrite x.example prefix /b",
        ),
        (
            "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /b}}}",
            "URLRewrite  full /b",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}, \
             {type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 80}, percent: 5}}, \
             {type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 80}, fraction: {numerator: 1, denominator: 8}}}",
            "RequestMirror Service shop/v2:80 1/1; RequestMirror Service shop/v1:80 5/100; RequestMirror Service shop/v1:80 1/8",
        ),
        ("{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}}}", ""),
        (
            "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: b}]}}",
            "rules[0]: filters[0].set[0].name: \"host\" is a header that routes may not change: use a rewrite of the hostname",
        ),
        (
            "{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}",
            "rules[0]: filters[1].type: \"URLRewrite\" occurs twice in the rule",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 80}, percent: 101}}",
            "rules[0]: filters[0].fraction: \"101/100\" is not a fraction between 0 and 1",
        ),
    ] {
        assert_eq!(filters(list), expected, "{list}");
    }
}

#[test]
fn a_mirror_to_nothing_is_left_out_and_reported() {
    let rules = format!(
        "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: none, port: 80}}}}}}], {TO_V1}}}"
    );
    let documents = [SERVICES, &http(&rules)];
    assert_eq!(conditions(&documents, Features::EXECUTED), "Accepted ResolvedRefs=BackendNotFound");
    assert_eq!(outcome(&table(&documents, "shop"), &get("/")), "v1:80=1");
}

#[test]
fn a_redirect_is_the_rule_s_action() {
    for (redirect, expected) in [
        ("{}", "redirect 302"),
        ("{statusCode: 308, scheme: https, hostname: a.example, port: 8443}", "redirect 308"),
        ("{path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}", "redirect 302"),
        ("{statusCode: 304}", "500"),
        ("{scheme: ftp}", "500"),
    ] {
        let rules = format!("{{filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]}}");
        let found = table(&[SERVICES, &http(&rules)], "shop");
        assert_eq!(outcome(&found, &get("/a")), expected, "{redirect}");
    }
}

#[test]
fn filters_of_a_backend_are_its_share_s_alone() {
    let filter = "{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: a, value: b}]}}";
    let rules =
        format!("{{backendRefs: [{{name: v1, port: 80, filters: [{filter}]}}, {{name: v2, port: 80}}]}}");
    let routes = routes(&index(&[SERVICES, &http(&rules)]), "shop").unwrap();
    let Action::Forward(shares) = &routes[0].rules[0].action else { panic!("{routes:?}") };
    let counts: Vec<_> = shares.iter().map(|share| share.filters.len()).collect();
    assert_eq!(counts, [1, 0]);
    assert!(routes[0].rules[0].filters.is_empty());
}
