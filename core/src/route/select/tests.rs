use super::super::field::Method;
use super::super::filter::Redirect;
use super::super::matching::{HeaderMatch, QueryMatch, RpcMatch};
use super::super::test_request::TestRequest;
use super::super::{Action, DirectResponse};
use super::*;
use crate::object_ref::ObjectRef;

fn rule(name: &str, matches: Vec<RouteMatch>) -> RouteRule {
    let action = Action::Respond(DirectResponse { status: 204, reason: "test".into() });
    RouteRule { name: Some(name.into()), matches, ..RouteRule::new(action) }
}

fn route(name: &str, created: i64, hosts: &[&str], rules: Vec<RouteRule>) -> Route {
    let hosts = hosts.iter().map(|host| HostMatch::parse(host).unwrap()).collect();
    Route { origin: ObjectRef::new("HTTPRoute", "ns", name), created, hosts, rules }
}

fn path(path: Result<PathMatch, RouteError>) -> RouteMatch {
    RouteMatch::new(Some(path.unwrap()), vec![], vec![], vec![])
}

fn prefix(text: &str) -> RouteMatch {
    path(PathMatch::prefix(text))
}

/// The name of the rule that a request for this host and path gets.
fn name(table: &RouteTable, host: &str, path: &str) -> Option<String> {
    let selected = table.select(&TestRequest::new("GET", host, path))?;
    selected.rule.name.as_deref().map(str::to_owned)
}

fn table(routes: Vec<Route>) -> RouteTable {
    RouteTable::new(routes).unwrap()
}

#[test]
fn an_exact_host_goes_before_the_longest_suffix_and_that_before_any() {
    let routes = ["*", "*.example", "*.b.example", "a.b.example", "192.0.2.1", "fd00::1"];
    let one = |host: &&str| route(host, 0, &[*host], vec![rule(host, vec![])]);
    let table = table(routes.iter().map(one).collect());
    for (host, expected) in [
        ("a.b.example", "a.b.example"),
        ("A.B.Example.:8080", "a.b.example"),
        ("x.a.b.example", "*.b.example"),
        ("c.b.example", "*.b.example"),
        ("b.example", "*.example"),
        ("example", "*"),
        (".example", "*"),
        ("", "*"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("192.0.2.2", "*"),
        ("[fd00:0::1]:80", "fd00::1"),
        (&format!("{}b.example", "a.".repeat(122)), "*.b.example"),
        (&format!("{}b.example", "a.".repeat(123)), "*"),
    ] {
        assert_eq!(name(&table, host, "/").as_deref(), Some(expected), "{host}");
    }
}

#[test]
fn a_request_that_no_rule_of_its_host_fits_goes_on_to_a_wider_host() {
    let table = table(vec![
        route("a", 0, &["a.example"], vec![rule("login", vec![prefix("/login")])]),
        route("b", 0, &["*.example"], vec![rule("rest", vec![])]),
    ]);
    assert_eq!(name(&table, "a.example", "/login/x").as_deref(), Some("login"));
    assert_eq!(name(&table, "a.example", "/other").as_deref(), Some("rest"));
    assert_eq!(name(&table, "other", "/"), None);
}

#[test]
fn an_exact_path_goes_before_an_expression_and_that_before_the_longest_prefix() {
    let table = table(vec![route(
        "a",
        0,
        &[],
        vec![
            rule("root", vec![prefix("/")]),
            rule("any", vec![RouteMatch::any()]),
            rule("short", vec![prefix("/a")]),
            rule("long", vec![prefix("/a/b/")]),
            rule("expression", vec![path(PathMatch::regex("/a/[0-9]+"))]),
            rule("longer", vec![path(PathMatch::regex("/a/[0-9]{2}"))]),
            rule("exact", vec![path(PathMatch::exact("/a/1"))]),
        ],
    )]);
    for (path, expected) in [
        ("/a/1", "exact"),
        ("/a/2", "expression"),
        ("/a/22", "longer"),
        ("/a/b", "long"),
        ("/a/b/c?d", "long"),
        ("/a/bc", "short"),
        ("/a/", "short"),
        ("/ab", "root"),
        ("/", "root"),
        ("*", "any"),
    ] {
        assert_eq!(name(&table, "x", path).as_deref(), Some(expected), "{path}");
    }
}

#[test]
fn then_come_method_headers_query_age_name_and_order() {
    let header = |name: &str| HeaderMatch::exact(name, "1").unwrap();
    let query = |name: &str| QueryMatch::exact(name, "1").unwrap();
    let get = || vec![Method::parse("GET").unwrap()];
    let part = |methods, headers, query| RouteMatch::new(None, methods, headers, query);
    // Each beats all behind it.
    let ranked = [
        route("z", 9, &[], vec![rule("method", vec![part(get(), vec![], vec![])])]),
        route("z", 9, &[], vec![rule("headers", vec![part(vec![], vec![header("a"), header("b")], vec![])])]),
        route("z", 9, &[], vec![rule("header", vec![part(vec![], vec![header("a")], vec![query("q")])])]),
        route("z", 9, &[], vec![rule("queries", vec![part(vec![], vec![], vec![query("q"), query("r")])])]),
        route("z", 9, &[], vec![rule("query", vec![part(vec![], vec![], vec![query("q")])])]),
        route("z", 1, &[], vec![rule("old", vec![])]),
        route("a", 2, &[], vec![rule("first by name", vec![])]),
        route("b", 2, &[], vec![rule("first rule", vec![]), rule("second rule", vec![])]),
    ];
    let request = TestRequest::new("GET", "x", "/?q=1&r=1").with("a", "1").with("b", "1");
    for first in 0..ranked.len() {
        let mut rest: Vec<Route> = ranked[first..].to_vec();
        let expected = rest[0].rules[0].name.clone();
        rest.reverse();
        let table = table(rest);
        assert_eq!(table.select(&request).unwrap().rule.name, expected);
    }
}

#[test]
fn a_call_is_chosen_by_its_service_then_by_its_method() {
    let exact = |name: &str| Some(RpcMatch::exact(name).unwrap());
    let regex = |pattern: &str| Some(RpcMatch::regex(pattern).unwrap());
    let call = |name: &str, service, method| {
        rule(name, vec![RouteMatch::new(RpcMatch::path(service, method), vec![], vec![], vec![])])
    };
    let table = table(vec![route(
        "a",
        0,
        &[],
        vec![
            call("all", None, None),
            call("method", None, exact("Add")),
            call("methods", None, regex(".*")),
            call("services", regex("shop[.].*"), None),
            call("service", exact("shop.Cart"), None),
            call("service and methods", exact("shop.Cart"), regex("A.*")),
            call("service and method", exact("shop.Cart"), exact("Add")),
        ],
    )]);
    for (path, expected) in [
        ("/shop.Cart/Add", "service and method"),
        ("/shop.Cart/All", "service and methods"),
        ("/shop.Cart/Get", "service"),
        ("/shop.Bill/Add", "services"),
        ("/bank.Bill/Add", "method"),
        ("/bank.Bill/Get", "methods"),
        ("/bank.Bill", "all"),
        ("/bank.Bill/Get/more", "all"),
    ] {
        assert_eq!(name(&table, "x", path).as_deref(), Some(expected), "{path}");
    }
}

#[test]
fn a_path_needs_its_normal_form_only_where_something_looks_at_it() {
    let needs = |rule: RouteRule| table(vec![route("a", 0, &[], vec![rule])]).needs_normal_path();
    assert!(!needs(rule("any", vec![])) && !needs(rule("root", vec![prefix("/")])));
    assert!(needs(rule("prefix", vec![prefix("/"), prefix("/a")])));
    assert!(needs(rule("expression", vec![path(PathMatch::regex("/.*"))])));
    assert!(needs(RouteRule::new(Action::Redirect(Redirect::new(301).unwrap()))));
}

#[test]
fn what_is_selected_names_its_object_and_the_match_that_fitted() {
    let two = vec![prefix("/a"), prefix("/b")];
    let table = table(vec![route("cart", 0, &[], vec![rule("r", two)])]);
    let selected = table.select(&TestRequest::new("GET", "x", "/b/c")).unwrap();
    assert_eq!(selected.route.origin.to_string(), "HTTPRoute ns/cart");
    assert_eq!(selected.matching, &prefix("/b"));
}

#[test]
fn a_rule_that_does_not_hold_together_is_named() {
    let broken = RouteRule::new(Action::Respond(DirectResponse { status: 1, reason: "x".into() }));
    let error =
        RouteTable::new(vec![route("a", 0, &[], vec![]), route("b", 0, &[], vec![broken])]).unwrap_err();
    assert_eq!(error.field, "routes[1].rules[0].action.respond.status");
}

#[test]
fn a_look_up_allocates_nothing_and_long_paths_cost_no_more_than_the_longest_prefix() {
    let rules = (0..1000).map(|i| rule("r", vec![prefix(&format!("/service-{i}/v1"))])).collect();
    let hosts = ["*", "*.example", "192.0.2.1"];
    let regex = rule("regex", vec![path(PathMatch::regex("/[a-z]+/[0-9]+"))]);
    let header = rule(
        "header",
        vec![RouteMatch::new(
            Some(PathMatch::exact("/h").unwrap()),
            vec![],
            vec![
                HeaderMatch::exact("x-version", "a,b").unwrap(),
                HeaderMatch::regex("x-one", "o.*").unwrap(),
            ],
            vec![QueryMatch::exact("q", "1").unwrap()],
        )],
    );
    let table = table(vec![route("a", 0, &hosts, rules), route("b", 0, &["a.example"], vec![regex, header])]);
    let requests = [
        TestRequest::new("GET", "A.example:80", "/service-999/v1/x"),
        TestRequest::new("GET", "a.example", "/abc/123"),
        TestRequest::new("GET", "a.example", "/h?q=1")
            .with("x-version", "a")
            .with("x-version", "b")
            .with("x-one", "one"),
        TestRequest::new("GET", "192.0.2.1", "/service-0/v1"),
        TestRequest::new("GET", "b.example", &"/a".repeat(30_000)),
    ];
    let select = || requests.iter().filter(|request| table.select(*request).is_some()).count();
    // A regular expression fills its cache when it is first used.
    assert_eq!(select(), 4);
    let measured = allocation_counter::measure(|| assert_eq!(select(), 4));
    assert_eq!(measured.count_total, 0);
}

#[test]
fn connections_without_requests_get_the_rule_that_applies_to_every_request() {
    let catch_all =
        |rules| table(vec![route("r", 0, &[], rules)]).catch_all(None).map(|found| found.index.rule);
    let header = HeaderMatch::exact("a", "b").unwrap();
    let some = || vec![prefix("/a"), RouteMatch::new(None, vec![], vec![header.clone()], vec![])];
    assert_eq!(catch_all(vec![rule("some", some())]), None);
    for every in [vec![], vec![prefix("/")], vec![prefix("/a"), prefix("/")]] {
        assert_eq!(catch_all(vec![rule("some", some()), rule("every", every)]), Some(1));
    }
    let of_a_host = table(vec![route("r", 0, &["a.example"], vec![rule("every", vec![])])]);
    assert_eq!(of_a_host.catch_all(None), None);
    assert!(of_a_host.has_hosts() && !table(vec![route("r", 0, &[], vec![])]).has_hosts());
}

#[test]
fn a_connection_gets_the_rule_of_the_most_specific_host_that_is_the_server_s() {
    let every = || vec![rule("every", vec![])];
    let table = table(vec![
        route("suffix", 0, &["*.example"], every()),
        route("exact", 1, &["a.example"], every()),
        route("paths", 0, &["b.example"], vec![rule("some", vec![prefix("/a")])]),
    ]);
    let of = |server| table.catch_all(server).map(|found| found.route.origin.name.to_string());
    assert_eq!(of(Some("a.example")).as_deref(), Some("exact"));
    assert_eq!(of(Some("A.Example")).as_deref(), Some("exact"));
    assert_eq!(of(Some("b.example")).as_deref(), Some("suffix"), "its own rule is about requests");
    assert_eq!(of(Some("a.b.example")).as_deref(), Some("suffix"));
    for server in [None, Some("example"), Some("other")] {
        assert_eq!(of(server), None, "{server:?}");
    }
}
