//! The rules of a route against a second compile function that follows the specification sentence by sentence.

use super::*;

const PATHS: [&str; 4] = ["/", "/a", "/a/b", "/b"];
const BACKENDS: [(&str, u16); 4] = [("v1", 80), ("v2", 80), ("none", 80), ("v1", 81)];

/// What else is in a rule.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Oddity {
    None,
    /// A filter that is not supported.
    Filter,
    /// A match with a field that is not known.
    Match,
    /// A redirect in place of backends.
    Redirect,
}

#[derive(Clone, Debug)]
struct RandomMatch {
    /// Whether it is exact, and which.
    path: Option<(bool, usize)>,
    method: Option<&'static str>,
    has_header: bool,
    has_parameter: bool,
}

#[derive(Clone, Debug)]
struct RandomRule {
    matches: Vec<RandomMatch>,
    backends: Vec<(usize, u32)>,
    oddity: Oddity,
}

impl RandomMatch {
    fn text(&self) -> String {
        let mut parts = Vec::new();
        if let Some((is_exact, path)) = self.path {
            let how = if is_exact { "Exact" } else { "PathPrefix" };
            parts.push(format!("path: {{type: {how}, value: {}}}", PATHS[path]));
        }
        parts.extend(self.method.map(|method| format!("method: {method}")));
        if self.has_header {
            parts.push("headers: [{name: Version, value: two}]".to_owned());
        }
        if self.has_parameter {
            parts.push("queryParams: [{name: a, value: b}]".to_owned());
        }
        format!("{{{}}}", parts.join(", "))
    }

    /// "A match is fulfilled when all of its conditions are"; a prefix matches whole elements.
    fn fits(&self, request: &Request) -> bool {
        let fits_path = self.path.is_none_or(|(is_exact, path)| {
            let path = PATHS[path];
            let is_below =
                path == "/" || request.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
            request.path == path || (!is_exact && is_below)
        });
        fits_path
            && self.method.is_none_or(|method| method == request.method)
            && (!self.has_header || !request.headers.is_empty())
            && (!self.has_parameter || request.query == Some("a=b"))
    }

    /// "Precedence: exact path, the most characters in a prefix, method, the most headers, the most query parameters."
    fn rank(&self) -> (bool, usize, bool, bool, bool) {
        let (is_exact, path) = self.path.unwrap_or((false, 0));
        let length = if is_exact { 0 } else { PATHS[path].trim_end_matches('/').len() };
        (is_exact, length, self.method.is_some(), self.has_header, self.has_parameter)
    }
}

impl RandomRule {
    fn text(&self) -> String {
        let mut matches: Vec<_> = self.matches.iter().map(RandomMatch::text).collect();
        if self.oddity == Oddity::Match {
            matches.push("{path: {value: /a}, cookies: []}".to_owned());
        }
        let backend = |(at, weight): &(usize, u32)| {
            let (name, port) = BACKENDS[*at];
            format!("{{name: {name}, port: {port}, weight: {weight}}}")
        };
        let backends: Vec<_> = self.backends.iter().map(backend).collect();
        let (filter, backends) = match self.oddity {
            Oddity::Filter => ("{type: CORS, cors: {}}", backends),
            Oddity::Redirect => ("{type: RequestRedirect, requestRedirect: {statusCode: 301}}", Vec::new()),
            Oddity::None | Oddity::Match => ("", backends),
        };
        let [matches, backends] = [matches, backends].map(|list| list.join(", "));
        format!("{{matches: [{matches}], filters: [{filter}], backendRefs: [{backends}]}}")
    }

    /// "If a filter is not supported, requests get an HTTP error. If all entries in backendRefs are invalid, or there are none, they
    /// get 500; of an invalid entry, its share does."
    fn outcome(&self) -> String {
        let share = |(at, weight): &(usize, u32)| match BACKENDS[*at] {
            ("none", _) | (_, 81) => format!("500={weight}"),
            (name, port) => format!("{name}:{port}={weight}"),
        };
        match self.oddity {
            Oddity::Redirect => "redirect 301".to_owned(),
            Oddity::None if !self.backends.is_empty() => {
                self.backends.iter().map(share).collect::<Vec<_>>().join(" ")
            }
            _ => "500".to_owned(),
        }
    }
}

/// "The most specific match; of equal ones, the first in the list." A rule whose matches are not understood is left out.
fn expected(rules: &[RandomRule], request: &Request) -> String {
    let any = RandomMatch { path: None, method: None, has_header: false, has_parameter: false };
    let readable = rules.iter().filter(|rule| rule.oddity != Oddity::Match);
    let fitting = readable.flat_map(|rule| {
        let all = if rule.matches.is_empty() { std::slice::from_ref(&any) } else { rule.matches.as_slice() };
        all.iter().filter(|one| one.fits(request)).map(move |one| (one.rank(), rule))
    });
    let best = fitting.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map_or_else(|| "404".to_owned(), |(_, rule)| rule.outcome())
}

fn rules() -> impl Strategy<Value = Vec<RandomRule>> {
    let path = prop::option::of((any::<bool>(), 0..PATHS.len()));
    let method = prop::option::of(prop::sample::select(vec!["GET", "POST"]));
    let one = (path, method, any::<bool>(), any::<bool>());
    let one = one.prop_map(|(path, method, has_header, has_parameter)| RandomMatch {
        path,
        method,
        has_header,
        has_parameter,
    });
    let oddity = prop_oneof![
        6 => Just(Oddity::None),
        1 => Just(Oddity::Filter),
        1 => Just(Oddity::Match),
        1 => Just(Oddity::Redirect),
    ];
    let backends = prop::collection::vec((0..BACKENDS.len(), 0..4_u32), 0..4);
    let rule = (prop::collection::vec(one, 0..3), backends, oddity);
    let rule = rule.prop_map(|(matches, backends, oddity)| RandomRule { matches, backends, oddity });
    prop::collection::vec(rule, 1..6)
}

fn request() -> impl Strategy<Value = Request> {
    let method = prop::sample::select(vec!["GET", "POST"]);
    let path = prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/c"]);
    let query = prop::option::of(prop::sample::select(vec!["a=b", "a=c"]));
    (method, path, query, any::<bool>()).prop_map(|(method, path, query, has_header)| Request {
        method,
        query,
        headers: if has_header { &[("version", "two")] } else { &[] },
        ..get(path)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn rules_compile_to_what_the_specification_says(
        rules in rules(),
        requests in prop::collection::vec(request(), 1..12),
    ) {
        let texts: Vec<_> = rules.iter().map(RandomRule::text).collect();
        let table = table(&[SERVICES, &http(&texts.join(", "))], "shop");
        for request in requests {
            let what = format!("{} {} {:?} {:?}", request.method, request.path, request.query, request.headers);
            prop_assert_eq!(outcome(&table, &request), expected(&rules, &request), "{}", what);
        }
    }
}
