use std::time::Duration;

use proptest::prelude::*;
use prost::Message;
use tidegate_core::ObjectRef;
use tidegate_core::route::filter::{
    Fault, Filter, Fraction, HeaderEdits, LocalRateLimit, Mirror, PathEdit, Rewrite,
};
use tidegate_core::route::matching::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, RpcMatch, ValueMatch};
use tidegate_core::route::retry::{Backoff, Budget, RetryMethods, RetryOn};
use tidegate_core::route::{Method, RetryPolicy};
use tidegate_core::token_bucket::TokenRate;

use super::*;

fn object() -> impl Strategy<Value = ObjectRef> {
    let kind = prop::sample::select(vec!["HTTPRoute", "Service", "TrafficSplit"]);
    (kind, "[a-z]{0,2}", "[a-z]{1,3}")
        .prop_map(|(kind, namespace, name)| ObjectRef::new(kind, &namespace, &name))
}

fn backend_ref() -> impl Strategy<Value = BackendRef> {
    (object(), 1_u16..).prop_map(|(object, port)| BackendRef { object, port })
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::from_nanos(1)),
        (1_u64..100_000).prop_map(Duration::from_millis),
        (1..u64::MAX).prop_map(Duration::from_secs),
    ]
}

/// Paths also with characters that their normal form encodes, up to the longest.
fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        "(/[a-zA-Z0-9äé%{}~]{1,5}){1,3}/?",
        Just("/".to_owned()),
        Just(format!("/{}", "ä".repeat(511)))
    ]
}

fn value<T>(
    exact: fn(&str) -> Result<T, RouteError>,
    regex: fn(&str) -> Result<T, RouteError>,
) -> impl Strategy<Value = T>
where
    T: std::fmt::Debug + Clone,
{
    let regexes = prop::sample::select(vec!["a|b", "[a-z]+", ".*"]);
    prop_oneof![
        "[a-z.]{3,5}".prop_map(move |text| exact(&text).unwrap()),
        regexes.prop_map(move |text| regex(text).unwrap())
    ]
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    let part = || prop::option::of(value::<ValueMatch>(RpcMatch::exact, RpcMatch::regex));
    let long = RpcMatch::exact(&"x".repeat(1024)).unwrap();
    prop_oneof![
        path().prop_filter_map("dot segments", |path| PathMatch::exact(&path).ok()),
        path().prop_filter_map("dot segments", |path| PathMatch::prefix(&path).ok()),
        prop::sample::select(vec!["/a|/b", "/[a-z]+/[0-9]+"])
            .prop_map(|text| PathMatch::regex(text).unwrap()),
        (part(), part()).prop_filter_map("any call", |(service, method)| RpcMatch::path(service, method)),
        Just(RpcMatch::path(Some(long.clone()), Some(long)).unwrap()),
    ]
}

fn matching() -> impl Strategy<Value = RouteMatch> {
    let header =
        value(|text| HeaderMatch::exact("X-Version", text), |text| HeaderMatch::regex("x-other", text));
    let query = value(|text| QueryMatch::exact("q", text), |text| QueryMatch::regex("r", text));
    let methods = prop::sample::subsequence(vec!["GET", "PUT"], 0..=2);
    (
        prop::option::of(path_match()),
        methods,
        prop::collection::vec(header, 0..3),
        prop::collection::vec(query, 0..3),
    )
        .prop_map(|(path, methods, headers, query)| {
            let methods = methods.into_iter().map(|method| Method::parse(method).unwrap()).collect();
            RouteMatch::new(path, methods, headers, query)
        })
}

fn edits() -> impl Strategy<Value = HeaderEdits> {
    let name = || prop::sample::select(vec!["a", "B", "x-c"]);
    let lines = || prop::collection::vec((name(), prop::sample::select(vec!["1", "ä", ""])), 0..3);
    (lines(), lines(), prop::collection::vec(name(), 0..3))
        .prop_map(|(set, add, remove)| HeaderEdits::new(&set, &add, &remove).unwrap())
}

fn fraction() -> impl Strategy<Value = Fraction> {
    (0_u32..=100, 100_u32..=1000).prop_map(|(part, whole)| Fraction::new(part, whole).unwrap())
}

fn full_path() -> impl Strategy<Value = PathEdit> {
    prop_oneof![Just(String::new()), path()]
        .prop_filter_map("dot segments", |path| PathEdit::full(&path).ok())
}

fn local_rate_limit() -> impl Strategy<Value = Filter> {
    (object(), "[a-z/]{0,3}", any::<u32>(), duration(), any::<u32>(), 400_u16..=599, edits()).prop_map(
        |(origin, bucket, requests, per, burst, status, headers)| {
            let (bucket, headers) = (bucket.into(), headers.into());
            let rate = TokenRate { tokens: requests, per, burst };
            Filter::LocalRateLimit(LocalRateLimit { origin, bucket, rate, status, headers })
        },
    )
}

/// Filters that may stand in any rule, and in any number.
fn repeatable() -> impl Strategy<Value = Vec<Filter>> {
    let filter = prop_oneof![
        (backend_ref(), fraction())
            .prop_map(|(backend, fraction)| Filter::Mirror(Mirror { backend, fraction })),
        local_rate_limit(),
        object().prop_map(Filter::GlobalRateLimit),
        object().prop_map(Filter::ExternalAuth),
        object().prop_map(Filter::Jwt),
    ];
    prop::collection::vec(filter, 0..3)
}

fn filters() -> impl Strategy<Value = Vec<Filter>> {
    let delay = prop::option::of((duration(), fraction()));
    let abort = prop::option::of((200_u16..=599, fraction()));
    let fault = (delay, abort).prop_map(|(delay, abort)| Filter::Fault(Fault { delay, abort }));
    (repeatable(), prop::option::of(edits()), prop::option::of(edits()), prop::option::of(fault)).prop_map(
        |(mut filters, request, response, fault)| {
            filters.extend(request.map(Filter::RequestHeaders));
            filters.extend(response.map(Filter::ResponseHeaders));
            filters.extend(fault);
            filters
        },
    )
}

fn response() -> impl Strategy<Value = DirectResponse> {
    (200_u16..=599, "[a-z ]{0,5}")
        .prop_map(|(status, reason)| DirectResponse { status, reason: reason.into() })
}

fn weighted() -> impl Strategy<Value = WeightedBackend> {
    let target = prop_oneof![
        backend_ref().prop_map(BackendTarget::Backend),
        Just(BackendTarget::App),
        response().prop_map(BackendTarget::Invalid),
    ];
    (0_u32..=1_000_000, target, filters()).prop_map(|(weight, target, filters)| WeightedBackend {
        weight,
        target,
        filters,
    })
}

fn redirect() -> impl Strategy<Value = Redirect> {
    let status = prop::sample::select(vec![301, 302, 303, 307, 308]);
    let scheme = prop::option::of(prop::sample::select(vec![Scheme::Http, Scheme::Https]));
    let hostname = prop::option::of("[a-z]{1,3}\\.example");
    (status, scheme, hostname, prop::option::of(1_u16..), prop::option::of(full_path())).prop_map(
        |(status, scheme, hostname, port, path)| {
            let mut redirect = Redirect::new(status).unwrap();
            redirect = scheme.into_iter().fold(redirect, Redirect::with_scheme);
            redirect = hostname.into_iter().fold(redirect, |r, host| r.with_hostname(&host).unwrap());
            redirect = port.into_iter().fold(redirect, |r, port| r.with_port(port).unwrap());
            path.into_iter().fold(redirect, Redirect::with_path)
        },
    )
}

fn retry() -> impl Strategy<Value = RetryPolicy> {
    let words =
        vec!["5xx", "gateway-error", "reset", "retriable-4xx", "envoy-ratelimited", "418", "unavailable"];
    let on = prop_oneof![
        prop::sample::subsequence(words, 0..4).prop_map(|words| RetryOn::parse(&words.join(",")).unwrap()),
        prop::collection::vec(400_u16..=599, 0..3).prop_map(|codes| RetryOn::codes(&codes).unwrap()),
    ];
    let methods = prop::sample::select(vec![RetryMethods::Idempotent, RetryMethods::All]);
    let backoff = prop_oneof![
        Just(Backoff::NONE),
        (duration(), duration()).prop_map(|(a, b)| Backoff::new(a.min(b), Some(a.max(b))).unwrap()),
    ];
    let budget = (0_u32..=100, duration(), any::<u32>(), duration());
    let budget = budget
        .prop_map(|(percent, interval, count, every)| Budget::new(percent, interval, count, every).unwrap());
    (on, methods, 0_u32..=100, backoff, prop::option::of(budget)).prop_map(
        |(on, methods, attempts, backoff, budget)| {
            RetryPolicy::new(on, methods, attempts, backoff, budget).unwrap()
        },
    )
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    let any = || prop::option::of(duration());
    (any(), any()).prop_map(|(request, attempt)| {
        let attempt = attempt.map(|attempt| request.map_or(attempt, |request| attempt.min(request)));
        Timeouts::new(request, attempt).unwrap()
    })
}

fn rule() -> impl Strategy<Value = RouteRule> {
    let action = prop_oneof![
        prop::collection::vec(weighted(), 0..3).prop_map(Action::Forward),
        redirect().prop_map(Action::Redirect),
        response().prop_map(Action::Respond),
    ];
    let name = prop::option::of("[a-z]{1,3}");
    let matches = prop::collection::vec(matching(), 0..3);
    (name, matches, filters(), action, timeouts(), prop::option::of(retry())).prop_map(
        |(name, matches, filters, action, timeouts, retry)| {
            let name = name.map(Into::into);
            RouteRule { name, matches, filters, action, timeouts, retry }
        },
    )
}

fn rewriting_rule() -> impl Strategy<Value = RouteRule> {
    let rewrite =
        (prop::option::of("[a-z]{1,3}\\.example"), prop::sample::select(vec!["", "/", "/xyz", "/a/b/"]));
    let rewrite = rewrite.prop_map(|(host, prefix)| {
        Filter::Rewrite(Rewrite::new(host.as_deref(), Some(PathEdit::prefix(prefix).unwrap())).unwrap())
    });
    let prefix = prop::sample::select(vec!["/", "/a", "/a/b/"]);
    (rewrite, prefix).prop_map(|(rewrite, prefix)| RouteRule {
        matches: vec![RouteMatch::new(Some(PathMatch::prefix(prefix).unwrap()), vec![], vec![], vec![])],
        filters: vec![rewrite],
        ..RouteRule::new(Action::Forward(vec![WeightedBackend::new(1, BackendTarget::App)]))
    })
}

fn route() -> impl Strategy<Value = Route> {
    let hosts = prop::sample::subsequence(vec!["*", "*.example", "a.example", "192.0.2.1", "fd00::1"], 0..3);
    let rules = prop::collection::vec(prop_oneof![4 => rule(), 1 => rewriting_rule()], 0..3);
    (object(), any::<i64>(), hosts, rules).prop_map(|(origin, created, hosts, rules)| {
        let hosts = hosts.into_iter().map(|host| HostMatch::parse(host).unwrap()).collect();
        Route { origin, created, hosts, rules }
    })
}

proptest! {
    #[test]
    fn routes_come_back_from_the_wire_as_they_were(routes in prop::collection::vec(route(), 0..3)) {
        let table = RouteTable::new(routes).unwrap();
        let bytes = wire::Routes::from(table.routes()).encode_to_vec();
        let decoded = wire::Routes::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(RouteTable::try_from(decoded).unwrap(), table);
    }
}

/// A rule with a part of each kind.
fn table() -> wire::Routes {
    let matching = RouteMatch::new(
        Some(PathMatch::prefix("/a").unwrap()),
        vec![Method::parse("GET").unwrap()],
        vec![HeaderMatch::exact("x", "1").unwrap()],
        vec![QueryMatch::exact("q", "1").unwrap()],
    );
    let mirror = Mirror {
        backend: BackendRef { object: ObjectRef::new("Service", "a", "b"), port: 80 },
        fraction: Fraction::ALL,
    };
    let retry = RetryPolicy::unprocessed();
    let rule = RouteRule {
        matches: vec![RouteMatch::any(), matching],
        filters: vec![Filter::Mirror(mirror)],
        retry: Some(retry),
        ..RouteRule::new(Action::Forward(vec![WeightedBackend::new(1, BackendTarget::App)]))
    };
    let origin = ObjectRef::new("HTTPRoute", "a", "b");
    wire::Routes::from(&[Route { origin, created: 0, hosts: vec![], rules: vec![rule] }][..])
}

/// The error of a table whose first rule was changed.
fn spoil(change: fn(&mut wire::RouteRule)) -> String {
    let mut routes = table();
    change(&mut routes.routes[0].rules[0]);
    RouteTable::try_from(routes).unwrap_err().to_string()
}

#[test]
fn what_is_not_understood_refuses_the_whole_resource_and_names_the_field() {
    let prefix =
        |text: &str| Some(wire::PathMatch { kind: Some(wire::path_match::Kind::Prefix(text.into())) });
    assert!(RouteTable::try_from(table()).is_ok());
    assert_eq!(spoil(|r| r.action = None), "routes[0].rules[0].action: missing");
    assert_eq!(spoil(|r| r.filters[0].kind = None), "routes[0].rules[0].filters[0]: missing");
    assert_eq!(
        spoil(|r| r.matches[1].path = Some(wire::PathMatch { kind: None })),
        "routes[0].rules[0].matches[1].path: missing"
    );
    let mut routes = table();
    routes.routes[0].rules[0].matches[1].path = prefix("a");
    assert_eq!(
        RouteTable::try_from(routes).unwrap_err().to_string(),
        "routes[0].rules[0].matches[1].path.value: \"a\" does not start with \"/\""
    );
    assert_eq!(
        spoil(|r| r.matches[1].headers[0].name = "a b".into()),
        "routes[0].rules[0].matches[1].headers[0].name: \"a b\" is not a header name"
    );
    assert_eq!(
        spoil(|r| r.matches[1].query[0].value = None),
        "routes[0].rules[0].matches[1].query[0].value: missing"
    );
}

#[test]
fn an_invalid_number_refuses_the_whole_resource_and_names_the_field() {
    assert_eq!(
        spoil(|r| {
            let Some(wire::filter::Kind::Mirror(mirror)) = &mut r.filters[0].kind else { panic!() };
            mirror.fraction = Some(wire::Fraction { numerator: 2, denominator: 1 });
        }),
        "routes[0].rules[0].filters[0].fraction: \"2/1\" is not a fraction between 0 and 1"
    );
    assert_eq!(
        spoil(|r| {
            let Some(wire::route_rule::Action::Forward(forward)) = &mut r.action else { panic!() };
            forward.backends[0].weight = 1_000_001;
        }),
        "routes[0].rules[0].backends[0].weight: \"1000001\" is more than 1000000"
    );
    assert_eq!(
        spoil(|r| r.timeouts = Some(wire::Timeouts {
            request: Some(wire::Duration { seconds: 1, nanoseconds: 1_000_000_000 }),
            backend_request: None,
        })),
        "routes[0].rules[0].timeouts.request: 1000000000 nanoseconds are a second or more"
    );
    assert_eq!(
        spoil(|r| if let Some(retry) = &mut r.retry {
            retry.methods = 9;
        }),
        "routes[0].rules[0].retry.methods: unknown value 9"
    );
    assert_eq!(
        spoil(|r| if let Some(retry) = &mut r.retry {
            retry.attempts = 101;
        }),
        "routes[0].rules[0].retry.attempts: \"101\" is more than 100"
    );
}

#[test]
fn regular_expressions_are_counted_before_any_is_compiled() {
    let mut routes = table();
    let regex = wire::PathMatch { kind: Some(wire::path_match::Kind::Regex("(".into())) };
    let matching = wire::RouteMatch { path: Some(regex), ..wire::RouteMatch::default() };
    routes.routes[0].rules[0].matches = vec![matching; 1025];
    let error = RouteTable::try_from(routes).unwrap_err().to_string();
    assert_eq!(error, "routes: 1025 regular expressions, more than 1024");
}
