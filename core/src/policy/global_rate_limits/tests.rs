use super::*;
use crate::route::matching::PathMatch;
use crate::route::test_request::TestRequest;

const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

fn pair(key: &str, value: &str) -> DescriptorPair {
    DescriptorPair { key: key.into(), value: value.into() }
}

fn header(name: &str, key: &str) -> DescriptorEntry {
    DescriptorEntry::Header { field: DescribedField::parse(name).unwrap(), key: key.into() }
}

fn matching(name: &str, test: FieldTest, is_expected: bool) -> DescriptorEntry {
    let condition = FieldCondition { field: DescribedField::parse(name).unwrap(), test };
    let pair = pair("header_match", "yes");
    DescriptorEntry::HeaderMatch(HeaderValueMatch { pair, conditions: vec![condition], is_expected })
}

fn described(entries: Vec<DescriptorEntry>, request: &TestRequest) -> Option<Vec<String>> {
    let descriptor = RequestDescriptor { entries };
    let described = descriptor.describe(request, SOURCE)?;
    let text = |(key, value): (&str, Cow<'_, [u8]>)| format!("{key}={}", String::from_utf8_lossy(&value));
    Some(described.into_iter().map(text).collect())
}

#[test]
fn a_descriptor_has_all_its_entries_or_is_left_out() {
    let request =
        TestRequest::new("GET", "shop.test", "/a?b=1").with("x-user", "alice").with("x-user", "bob");
    let entries = |name| {
        vec![
            DescriptorEntry::Generic(pair("generic_key", "shop")),
            DescriptorEntry::RemoteAddress,
            header(name, "user"),
        ]
    };
    assert_eq!(
        described(entries("X-User"), &request).unwrap(),
        ["generic_key=shop", "remote_address=10.0.0.9", "user=alice,bob"]
    );
    assert_eq!(described(entries("x-other"), &request), None);
    for (name, value) in
        [(":method", "GET"), (":path", "/a?b=1"), (":authority", "shop.test"), ("host", "shop.test")]
    {
        assert_eq!(described(vec![header(name, "k")], &request).unwrap(), [format!("k={value}")], "{name}");
    }
    let mapped = "::ffff:10.0.0.9".parse().unwrap();
    let descriptor = RequestDescriptor { entries: vec![DescriptorEntry::RemoteAddress] };
    assert_eq!(descriptor.describe(&request, mapped).unwrap()[0].1, &b"10.0.0.9"[..]);
}

#[test]
fn a_header_is_matched_in_each_way_and_its_absence_meets_no_test_of_a_value() {
    let request = TestRequest::new("GET", "a", "/").with("x-plan", "gold-2");
    let is_met = |name, test, expected| described(vec![matching(name, test, expected)], &request).is_some();
    let tests = |text: &str| {
        [
            FieldTest::Exact(text.into()),
            FieldTest::Prefix(text.into()),
            FieldTest::Suffix(text.into()),
            FieldTest::Contains(text.into()),
        ]
    };
    for (text, met) in [
        ("gold-2", [true, true, true, true]),
        ("gold", [false, true, false, true]),
        ("-2", [false, false, true, true]),
        ("d-", [false, false, false, true]),
        ("silver", [false; 4]),
    ] {
        assert_eq!(tests(text).map(|test| is_met("x-plan", test, true)), met, "{text}");
        assert_eq!(tests(text).map(|test| is_met("x-plan", test, false)), met.map(|met| !met), "{text}");
        assert_eq!(tests(text).map(|test| is_met("x-none", test, true)), [false; 4], "{text}");
    }
    for (name, test, met) in [
        ("x-plan", FieldTest::regex("gold-[0-9]").unwrap(), true),
        ("x-plan", FieldTest::regex("gold").unwrap(), false),
        ("x-plan", FieldTest::Present(true), true),
        ("x-plan", FieldTest::Present(false), false),
        ("x-none", FieldTest::Present(true), false),
        ("x-none", FieldTest::Present(false), true),
    ] {
        assert_eq!(is_met(name, test.clone(), true), met, "{name} {test:?}");
        assert_eq!(is_met(name, test.without_program(), true), met, "{name}");
    }
}

#[test]
fn the_first_route_that_matches_has_its_own_descriptors() {
    let generic =
        |value: &str| RequestDescriptor { entries: vec![DescriptorEntry::Generic(pair("k", value))] };
    let route = |path: &str| RouteDescriptors {
        requests: RouteMatch::new(Some(PathMatch::regex(path).unwrap()), vec![], vec![], vec![]),
        path: path.into(),
        descriptors: vec![generic(path)],
    };
    let service = RateLimitService {
        address: None,
        domain: "shop".into(),
        timeout: Duration::from_millis(20),
        fail_open: true,
    };
    let mut limit = GlobalRequestLimit {
        service,
        descriptors: vec![generic("all")],
        routes: vec![route("/a/.*"), route("/a/b")],
        status: 429,
        has_rate_limit_headers: false,
    };
    let selected = |limit: &GlobalRequestLimit, path| {
        let (name, descriptors) = limit.select(&TestRequest::new("GET", "a", path));
        (name.map(ToString::to_string), descriptors.to_vec())
    };
    assert_eq!(selected(&limit, "/a/b"), (Some("/a/.*".to_owned()), vec![generic("/a/.*")]));
    assert_eq!(selected(&limit, "/c"), (None, vec![generic("all")]));
    assert!(limit.needs_normal_path());
    assert_eq!(limit.expressions(), 2);
    limit.routes = vec![route(".*")];
    assert!(!limit.needs_normal_path());
    assert_eq!(
        limit.service.to_string(),
        "a service without a valid address decides within 20ms, domain \"shop\"; its failure allows"
    );
}

#[test]
fn names_of_fields_are_headers_or_known_pseudo_headers() {
    for (name, known) in [("X-A", "x-a"), (":path", ":path"), ("Host", ":authority")] {
        assert_eq!(DescribedField::parse(name).unwrap().as_str(), known);
    }
    for name in ["", ":status", "a b"] {
        assert!(DescribedField::parse(name).is_err(), "{name}");
    }
    assert!(FieldTest::regex("(").is_err());
}
