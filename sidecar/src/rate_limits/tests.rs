use std::iter;
use std::time::Duration;

use tidegate_core::policy::{AppProtocol, GlobalRateLimits, MeshRule, PortPolicy, RouteRateLimit};
use tidegate_core::route::RouteMatch;
use tidegate_core::route::filter::{HeaderEdits, LocalRateLimit};
use tidegate_core::route::matching::PathMatch;
use tidegate_core::telemetry::TelemetrySettings;
use tidegate_core::{EgressMode, Identity, ObjectRef, TrustDomain};

use super::*;

const PORT: u16 = 14001;

fn rate(tokens: u32) -> TokenRate {
    TokenRate { tokens, per: Duration::from_secs(3600), burst: 0 }
}

fn limit(bucket: &str, tokens: u32) -> LocalRateLimit {
    LocalRateLimit {
        origin: ObjectRef::new("UpstreamTrafficSetting", "shop", "cart"),
        bucket: bucket.into(),
        rate: rate(tokens),
        status: 429,
        headers: HeaderEdits::default().into(),
    }
}

/// Limits of connections, of requests and of those with a path.
fn policy(connections: u32, requests: u32, (path, of_path): (&str, u32)) -> InboundPolicy {
    let matching = RouteMatch::new(Some(PathMatch::regex(path).unwrap()), vec![], vec![], vec![]);
    let limits = RateLimits {
        origin: ObjectRef::new("UpstreamTrafficSetting", "shop", "cart"),
        is_audit: false,
        connections: Some(rate(connections)),
        requests: Some(limit("", requests)),
        routes: vec![RouteRateLimit { requests: matching, limit: limit(path, of_path) }],
        global: GlobalRateLimits::default(),
    };
    let port = PortPolicy {
        protocol: AppProtocol::Http,
        services: vec![],
        mesh: MeshRule::AnyPeer,
        ingress: vec![],
        rate_limits: vec![limits.into()],
    };
    InboundPolicy {
        workload: "shop/cart".into(),
        identity: Identity::new(TrustDomain::default(), "shop", "cart").unwrap(),
        locality: None,
        egress: EgressMode::AllowAny,
        retries: Vec::new(),
        egress_proxies: Vec::new(),
        telemetry: TelemetrySettings::default(),
        external_authorization: None,
        ports: BTreeMap::from([(PORT, port)]),
    }
}

/// A request for a path.
struct Get<'p>(&'p [u8]);

impl RequestView for Get<'_> {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn authority(&self) -> &[u8] {
        b"a"
    }

    fn path(&self) -> &[u8] {
        self.0
    }

    fn query(&self) -> Option<&[u8]> {
        None
    }

    fn field<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> {
        iter::empty()
    }
}

/// How many tokens there are for connections, requests and requests for a path, all of which are taken.
fn drain(limiters: &PortLimiters, path: &str) -> [usize; 3] {
    let limiter = &limiters.of(PORT).unwrap()[0];
    let requests = |path: &str| iter::from_fn(|| limiter.take_request(&Get(path.as_bytes())).ok()).count();
    let connections = iter::from_fn(|| limiter.take_connection().then_some(())).count();
    [connections, requests("/other"), requests(path)]
}

#[test]
fn a_change_of_policy_keeps_the_buckets_of_limits_that_stay_and_fills_those_that_change() {
    let first = PortLimiters::new(Some(&policy(2, 3, ("/a", 4))), &PortLimiters::default());
    assert_eq!(drain(&first, "/a"), [2, 3, 4]);
    let same = PortLimiters::new(Some(&policy(2, 3, ("/a", 4))), &first);
    assert_eq!(drain(&same, "/a"), [0, 0, 0]);
    let other_rate = PortLimiters::new(Some(&policy(2, 5, ("/a", 4))), &same);
    assert_eq!(drain(&other_rate, "/a"), [0, 5, 0]);
    let other_path = PortLimiters::new(Some(&policy(2, 5, ("/b", 4))), &other_rate);
    assert_eq!(drain(&other_path, "/b"), [0, 0, 4]);
}

#[test]
fn a_port_without_limits_has_no_limiter_and_one_that_had_none_begins_with_full_buckets() {
    let mut unlimited = policy(1, 1, ("/a", 1));
    unlimited.ports.get_mut(&PORT).unwrap().rate_limits.clear();
    let none = PortLimiters::new(Some(&unlimited), &PortLimiters::default());
    assert!(none.of(PORT).is_none());
    let limited = PortLimiters::new(Some(&policy(1, 1, ("/a", 1))), &none);
    assert_eq!(drain(&limited, "/a"), [1, 1, 1]);
    assert!(PortLimiters::new(None, &limited).of(PORT).is_none());
}
