use std::time::Duration;

use tidegate_core::route::RouteMatch;
use tidegate_core::route::matching::PathMatch;

use super::*;

fn pair(key: &str) -> DescriptorPair {
    DescriptorPair { key: key.into(), value: "value".into() }
}

fn service(host: &str) -> RateLimitService {
    RateLimitService {
        address: ServerAddress::parse(host, 8081).ok(),
        domain: "shop".into(),
        timeout: Duration::from_millis(20),
        fail_open: host.is_empty(),
    }
}

fn requests() -> GlobalRequestLimit {
    let field = || DescribedField::parse("x-user").unwrap();
    let tests = [
        FieldTest::Exact("a".into()),
        FieldTest::Prefix("a".into()),
        FieldTest::Suffix("a".into()),
        FieldTest::Contains("a".into()),
        FieldTest::regex("a|b").unwrap(),
        FieldTest::Present(false),
    ];
    let conditions = tests.into_iter().map(|test| FieldCondition { field: field(), test }).collect();
    let entries = vec![
        DescriptorEntry::Generic(pair("generic_key")),
        DescriptorEntry::RemoteAddress,
        DescriptorEntry::Header { field: DescribedField::Path, key: "path".into() },
        DescriptorEntry::HeaderMatch(HeaderValueMatch { pair: pair("m"), conditions, is_expected: false }),
    ];
    let descriptors = vec![RequestDescriptor { entries }];
    let path = PathMatch::regex("/a/.*").unwrap();
    GlobalRequestLimit {
        service: service("ratelimit.shop.svc"),
        descriptors: descriptors.clone(),
        routes: vec![RouteDescriptors {
            requests: RouteMatch::new(Some(path), vec![], vec![], vec![]),
            path: "/a/.*".into(),
            descriptors,
        }],
        status: 503,
        has_rate_limit_headers: true,
    }
}

#[test]
fn limits_come_back_from_the_wire_as_they_were() {
    let limit = requests();
    let wire = requests_to_wire(&limit);
    assert_eq!(global_expressions(&wire), 3);
    assert_eq!(limit.expressions(), 3);
    assert_eq!(requests_from_wire("a", wire), Ok(limit));
    for host in ["fd00::1", ""] {
        let limit =
            GlobalConnectionLimit { service: service(host), descriptors: vec![vec![pair("a"), pair("b")]] };
        assert_eq!(connections_from_wire("a", connections_to_wire(&limit)), Ok(limit));
    }
}

#[test]
fn what_is_absent_or_unknown_is_an_error() {
    let field = |change: fn(&mut wire::GlobalRequestLimit)| {
        let mut wire = requests_to_wire(&requests());
        change(&mut wire);
        requests_from_wire("a", wire).unwrap_err().field
    };
    assert_eq!(field(|wire| wire.service = None), "a.service");
    assert_eq!(field(|wire| wire.service.as_mut().unwrap().port = 0), "a.service.port");
    assert_eq!(field(|wire| wire.service.as_mut().unwrap().host = "a b".into()), "a.service.host");
    assert_eq!(field(|wire| wire.service.as_mut().unwrap().timeout = None), "a.service.timeout");
    assert_eq!(field(|wire| wire.status = 399), "a.status");
    assert_eq!(field(|wire| wire.routes[0].requests = None), "a.routes[0].requests");
    assert_eq!(field(|wire| wire.descriptors[0].entries[0].entry = None), "a.descriptors[0].entries[0]");
    let unknown = field(|wire| {
        let header = wire::DescribedHeader { name: ":status".into(), key: "k".into() };
        wire.routes[0].descriptors[0].entries[1].entry = Some(Entry::Header(header));
    });
    assert!(unknown.starts_with("a.routes[0].descriptors[0].entries[1]"), "{unknown}");
    let untested = field(|wire| {
        let condition = wire::FieldCondition { name: "a".into(), test: None };
        let pair = Some(wire::DescriptorPair::default());
        let header = wire::HeaderValueMatch { pair, conditions: vec![condition], expect_match: true };
        wire.descriptors[0].entries[0].entry = Some(Entry::HeaderMatch(header));
    });
    assert_eq!(untested, "a.descriptors[0].entries[0].conditions[0].test");
}
