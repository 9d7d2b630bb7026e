use super::*;
use crate::route::test_request::TestRequest;

fn fits(matching: &RouteMatch, request: &TestRequest) -> bool {
    matching.matches(request)
}

fn header(matching: HeaderMatch) -> RouteMatch {
    RouteMatch::new(None, vec![], vec![matching], vec![])
}

fn query(matching: QueryMatch) -> RouteMatch {
    RouteMatch::new(None, vec![], vec![], vec![matching])
}

#[test]
fn a_prefix_matches_whole_elements_and_ignores_its_last_slash() {
    for prefix in ["/abc", "/abc/"] {
        let prefix = PathMatch::prefix(prefix).unwrap();
        for (path, expected) in [
            ("/abc", true),
            ("/abc/", true),
            ("/abc/d", true),
            ("/abcd", false),
            ("/ab", false),
            ("/", false),
        ] {
            assert_eq!(prefix.matches(path.as_bytes()), expected, "{path}");
        }
    }
    let root = PathMatch::prefix("/").unwrap();
    assert!(root.matches(b"/") && root.matches(b"/a") && !root.matches(b"*") && !root.matches(b""));
    assert!(fits(&RouteMatch::any(), &TestRequest::new("OPTIONS", "a", "*")));
}

#[test]
fn an_exact_path_is_case_sensitive_and_has_its_last_slash() {
    let exact = PathMatch::exact("/Abc").unwrap();
    assert!(exact.matches(b"/Abc") && !exact.matches(b"/abc") && !exact.matches(b"/Abc/"));
    assert!(PathMatch::exact("/abc/").unwrap().matches(b"/abc/"));
}

#[test]
fn paths_of_rules_are_brought_into_the_form_of_requests() {
    assert!(PathMatch::exact("/ä {x}").unwrap().matches(b"/%C3%A4%20%7Bx%7D"));
    assert!(PathMatch::prefix("/%7euser%2fa").unwrap().matches(b"/~user%2Fa/b"));
    let problem = |text: &str| PathMatch::prefix(text).unwrap_err().problem;
    assert_eq!(problem("abc"), Problem::NoSlash);
    assert_eq!(problem(""), Problem::NoSlash);
    assert_eq!(problem("/a?b"), Problem::NotAPath);
    assert_eq!(problem("/a//b"), Problem::NotNormal("/a/b".to_owned()));
    assert_eq!(problem("/a/../b"), Problem::NotNormal("/b".to_owned()));
    assert_eq!(problem("/a/."), Problem::NotNormal("/a/".to_owned()));
    assert_eq!(problem("/.."), Problem::NotNormal("/".to_owned()));
    assert_eq!(problem("/a\\b"), Problem::NotNormal("/a/b".to_owned()));
    assert!(matches!(problem("/..;"), Problem::Path(_)));
    assert_eq!(problem(&"/a".repeat(513)), Problem::TooLong(1024));
    assert_eq!(
        PathMatch::exact("abc").unwrap_err().within("rules[0].matches[1]").to_string(),
        "rules[0].matches[1].path.value: \"abc\" does not start with \"/\""
    );
    assert_eq!(PathMatch::regex("/ä").unwrap_err().problem, Problem::NotAscii('ä'));
}

#[test]
fn lines_of_one_field_are_one_value() {
    let one = header(HeaderMatch::exact("X-Version", "one").unwrap());
    let both = header(HeaderMatch::exact("x-version", "one,two").unwrap());
    let pattern = header(HeaderMatch::regex("x-version", "one.two").unwrap());
    let sent = |values: &[&str]| {
        let request = TestRequest::new("GET", "a", "/");
        values.iter().fold(request, |request, value| request.with("x-version", value))
    };
    assert!(fits(&one, &sent(&["one"])) && !fits(&one, &sent(&["one", "two"])) && !fits(&one, &sent(&[])));
    assert!(fits(&both, &sent(&["one", "two"])) && fits(&both, &sent(&["one,two"])));
    assert!(!fits(&both, &sent(&["two", "one"])) && !fits(&both, &sent(&["one", "two", "three"])));
    assert!(fits(&pattern, &sent(&["one", "two"])) && !fits(&pattern, &sent(&["one"])));
    assert!(!fits(&one, &sent(&["One"])), "values are case-sensitive");
    let cookie = header(HeaderMatch::exact("cookie", "a=1; b=2").unwrap());
    assert!(fits(&cookie, &TestRequest::new("GET", "a", "/").with("cookie", "a=1").with("cookie", "b=2")));
}

#[test]
fn the_host_header_is_the_authority() {
    let host = header(HeaderMatch::exact("Host", "a.example:80").unwrap());
    assert!(fits(&host, &TestRequest::new("GET", "a.example:80", "/")));
    assert!(!fits(&host, &TestRequest::new("GET", "a.example", "/")));
    assert!(!fits(&header(HeaderMatch::regex("host", ".*").unwrap()), &TestRequest::new("GET", "", "/")));
}

#[test]
fn the_first_parameter_of_a_name_counts_and_nothing_is_decoded() {
    let animal = query(QueryMatch::exact("animal", "whale").unwrap());
    for (path, expected) in [
        ("/?animal=whale", true),
        ("/?a=b&animal=whale&c", true),
        ("/?animal=whale&animal=dolphin", true),
        ("/?animal=dolphin&animal=whale", false),
        ("/?animals=whale", false),
        ("/?ANIMAL=whale", false),
        ("/?animal=%77hale", false),
        ("/?animal", false),
        ("/?", false),
        ("/", false),
    ] {
        assert_eq!(fits(&animal, &TestRequest::new("GET", "a", path)), expected, "{path}");
    }
    let empty = query(QueryMatch::exact("flag", "").unwrap());
    assert!(fits(&empty, &TestRequest::new("GET", "a", "/?flag")));
    assert!(fits(&empty, &TestRequest::new("GET", "a", "/?flag=")));
    assert!(QueryMatch::exact("", "x").is_err());
}

#[test]
fn of_entries_for_one_name_the_first_counts() {
    let matching = RouteMatch::new(
        None,
        vec![],
        vec![HeaderMatch::exact("A", "1").unwrap(), HeaderMatch::exact("a", "2").unwrap()],
        vec![QueryMatch::exact("q", "1").unwrap(), QueryMatch::regex("q", "2").unwrap()],
    );
    assert_eq!((matching.headers().len(), matching.query().len()), (1, 1));
    assert!(fits(&matching, &TestRequest::new("GET", "a", "/?q=1").with("a", "1")));
}

#[test]
fn one_of_the_methods_must_fit() {
    let method = |text: &str| Method::parse(text).unwrap();
    let matching = RouteMatch::new(None, vec![method("GET"), method("HEAD")], vec![], vec![]);
    assert!(fits(&matching, &TestRequest::new("HEAD", "a", "/")));
    assert!(!fits(&matching, &TestRequest::new("head", "a", "/")));
}
