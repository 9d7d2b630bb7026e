//! Requests of mesh peers, where rules distinguish requests.

use tidegate_core::policy::{
    ActivePeerRule, Grant, MeshProtocol, PeerRule, PeerRuleState, PeerTraffic, RateLimits,
};
use tidegate_core::route::Method;
use tidegate_core::route::matching::{HeaderMatch, PathMatch, RouteMatch};
use tidegate_core::{DnsName, PeerCertificate, San};

use super::*;
use crate::authorizer::Review;
use crate::connection_info::VerifiedCertificate;

fn identity(account: &str) -> Identity {
    Identity::new(TrustDomain::default(), "shop", account).unwrap()
}

fn certificate(peer: &Identity) -> Rc<VerifiedCertificate> {
    let sans = vec![San::Uri(peer.spiffe_uri().into()), San::Dns(DnsName::parse(&peer.dns_name()).unwrap())];
    let (not_before, not_after) = (SystemTime::UNIX_EPOCH, SystemTime::now());
    let leaf = PeerCertificate { sans, not_before, not_after, serial: String::new() };
    VerifiedCertificate { leaf, chain: vec![], forwarded: "".into(), names: "".into() }.into()
}

pub(super) fn get(path: &str) -> RouteMatch {
    let path = PathMatch::regex(path).unwrap();
    RouteMatch::new(Some(path), vec![Method::parse("GET").unwrap()], vec![], vec![])
}

pub(super) fn rule(name: &str, sources: &[&str], matches: Vec<RouteMatch>) -> Arc<PeerRule> {
    let sources = sources.iter().map(|account| identity(account)).collect();
    let traffic = if matches.is_empty() {
        PeerTraffic::Any
    } else {
        PeerTraffic::Requests(matches.into_iter().map(Arc::new).collect())
    };
    let state = PeerRuleState::Active(ActivePeerRule { sources, traffic });
    PeerRule { origin: ObjectRef::new("TrafficTarget", "httpbin", name), state }.into()
}

/// A connection of `shop/cart`.
pub(super) struct Peer(World);

impl Peer {
    fn new(mesh: MeshRule) -> Self {
        Self::limited(mesh, vec![])
    }

    /// With rate limits.
    pub(super) fn limited(mesh: MeshRule, rate_limits: Vec<Arc<RateLimits>>) -> Self {
        let info = ConnectionInfo {
            peer: "10.0.0.7:4321".parse().unwrap(),
            local: "10.0.0.1:14001".parse().unwrap(),
            port: PORT,
            app: APP.parse().unwrap(),
            terms: Terms::MeshTls(MeshProtocol::Http1),
            tls: true,
            server_name: None,
            client: Some(certificate(&identity("cart"))),
            identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
            remote: Default::default(),
            accepted: SystemTime::UNIX_EPOCH,
        };
        let peer = Self(World::of(info));
        peer.publish_limited(mesh, rate_limits);
        peer
    }

    fn publish(&self, mesh: MeshRule) {
        self.publish_limited(mesh, vec![]);
    }

    pub(super) fn publish_limited(&self, mesh: MeshRule, rate_limits: Vec<Arc<RateLimits>>) {
        self.0.publish_port(PortPolicy {
            protocol: AppProtocol::Http,
            services: vec![],
            mesh,
            ingress: vec![],
            rate_limits,
        });
    }

    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        self.0.handler.handle(request)
    }

    fn ask(&self, request: &Request<'_>) -> String {
        let Handled { decision, path, action, .. } = self.handle(request);
        let action = match (action, path) {
            (HandlerAction::Reply(reply) | HandlerAction::ReplyWith(reply, _), _) => reply.status.to_string(),
            (HandlerAction::Forward(_), Some(path)) => String::from_utf8(path.into()).unwrap(),
            (HandlerAction::Forward(_), None) => "as sent".to_owned(),
            (HandlerAction::Check(_), _) => panic!("external authorization is not configured"),
            (HandlerAction::Await(_), _) => panic!("not the app's own request"),
        };
        let decision = match &*decision.unwrap() {
            Decision::Allow(Grant::Peer(origin, _)) => origin.name.to_string(),
            Decision::Allow(Grant::Audit(denial)) | Decision::Deny(denial) => {
                format!("{} {}", denial.reason.code(), denial.origin.as_ref().unwrap().name)
            }
            Decision::Allow(grant) => grant.to_string(),
        };
        format!("{action}, {decision}")
    }

    pub(super) fn get(&self, path: &str) -> String {
        let fields = HeaderMap::new();
        self.ask(&Request::from_map(b"GET", b"a", path.as_bytes(), &fields))
    }

    fn review(&self) -> Review {
        let Rule::Inbound(Inbound { authorizer, .. }) = &self.0.handler.rule else { panic!() };
        authorizer.review(&self.0.publisher.subscribe().current())
    }
}

#[test]
fn each_request_is_decided_by_its_path_in_normal_form_and_forwarded_in_that_form() {
    let peer = Peer::new(MeshRule::Rules(vec![
        rule("books", &["cart", "web"], vec![get("/books.*")]),
        rule("other", &["web"], vec![]),
    ]));
    assert_eq!(peer.get("/books/1?a=%41"), "as sent, books");
    assert_eq!(peer.get("/a/..//books/%31?a=%41"), "/books/1?a=%41, books");
    assert_eq!(peer.get("/books/../admin"), "403, request_not_allowed books");
    assert_eq!(peer.get("/books/..;/admin"), "400, books");
    let post = Request::from_lines(b"POST", b"a", b"/books", Version::Http11, &[]);
    assert_eq!(peer.ask(&post), "403, request_not_allowed books");
    let asterisk = Request::from_lines(b"OPTIONS", b"a", b"*", Version::Http11, &[]);
    assert_eq!(peer.ask(&asterisk), "403, request_not_allowed books");
}

#[test]
fn header_fields_are_matched_in_both_codecs_and_paths_stay_as_sent_where_no_rule_has_one() {
    let header = HeaderMatch::regex("x-version", "v[12]").unwrap();
    let host = HeaderMatch::regex("host", "shop.*").unwrap();
    let by_headers = RouteMatch::new(None, vec![], vec![header, host], vec![]);
    let peer = Peer::new(MeshRule::Rules(vec![rule("versions", &["cart"], vec![by_headers])]));
    for (value, authority, expected) in [
        ("v1", "shop:80", "as sent, versions"),
        ("v3", "shop:80", "403, request_not_allowed versions"),
        ("v1", "other", "403, request_not_allowed versions"),
    ] {
        let lines = [httparse::Header { name: "X-Version", value: value.as_bytes() }];
        let mut map = HeaderMap::new();
        map.insert("x-version", HeaderValue::from_str(value).unwrap());
        let authority = authority.as_bytes();
        let http1 = Request::from_lines(b"GET", authority, b"/a//%41", Version::Http11, &lines);
        assert_eq!(peer.ask(&http1), expected);
        assert_eq!(peer.ask(&Request::from_map(b"GET", authority, b"/a//%41", &map)), expected);
    }
}

#[test]
fn in_audit_mode_requests_go_on_as_they_were_sent_and_the_refusal_is_reported() {
    let peer = Peer::new(MeshRule::Audit(vec![rule("books", &["cart"], vec![get("/books.*")])]));
    assert_eq!(peer.get("/a/../books"), "as sent, books");
    for path in ["/admin", "/books/..;/admin"] {
        assert_eq!(peer.get(path), "as sent, request_not_allowed books");
    }
    peer.publish(MeshRule::Audit(vec![rule("other", &["web"], vec![])]));
    assert_eq!(peer.get("/"), "as sent, peer_not_allowed other");
}

#[test]
fn a_connection_ends_when_a_request_that_it_was_granted_no_longer_is_and_only_then() {
    let rules = |paths: &[&str]| {
        MeshRule::Rules(vec![rule("books", &["cart"], paths.iter().map(|path| get(path)).collect())])
    };
    let peer = Peer::new(rules(&["/a", "/b"]));
    assert_eq!(peer.review(), Review::Keep);
    assert_eq!(peer.get("/a"), "as sent, books");
    peer.publish(rules(&["/c", "/a"]));
    assert_eq!(peer.review(), Review::Keep, "the match that was used is still there");
    peer.publish(rules(&["/c"]));
    assert_eq!(peer.get("/c"), "as sent, books", "a request may come before the review");
    assert!(matches!(peer.review(), Review::Revoke(denial) if denial.reason == Reason::RequestNotAllowed));

    let peer = Peer::new(MeshRule::AnyPeer);
    assert_eq!(peer.get("/a"), "as sent, permissive mode lets every workload of the mesh in");
    peer.publish(rules(&["/c"]));
    assert!(matches!(peer.review(), Review::Revoke(_)), "which requests were granted is not known");
    let peer = Peer::new(rules(&["/a"]));
    assert_eq!(peer.get("/a"), "as sent, books");
    peer.publish(MeshRule::AnyPeer);
    assert_eq!(peer.review(), Review::Keep);
}

#[test]
fn further_requests_allocate_nothing() {
    let peer = Peer::new(MeshRule::Rules(vec![rule("books", &["cart"], vec![get("/books.*"), get("/b")])]));
    let fields = HeaderMap::new();
    for path in ["/books/1", "/b", "/admin"] {
        let request = Request::from_map(b"GET", b"a", path.as_bytes(), &fields);
        drop(peer.0.handler.handle(&request));
        let allocated = allocation_counter::measure(|| drop(peer.0.handler.handle(&request)));
        assert_eq!(allocated.count_total, 0, "{path}");
    }
}
