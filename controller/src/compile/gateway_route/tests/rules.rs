use super::*;

#[test]
fn matches_select_requests() {
    let rules = "\
        {matches: [{path: {type: Exact, value: /exact}}], backendRefs: [{name: v1, port: 80}]}, \
        {matches: [{path: {value: /v2}, method: POST}, {headers: [{name: Version, value: two}]}], \
         backendRefs: [{name: v2, port: 80}]}, \
        {matches: [{path: {type: RegularExpression, value: '/[0-9]+'}}, {queryParams: [{name: a, value: b}]}], \
         backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 80}]}";
    let table = table(&[SERVICES, &http(rules)], "shop");
    let post = Request { method: "POST", ..get("/v2/x") };
    let header = Request { headers: &[("version", "two")], ..get("/") };
    let query = Request { query: Some("a=b"), ..get("/") };
    for (request, expected) in [
        (get("/exact"), "v1:80=1"),
        (get("/exact/"), "404"),
        (post, "v2:80=1"),
        (get("/v2/x"), "404"),
        (header, "v2:80=1"),
        (get("/42"), "v1:80=9 v2:80=1"),
        (query, "v1:80=9 v2:80=1"),
        (get("/"), "404"),
    ] {
        assert_eq!(outcome(&table, &request), expected, "{}", request.path);
    }
}

#[test]
fn calls_are_matched_by_service_and_method() {
    let rules = "\
        {matches: [{method: {service: shop.Cart, method: Add}}], backendRefs: [{name: v1, port: 80}]}, \
        {matches: [{method: {service: shop.Cart}, headers: [{name: beta, value: 'y'}]}], backendRefs: [{name: v2, port: 80}]}, \
        {matches: [{method: {type: RegularExpression, method: 'Get.*'}}], backendRefs: [{name: missing, port: 80}]}";
    let table = table(&[SERVICES, &grpc(rules)], "shop");
    let call = |path| Request { method: "POST", ..get(path) };
    let beta = Request { headers: &[("beta", "y")], ..call("/shop.Cart/List") };
    for (request, expected) in [
        (call("/shop.Cart/Add"), "v1:80=1"),
        (beta, "v2:80=1"),
        // UNAVAILABLE, as gRPC's mapping of statuses has it.
        (call("/other.Thing/GetAll"), "503=1"),
        (call("/shop.Cart/List"), "404"),
    ] {
        assert_eq!(outcome(&table, &request), expected, "{}", request.path);
    }
}

#[test]
fn an_invalid_backend_takes_its_share_and_answers_with_an_error() {
    for (backends, expected, status) in [
        (
            "{name: v1, port: 80, weight: 9}, {name: none, port: 80}",
            "v1:80=9 500=1",
            "ResolvedRefs=BackendNotFound",
        ),
        ("{name: v1, port: 82}", "500=1", "ResolvedRefs=BackendNotFound"),
        ("{name: v1}", "500=1", "ResolvedRefs=BackendNotFound"),
        ("{name: alias, port: 80}", "500=1", "ResolvedRefs=BackendNotFound"),
        ("{name: v1, port: 81}", "500=1", "ResolvedRefs=UnsupportedProtocol"),
        ("{name: v1, port: 80, kind: Bucket, group: example.com}", "500=1", "ResolvedRefs=InvalidKind"),
        ("{name: v1, port: 80, group: '', kind: Service, namespace: shop}", "v1:80=1", "ResolvedRefs"),
        ("{name: v1, port: 80, weight: 0}", "v1:80=0", "ResolvedRefs"),
        ("", "500", "ResolvedRefs"),
    ] {
        let documents = [SERVICES, &http(&format!("{{backendRefs: [{backends}]}}"))];
        assert_eq!(outcome(&table(&documents, "shop"), &get("/")), expected, "{backends}");
        assert_eq!(conditions(&documents, Features::EXECUTED), format!("Accepted {status}"), "{backends}");
    }
}

#[test]
fn backends_of_other_namespaces_need_no_grant() {
    let rules = format!("{{{TO_V1}}}");
    let consumer = route("HTTPRoute", "web/r", "", &rules);
    let documents = [SERVICES, &consumer];
    assert_eq!(conditions(&documents, Features::EXECUTED), "Accepted ResolvedRefs");
    assert_eq!(outcome(&table(&documents, "web"), &get("/")), "v1:80=1");
}

#[test]
fn a_rule_that_cannot_be_carried_out_answers_with_an_error_and_one_whose_matches_are_unknown_is_left_out() {
    let good = "{matches: [{path: {value: /good}}], backendRefs: [{name: v1, port: 80}]}";
    let with = |rest: &str| {
        format!("{{matches: [{{path: {{value: /a}}}}], {rest}, backendRefs: [{{name: v1, port: 80}}]}}")
    };
    for (rule, expected, reason) in [
        (with("filters: [{type: CORS, cors: {}}]"), "500", "UnsupportedValue"),
        (
            with("filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]"),
            "500",
            "UnsupportedValue",
        ),
        (with("sessionPersistence: {type: Cookie}"), "500", "UnsupportedValue"),
        (with("timeouts: {request: 1.5s}"), "500", "UnsupportedValue"),
        (with("timeouts: {request: 1s, backendRequest: 2s}"), "500", "UnsupportedValue"),
        (with("retry: {codes: [200]}"), "500", "UnsupportedValue"),
        (with("filters: [{type: RequestRedirect, requestRedirect: {}}]"), "500", "IncompatibleFilters"),
        ("{matches: [{path: {value: /a}, cookies: []}]}".to_owned(), "404", "UnsupportedValue"),
        ("{matches: [{path: {type: Glob, value: /a}}]}".to_owned(), "404", "UnsupportedValue"),
        ("{matches: [{path: {type: RegularExpression, value: '('}}]}".to_owned(), "404", "UnsupportedValue"),
        ("{matches: /a}".to_owned(), "404", "UnsupportedValue"),
    ] {
        let partly = http(&format!("{rule}, {good}"));
        let documents = [SERVICES, &partly];
        let found = table(&documents, "shop");
        assert_eq!(outcome(&found, &get("/a")), expected, "{rule}");
        assert_eq!(outcome(&found, &get("/good")), "v1:80=1", "{rule}");
        let partial = "Accepted PartiallyInvalid:UnsupportedValue ResolvedRefs";
        assert_eq!(conditions(&documents, Features::EXECUTED), partial, "{rule}");
        let whole = http(&rule);
        let documents = [SERVICES, &whole];
        assert_eq!(
            conditions(&documents, Features::EXECUTED),
            format!("Accepted={reason} ResolvedRefs"),
            "{rule}"
        );
        let found = outcome(&table(&documents, "shop"), &get("/good"));
        assert_eq!(found, "404", "it does not fall back to the Service: {rule}");
    }
}

#[test]
fn what_sidecars_do_not_carry_out_is_not_accepted() {
    let rules = "{filters: [{type: URLRewrite, urlRewrite: {hostname: a.example}}], backendRefs: [{name: v1, port: 80}]}";
    let documents = [SERVICES, &http(rules)];
    for (features, expected) in [
        (Features::EXECUTED, "Accepted ResolvedRefs"),
        (
            Features::only(&[Feature::Routing, Feature::RequestHeaderModifier]),
            "Accepted=UnsupportedValue ResolvedRefs",
        ),
        (Features::only(&[]), "Accepted=UnsupportedValue ResolvedRefs"),
    ] {
        assert_eq!(conditions(&documents, features), expected, "{features:?}");
    }
    let index = index(&documents);
    let without = with_resolver(&index, Features::only(&[]), |resolver| resolver.routes(&cart(), 80, "shop"));
    assert!(without.is_none());
}

#[test]
fn older_routes_win_and_then_those_first_by_name() {
    let to = |name: &str, backend: &str| {
        route("HTTPRoute", name, "", &format!("{{backendRefs: [{{name: {backend}, port: 80}}]}}"))
    };
    let (a, b) = (to("shop/a", "v1"), to("shop/b", "v2"));
    assert_eq!(outcome(&table(&[SERVICES, &a, &b], "shop"), &get("/")), "v1:80=1");
    let (a, b) = (created(&a, 2), created(&b, 1));
    assert_eq!(outcome(&table(&[SERVICES, &a, &b], "shop"), &get("/")), "v2:80=1");
}

#[test]
fn timeouts_and_retries_are_those_of_the_rule() {
    let rules = "{timeouts: {request: 10s, backendRequest: 1500ms}, \
                 retry: {codes: [500, 503], attempts: 3, backoff: 100ms}, backendRefs: [{name: v1, port: 80}]}, \
                 {matches: [{path: {value: /d}}], retry: {}, backendRefs: [{name: v1, port: 80}]}";
    let routes = routes(&index(&[SERVICES, &http(rules)]), "shop").unwrap();
    let [rule, default] = &routes[0].rules[..] else { panic!("{routes:?}") };
    let milliseconds = |duration: Option<std::time::Duration>| duration.unwrap().as_millis();
    assert_eq!(milliseconds(rule.timeouts.request()), 10_000);
    assert_eq!(milliseconds(rule.timeouts.backend_request()), 1_500);
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.attempts(), retry.backoff().base().as_millis()), (3, 100));
    assert_eq!(retry.on().statuses(), [(500, 500), (503, 503)]);
    assert_eq!(default.retry.as_ref().unwrap().attempts(), 1);
}
