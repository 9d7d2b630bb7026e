//! The compile function against a second one that follows the specification sentence by sentence, on random splits.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

const BACKENDS: [&str; 5] = ["cart", "v1", "v2", "bytes", "missing"];
const MATCHES: [&str; 3] = ["new", "books", "all"];
const PORTS: [u16; 3] = [80, 5432, 8080];

#[derive(Clone, Debug)]
struct RandomSplit {
    created: u32,
    backends: Vec<(usize, u32)>,
    groups: Vec<usize>,
}

impl RandomSplit {
    fn document(&self, at: usize) -> String {
        let backends = self.backends.iter().fold(String::new(), |mut text, (backend, weight)| {
            let _ = write!(text, "{{service: {}, weight: {weight}}}, ", BACKENDS[*backend]);
            text
        });
        let groups = self.groups.iter().fold(String::new(), |mut text, group| {
            let _ = write!(text, "{{kind: HTTPRouteGroup, name: {}}}, ", MATCHES[*group]);
            text
        });
        split(&format!("s{at}"), self.created, &backends, &format!(", matches: [{groups}]"))
    }
}

/// "The oldest decides." "Requests that match any route of any group are split; others go to the root." "A backend
/// receives traffic in proportion to its weight." "A backend without the port is not included."
fn expected(splits: &[RandomSplit], port: u16, request: &Request) -> String {
    let mut oldest: Option<&RandomSplit> = None;
    for split in splits {
        if oldest.is_none_or(|known| split.created < known.created) {
            oldest = Some(split);
        }
    }
    let Some(split) = oldest else { return "itself".to_owned() };
    let has_port = |backend: usize| {
        let has = (BACKENDS[backend], port);
        matches!(has, ("cart" | "missing", _) | ("v1" | "bytes", 80 | 5432) | ("v2", 80))
    };
    let mut shares = Vec::new();
    for (backend, weight) in &split.backends {
        if has_port(*backend) {
            let is_error = BACKENDS[*backend] == "missing" || (BACKENDS[*backend] == "bytes" && port == 80);
            shares.push(format!("{}={weight}", if is_error { "500" } else { BACKENDS[*backend] }));
        }
    }
    if shares.is_empty() && !split.backends.is_empty() {
        return "itself".to_owned();
    }
    let is_match = |group: &usize| match MATCHES[*group] {
        "new" => request.headers.iter().any(|(_, version)| version.starts_with("new")),
        "books" => request.path == "/new" || (request.method == "GET" && request.path.starts_with("/books/")),
        _ => true,
    };
    if !split.groups.is_empty() && !split.groups.iter().any(is_match) {
        return "cart=1".to_owned();
    }
    shares.join(" ")
}

fn splits() -> impl Strategy<Value = Vec<RandomSplit>> {
    let backends = prop::collection::vec((0..BACKENDS.len(), 0..4_u32), 0..4);
    let groups = prop::collection::vec(0..MATCHES.len(), 0..3);
    let one = (0..4_u32, backends, groups);
    let one = one.prop_map(|(created, backends, groups)| RandomSplit { created, backends, groups });
    prop::collection::vec(one, 0..4)
}

fn request() -> impl Strategy<Value = Request> {
    let method = prop::sample::select(vec!["GET", "POST"]);
    let path = prop::sample::select(vec!["/", "/books/1", "/books", "/new"]);
    let versions: [&[_]; 4] =
        [&[], &[("x-version", "new")], &[("x-version", "new-2")], &[("x-version", "old")]];
    let request = (method, path, prop::sample::select(versions.to_vec()))
        .prop_map(|(method, path, headers)| Request { method, headers, ..get(path) });
    prop_oneof![4 => request, 1 => Just(OPAQUE)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_split_compiles_to_what_the_specification_says(splits in splits(), request in request()) {
        let documents: Vec<_> = splits.iter().enumerate().map(|(at, split)| split.document(at)).collect();
        let documents: Vec<_> = documents.iter().map(String::as_str).collect();
        for port in PORTS {
            prop_assert_eq!(at(&documents, port, &request), expected(&splits, port, &request), "port {}", port);
        }
    }
}
