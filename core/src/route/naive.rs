//! The table held against a second one, which compares every match of every rule by the sentences of Gateway API.

use std::cmp::Ordering;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::matching::{HeaderMatch, PathMatch, QueryMatch};
use super::test_request::TestRequest;
use super::*;

const HOSTS: [&str; 6] = ["*", "*.example", "*.b.example", "a.b.example", "b.example", "192.0.2.1"];
const REQUEST_HOSTS: [&str; 8] = [
    "a.b.example",
    "A.b.Example:80",
    "c.b.example",
    "b.example.",
    "xb.example",
    "example",
    "192.0.2.1:1",
    "",
];
const PATHS: [&str; 6] = ["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c"];
const PATTERNS: [&str; 4] = ["/a.*", "/a/[bc]", "/|/ab", "/a/b/c|/x"];

/// Both sides' programs, which take longer to compile than everything else here.
static COMPILED: LazyLock<Vec<(regex::Regex, PathMatch)>> = LazyLock::new(|| {
    let naive = |pattern: &str| regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
    PATTERNS.iter().map(|pattern| (naive(pattern), PathMatch::regex(pattern).unwrap())).collect()
});

fn compiled(pattern: &str) -> &'static (regex::Regex, PathMatch) {
    &COMPILED[PATTERNS.iter().position(|known| *known == pattern).unwrap()]
}

/// One match, as its author wrote it.
#[derive(Clone, Debug)]
struct Written {
    path: Option<(char, &'static str)>,
    methods: Vec<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

/// An object with its rules, each a list of matches.
#[derive(Clone, Debug)]
struct WrittenRoute {
    namespace: &'static str,
    name: &'static str,
    created: i64,
    hosts: Vec<&'static str>,
    rules: Vec<Vec<Written>>,
}

#[derive(Clone, Debug)]
struct Sent {
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

/// Which route, which rule and which match.
type Place = (usize, usize, usize);

impl Written {
    fn fits(&self, sent: &Sent) -> bool {
        let path = match self.path {
            None => true,
            Some(('=', exact)) => sent.path == exact,
            Some(('/', prefix)) => {
                let elements =
                    |path: &'static str| path.split('/').filter(|e| !e.is_empty()).collect::<Vec<_>>();
                elements(sent.path).starts_with(&elements(prefix))
            }
            Some((_, pattern)) => compiled(pattern).0.is_match(sent.path),
        };
        let first = |pairs: &[(&str, &'static str)], name: &str| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
        };
        let joined = |name: &str| {
            let values: Vec<_> =
                sent.headers.iter().filter(|(known, _)| *known == name).map(|(_, v)| *v).collect();
            values.join(",")
        };
        path && (self.methods.is_empty() || self.methods.contains(&sent.method))
            && self.distinct(&self.headers).iter().all(|(name, value)| joined(name) == *value)
            && self.distinct(&self.query).iter().all(|(name, value)| first(&sent.query, name) == Some(value))
    }

    /// "Only the first entry with an equivalent name must be considered."
    fn distinct(&self, pairs: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        let is_first = |i: usize| pairs.iter().take(i).all(|(name, _)| *name != pairs[i].0);
        (0..pairs.len()).filter(|i| is_first(*i)).map(|i| pairs[i]).collect()
    }
}

fn host_fits(pattern: &str, host: &str) -> bool {
    let host = host.split(':').next().unwrap_or_default().trim_end_matches('.').to_lowercase();
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
        None => host == pattern,
    }
}

/// "Precedence must be given to the match with": one line a sentence. `Greater` goes first.
fn compare(routes: &[WrittenRoute], a: (&str, Place), b: (&str, Place)) -> Ordering {
    let route = |(_, (route, ..)): (&str, Place)| &routes[route];
    let matching = |(_, (route, rule, matching)): (&str, Place)| routes[route].rules[rule][matching].clone();
    let (x, y) = (matching(a), matching(b));
    let kind = |written: &Written| match written.path {
        Some(('=', _)) => 3,
        Some(('~', _)) => 2,
        Some(_) => 1,
        None => 0,
    };
    let path_len = |written: &Written| match written.path {
        Some(('=', _)) | None => 0,
        Some(('~', pattern)) => pattern.len(),
        Some((_, prefix)) => prefix.trim_end_matches('/').len(),
    };
    let full_name = |place| format!("{}/{}", route(place).namespace, route(place).name);
    let precise = |host: &str| !host.starts_with('*');
    let wider = |host: &str| if host == "*" { 0 } else { host.len() };
    precise(a.0)
        .cmp(&precise(b.0))
        .then(wider(a.0).cmp(&wider(b.0)))
        .then(kind(&x).cmp(&kind(&y)))
        .then(path_len(&x).cmp(&path_len(&y)))
        .then((!x.methods.is_empty()).cmp(&!y.methods.is_empty()))
        .then(x.distinct(&x.headers).len().cmp(&y.distinct(&y.headers).len()))
        .then(x.distinct(&x.query).len().cmp(&y.distinct(&y.query).len()))
        .then(route(b).created.cmp(&route(a).created))
        .then(full_name(b).cmp(&full_name(a)))
        .then(b.1.cmp(&a.1))
}

fn naive(routes: &[WrittenRoute], sent: &Sent) -> Option<Place> {
    let mut fitting = Vec::new();
    for (i, route) in routes.iter().enumerate() {
        for host in route.hosts.iter().filter(|host| host_fits(host, sent.host)) {
            for (j, rule) in route.rules.iter().enumerate() {
                for (k, _) in rule.iter().enumerate().filter(|(_, written)| written.fits(sent)) {
                    fitting.push((*host, (i, j, k)));
                }
            }
        }
    }
    fitting.into_iter().max_by(|a, b| compare(routes, *a, *b)).map(|(_, place)| place)
}

fn compile(routes: &[WrittenRoute]) -> RouteTable {
    let matching = |written: &Written| {
        let path = written.path.map(|(kind, text)| match kind {
            '=' => PathMatch::exact(text).unwrap(),
            '/' => PathMatch::prefix(text).unwrap(),
            _ => compiled(text).1.clone(),
        });
        let methods = written.methods.iter().map(|method| Method::parse(method).unwrap()).collect();
        let headers = written.headers.iter().map(|(name, value)| HeaderMatch::exact(name, value).unwrap());
        let query = written.query.iter().map(|(name, value)| QueryMatch::exact(name, value).unwrap());
        RouteMatch::new(path, methods, headers.collect(), query.collect())
    };
    let rule = |(i, j, matches): (usize, usize, &Vec<Written>)| {
        let response = DirectResponse { status: 204, reason: "test".into() };
        RouteRule {
            name: Some(format!("{i} {j}").into()),
            matches: matches.iter().map(matching).collect(),
            ..RouteRule::new(Action::Respond(response))
        }
    };
    let route = |(i, written): (usize, &WrittenRoute)| Route {
        origin: ObjectRef::new("HTTPRoute", written.namespace, written.name),
        created: written.created,
        hosts: written.hosts.iter().map(|host| HostMatch::parse(host).unwrap()).collect(),
        rules: written.rules.iter().enumerate().map(|(j, matches)| rule((i, j, matches))).collect(),
    };
    RouteTable::new(routes.iter().enumerate().map(route).collect()).unwrap()
}

fn request(sent: &Sent) -> TestRequest {
    let query: Vec<_> = sent.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let request = TestRequest::new(sent.method, sent.host, &format!("{}?{}", sent.path, query.join("&")));
    sent.headers.iter().fold(request, |request, (name, value)| request.with(name, value))
}

fn pairs(
    names: &'static [&'static str],
    most: usize,
) -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let pair = (prop::sample::select(names), prop::sample::select(&["1", "2"][..]));
    prop::collection::vec(pair, 0..=most)
}

fn written() -> impl Strategy<Value = Written> {
    let path = prop_oneof![
        2 => Just(None),
        3 => prop::sample::select(&PATHS[..]).prop_map(|path| Some(('=', path))),
        5 => prop::sample::select(&PATHS[..]).prop_map(|path| Some(('/', path))),
        3 => prop::sample::select(&PATTERNS[..]).prop_map(|pattern| Some(('~', pattern))),
    ];
    let methods = prop::sample::subsequence(vec!["GET", "PUT"], 0..=2);
    (path, methods, pairs(&["x", "y"], 2), pairs(&["q", "r"], 2))
        .prop_map(|(path, methods, headers, query)| Written { path, methods, headers, query })
}

fn routes() -> impl Strategy<Value = Vec<WrittenRoute>> {
    let rules = prop::collection::vec(prop::collection::vec(written(), 1..3), 1..4);
    let names = (prop::sample::select(&["a", "a-b"][..]), prop::sample::select(&["x", "y"][..]));
    let hosts = prop::sample::subsequence(HOSTS.to_vec(), 1..=3);
    let route = (names, 0_i64..2, hosts, rules).prop_map(|((namespace, name), created, hosts, rules)| {
        WrittenRoute { namespace, name, created, hosts, rules }
    });
    prop::collection::vec(route, 0..5)
}

fn sent() -> impl Strategy<Value = Sent> {
    (
        prop::sample::select(&["GET", "PUT", "POST"][..]),
        prop::sample::select(&REQUEST_HOSTS[..]),
        prop::sample::select(&PATHS[..]),
        pairs(&["x", "y"], 3),
        pairs(&["q", "r"], 3),
    )
        .prop_map(|(method, host, path, headers, query)| Sent { method, host, path, headers, query })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn a_request_gets_the_rule_that_the_sentences_of_gateway_api_choose(routes in routes(), sent in sent()) {
        let table = compile(&routes);
        let selected = table.select(&request(&sent));
        let expected = naive(&routes, &sent);
        let place = selected.map(|selected| selected.rule.name.as_deref().unwrap_or_default().to_owned());
        prop_assert_eq!(place, expected.map(|(i, j, _)| format!("{i} {j}")));
        if let (Some(selected), Some((i, j, k))) = (selected, expected) {
            prop_assert_eq!(Some(selected.matching), table.routes()[i].rules[j].matches.get(k));
        }
    }

    #[test]
    fn the_order_in_which_objects_come_does_not_count(routes in routes(), sent in sent()) {
        // Objects of one age and name differ in nothing that could decide.
        let mut seen = std::collections::BTreeSet::new();
        let distinct: Vec<_> =
            routes.into_iter().filter(|route| seen.insert((route.namespace, route.name))).collect();
        let origin = |routes: &[WrittenRoute]| {
            let table = compile(routes);
            let selected = table.select(&request(&sent));
            selected.map(|selected| (selected.route.origin.clone(), selected.matching.clone()))
        };
        let reversed: Vec<_> = distinct.iter().rev().cloned().collect();
        prop_assert_eq!(origin(&distinct), origin(&reversed));
    }

    #[test]
    fn a_union_of_matches_fits_what_one_of_them_fits(rule in prop::collection::vec(written(), 1..4), sent in sent()) {
        let fits = rule.iter().any(|written| written.fits(&sent));
        let route = WrittenRoute { namespace: "a", name: "x", created: 0, hosts: vec!["*"], rules: vec![rule] };
        let table = compile(std::slice::from_ref(&route));
        prop_assert_eq!(table.select(&request(&sent)).is_some(), fits);
        prop_assert_eq!(table.routes()[0].rules[0].matches.iter().any(|m| m.matches(&request(&sent))), fits);
    }
}
