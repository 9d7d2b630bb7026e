//! Requests of mesh peers that exceed a rate limit.

use std::time::Duration;

use tidegate_core::policy::{GlobalRateLimits, RateLimits, RouteRateLimit};
use tidegate_core::route::RouteMatch;
use tidegate_core::route::filter::{HeaderEdits, LocalRateLimit};
use tidegate_core::route::matching::PathMatch;
use tidegate_core::token_bucket::TokenRate;

use super::mesh_peers::{Peer, get, rule};
use super::*;

fn limit(bucket: &str, tokens: u32) -> LocalRateLimit {
    LocalRateLimit {
        origin: ObjectRef::new("UpstreamTrafficSetting", "httpbin", "limits"),
        bucket: bucket.into(),
        rate: TokenRate { tokens, per: Duration::from_secs(3600), burst: 0 },
        status: if bucket.is_empty() { 429 } else { 503 },
        headers: HeaderEdits::new(&[("x-limited", "yes")], &[], &[]).unwrap().into(),
    }
}

fn limits(is_audit: bool, requests: Option<u32>, paths: &[(&str, u32)]) -> Vec<Arc<RateLimits>> {
    let route = |(path, tokens): &(&str, u32)| {
        let requests = RouteMatch::new(Some(PathMatch::regex(path).unwrap()), vec![], vec![], vec![]);
        RouteRateLimit { requests, limit: limit(path, *tokens) }
    };
    let origin = ObjectRef::new("UpstreamTrafficSetting", "httpbin", "limits");
    let requests = requests.map(|tokens| limit("", tokens));
    let routes = paths.iter().map(route).collect();
    let global = GlobalRateLimits::default();
    vec![RateLimits { origin, is_audit, connections: None, requests, routes, global }.into()]
}

#[test]
fn what_exceeds_a_limit_gets_its_status_and_fields_and_what_is_refused_takes_no_token() {
    let mesh = || MeshRule::Rules(vec![rule("books", &["cart"], vec![get("/books.*")])]);
    let peer = Peer::limited(mesh(), limits(false, Some(2), &[("/books/1", 1)]));
    assert_eq!(peer.get("/admin"), "403, request_not_allowed books");
    assert_eq!(peer.get("/admin"), "403, request_not_allowed books");
    assert_eq!(peer.get("/books/2"), "as sent, books");
    assert_eq!(peer.get("/books/1"), "as sent, books");
    assert_eq!(peer.get("/x/..//books/%31"), "503, request_rate_limited limits");
    assert_eq!(peer.get("/books/3"), "as sent, books");
    assert_eq!(peer.get("/books/3"), "429, request_rate_limited limits");
    assert_eq!(peer.get("/books/..;/1"), "400, books");
    let fields = HeaderMap::new();
    let action = peer.handle(&Request::from_map(b"GET", b"a", b"/books/3", &fields)).action;
    let HandlerAction::ReplyWith(reply, headers) = action else { panic!() };
    assert_eq!((reply.status, reply.body, reply.details), (429, "local_rate_limited", "local_rate_limited"));
    assert_eq!(
        (reply.reason, reply.flag, reply.close),
        ("Too Many Requests", ResponseFlag::RateLimited, false)
    );
    assert_eq!(
        headers.appended().map(|(name, value)| (name.as_str(), value.as_str())).next(),
        Some(("x-limited", "yes"))
    );
}

#[test]
fn only_limits_that_distinguish_paths_change_what_the_app_gets() {
    let peer = Peer::limited(MeshRule::AnyPeer, limits(false, Some(9), &[(".*", 9)]));
    let permissive = "permissive mode lets every workload of the mesh in";
    assert_eq!(peer.get("/a/../b"), format!("as sent, {permissive}"));
    let peer = Peer::limited(MeshRule::AnyPeer, limits(false, None, &[("/c", 9)]));
    assert_eq!(peer.get("/a/../b"), format!("/b, {permissive}"));
    assert_eq!(peer.get("/a/..;/b"), format!("400, {permissive}"));
}

#[test]
fn audit_mode_reports_what_exceeds_a_limit_and_forwards_it_as_it_was_sent() {
    let peer = Peer::limited(MeshRule::AnyPeer, limits(true, Some(1), &[("/b", 0)]));
    assert_eq!(peer.get("/a/../b"), "as sent, permissive mode lets every workload of the mesh in");
    assert_eq!(peer.get("/a/../b"), "as sent, request_rate_limited limits");
    assert_eq!(peer.get("/b"), "as sent, request_rate_limited limits");
    assert_eq!(peer.get("/a/..;/b"), "as sent, request_rate_limited limits");
}

#[test]
fn a_limit_that_is_enforced_refuses_although_another_is_only_reported() {
    let both = [limits(true, Some(0), &[]), limits(false, Some(1), &[])].concat();
    let peer = Peer::limited(MeshRule::AnyPeer, both);
    assert_eq!(peer.get("/a"), "as sent, request_rate_limited limits");
    assert_eq!(peer.get("/a"), "429, request_rate_limited limits");
}

#[test]
fn a_new_policy_neither_fills_nor_empties_the_buckets_of_limits_that_stay() {
    let peer = Peer::limited(MeshRule::AnyPeer, limits(false, Some(1), &[]));
    assert!(peer.get("/a").starts_with("as sent"));
    peer.publish_limited(MeshRule::AnyPeer, limits(false, Some(1), &[]));
    assert_eq!(peer.get("/a"), "429, request_rate_limited limits");
    peer.publish_limited(MeshRule::AnyPeer, vec![]);
    assert!(peer.get("/a").starts_with("as sent"));
}

#[test]
fn clients_outside_the_mesh_are_not_limited() {
    let world = World::new(None);
    world.publish_port(PortPolicy {
        protocol: AppProtocol::Http,
        services: vec![],
        mesh: MeshRule::AnyPeer,
        ingress: vec![IngressRule {
            origin: ObjectRef::new("IngressBackend", "httpbin", "ingress"),
            backend: "httpbin/httpbin".into(),
            state: RuleState::Active(plaintext(Sources::Any)),
        }],
        rate_limits: limits(false, Some(0), &[]),
    });
    assert!(matches!(world.get("a"), HandlerAction::Forward(_)));
}

#[test]
fn neither_requests_within_a_limit_nor_further_ones_over_it_allocate_anything() {
    let peer = Peer::limited(MeshRule::AnyPeer, limits(false, Some(1), &[("/a", 9), ("/b.*", 1)]));
    let fields = HeaderMap::new();
    for (path, expected) in [("/a", true), ("/b", false), ("/c", false)] {
        let request = Request::from_map(b"GET", b"a", path.as_bytes(), &fields);
        drop(peer.handle(&request));
        drop(peer.handle(&request));
        let mut is_forwarded = false;
        let allocated = allocation_counter::measure(|| {
            is_forwarded = matches!(peer.handle(&request).action, HandlerAction::Forward(_));
        });
        assert_eq!((allocated.count_total, is_forwarded), (0, expected), "{path}");
    }
}
